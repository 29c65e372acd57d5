"""A module of the user's as a host."""

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.errors import BadSlotPoint, ConfigError
from esper.lifecycle import SlotConfig, Stage
from esper.model import GptHost, GrownModel, Host, ModuleHost, SlotPoint
from tests.esper.model.growing import bring

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Runs its parts in another order than it names them, one of them twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.early = nn.Conv2d(1, 4, 3)
        self.act = nn.ReLU()
        self.spare = nn.Linear(1, 1)
        self.both = _Both()
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.late(self.act(self.early(x))))
        self.both(h)
        logits: Tensor = self.head(h.mean(dim=(2, 3)))
        return logits


class _Both(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def network() -> Network:
    torch.manual_seed(4)
    return Network()


def host(*after: str) -> ModuleHost:
    return ModuleHost(network(), after=after or ("late", "early"), example=X)


def grown(stage: Stage = Stage.BLENDING) -> GrownModel:
    model = GrownModel(host(), SlotConfig(tempo=4)).eval()
    for slot_id in model.slot_ids:
        bring(model.slots[slot_id], stage)
    return model


def test_slots_are_in_forward_order_with_the_sizes_that_are_there() -> None:
    adapted = host("late", "early")
    assert isinstance(adapted, Host)
    assert adapted.slot_points() == (SlotPoint("r0c0", 4), SlotPoint("r0c1", 6))


def test_looking_leaves_the_module_as_it_was() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.late.eval()
    rng = torch.get_rng_state()
    ModuleHost(module, after=["late"], example=X)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training, module.late.training, module.early.training] == [True, False, True]
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_without_seeds_it_is_the_module() -> None:
    model = GrownModel(host()).eval()
    assert torch.equal(model(X), network().eval()(X))


def test_a_seed_comes_in_where_it_was_said() -> None:
    model = grown()
    seed = model.slots["r0c0"].seed
    assert seed is not None
    module = network().eval()
    h = module.early(X)
    h = torch.lerp(h, seed(h), 0.25)
    late = module.late(torch.relu(h))
    late = model.slots["r0c1"](late)
    assert torch.equal(model(X), module.head(torch.relu(late).mean(dim=(2, 3))))
    assert torch.equal(model(X, alpha_overrides={"r0c0": 0.0, "r0c1": 0.0}), module(X))


def test_the_module_by_itself_stays_the_module() -> None:
    model = grown()
    assert isinstance(model.host, ModuleHost)
    assert torch.equal(model.host.module(X), network().eval()(X))
    assert torch.equal(model.host(X), network().eval()(X))


def test_a_refused_host_leaves_no_hook_behind() -> None:
    module = network()
    with pytest.raises(BadSlotPoint):
        ModuleHost(module, after=["early", "act"], example=X)
    assert not any(each._forward_hooks for each in module.modules())


def test_two_threads_in_it_at_once_do_not_meet() -> None:
    adapted = host().eval()
    inside, seen = threading.Barrier(2), {0: [], 1: []}  # type: ignore[var-annotated]

    def run(number: int) -> None:
        def visit(slot_id: str, h: Tensor) -> Tensor:
            inside.wait(timeout=30)  # both are between two slots of the same module
            seen[number].append(slot_id)
            return h * number

        results[number] = adapted(X, visit)

    results: dict[int, Tensor] = {}
    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {0: ["r0c0", "r0c1"], 1: ["r0c0", "r0c1"]}
    assert torch.equal(results[1], network().eval()(X))
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_has_slots_of_its_own(how: str) -> None:
    model = grown()
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    expected = model(X)
    for slot_id in model.slot_ids:
        model.slots[slot_id].prune(0)
    assert torch.equal(other(X), expected)
    assert torch.equal(model(X), network().eval()(X))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            ["middle"],
            "no slot can go after 'middle': it is not one submodule's name, given once; looked among",
        ),
        ([""], "it is not one submodule's name"),
        (["early", "early"], "it is not one submodule's name, given once"),
        (["spare"], "it is not run by the forward pass"),
        (["act"], "it is run more than once"),
        (["both"], "it has a tuple as output"),
        (["head"], r"it has an output of shape \(3, 5\), not \(N, C, H, W\)"),
    ],
)
def test_where_no_slot_can_go_is_named(after: list[str], said: str) -> None:
    with pytest.raises(BadSlotPoint, match=said):
        ModuleHost(network(), after=after, example=X)


@pytest.mark.parametrize(
    "options", [{"after": [], "example": X}, {"after": ["late"], "example": X, "topology": "graph"}]
)
def test_no_names_and_an_unknown_topology_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="host"):
        ModuleHost(network(), **options)


def test_a_text_module_can_be_adapted() -> None:
    inner = GptHost(vocabulary=7, context=4, width=8, heads=2)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    adapted = ModuleHost(inner, after=["blocks.0"], example=tokens, topology="transformer")
    assert adapted.slot_points() == (SlotPoint("r0c0", 8),)
