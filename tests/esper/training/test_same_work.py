"""Slots add no work to what a network does: the same operations as without them, eager and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from esper.lifecycle import SlotConfig, Stage
from esper.model import CnnHost, GrownModel
from esper.training import CompileConfig, StepCompiler
from tests.esper.model.growing import bring

BACKEND = "operations"


class ByHand(nn.Module):
    """The model's host with its seeds mixed in after each block, as one would write it without slots."""

    def __init__(self, model: GrownModel) -> None:
        super().__init__()
        self.host = model.host
        self.seeds = nn.ModuleList(seed for slot in _slots(model) if (seed := slot.seed) is not None)
        self.alphas = model.alphas

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.host, CnnHost)
        h = x
        for index, seed in enumerate(self.seeds):
            h = self.host.segment(index, h)
            h = torch.lerp(h, seed(h), self.alphas[index])
        return self.host.segment(len(self.seeds), h)


class Recorder(TorchDispatchMode):
    """The operations that run, in order, less those that only look at a tensor another way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) != "aten.select.int":  # the network by hand takes its alphas from one tensor, too
            self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def graphs() -> list[list[str]]:
    """The operations of each graph that the backend of this module was given."""
    found: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
        # By module and attribute: a name like `getitem` is only Python's way there.
        found.append([str(node.target) for node in calls if "getitem" not in str(node.target)])
        return graph.forward

    torch._dynamo.register_backend(name=BACKEND, compiler_fn=backend)
    return found


@pytest.fixture(autouse=True)
def fresh(graphs: list[list[str]]) -> Iterator[None]:
    """No graphs of other tests."""
    graphs.clear()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _slots(model: GrownModel) -> list[Any]:
    return [model.slots[slot_id] for slot_id in model.slot_ids]


def grown(stage: Stage) -> GrownModel:
    torch.manual_seed(0)
    model = GrownModel(CnnHost(width=4, blocks=3), SlotConfig(tempo=1))
    for slot in _slots(model):
        bring(slot, stage)
    return model


def worked(module: nn.Module) -> list[str]:
    """The operations of a step's forward and backward pass."""
    module.train()
    module.zero_grad()
    with Recorder() as recorder:
        torch.autograd.backward(module(torch.ones(2, 1, 8, 8)).sum())
    operations: list[str] = recorder.operations
    return operations


@pytest.mark.parametrize("stage", [Stage.DORMANT, Stage.GERMINATED, Stage.PRUNED])
def test_a_model_whose_slots_do_nothing_does_what_its_host_does(
    stage: Stage, graphs: list[list[str]]
) -> None:
    model = grown(stage)
    assert worked(model) == worked(model.host)
    both_compiled(model, model.host)
    assert graphs[0] == graphs[1]


def test_a_fossil_does_what_the_same_network_by_hand_does(graphs: list[list[str]]) -> None:
    model = grown(Stage.FOSSILIZED)
    hand = ByHand(model)
    assert worked(model) == worked(hand)
    both_compiled(model, hand)
    assert graphs[0] == graphs[1]
    assert sum("lerp" in name for name in graphs[0]) == 3


def both_compiled(model: GrownModel, other: nn.Module) -> None:
    x = torch.ones(2, 1, 8, 8)
    config = CompileConfig(enabled=True, backend=BACKEND, dynamic=False)
    StepCompiler(config).wrap(model)(x)
    torch.compile(other, backend=BACKEND, fullgraph=True)(x)
