"""A network of one's own grows: its submodules are named, its code is left alone. One process, no ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.control import HeuristicController
from esper.errors import BadSlotPoint
from esper.lifecycle import SlotConfig, Stage
from esper.model import GptHost, GrownModel, ModuleHost, blueprint, blueprint_names
from esper.training import TrainConfig, Trainer
from esper.training.tasks import load_digits_task
from examples.growing import EAGER
from examples.resnet import ResNet


def test_a_residual_network_grows() -> None:
    torch.manual_seed(0)
    network = ResNet(width=4)
    names = set(network.state_dict())
    host = ModuleHost(network, after=["layer1", "layer2.0", "layer3"], example=torch.zeros(2, 1, 8, 8))
    assert [tuple(point) for point in host.slot_points()] == [("r0c0", 4), ("r0c1", 8), ("r0c2", 16)]
    assert set(network.state_dict()) == names  # a checkpoint of the network still fits it

    config = TrainConfig.from_dict({**EAGER, "epochs": 7})
    task = load_digits_task(batch_size=config.batch_size, seed=config.seed)
    controller = HeuristicController(config.heuristic, config.gates)
    history = Trainer(GrownModel(host, config.slot), task, controller, config).run()
    print(history.table())
    assert history.accuracy > 90.0
    lived = {record.stage for result in history.epochs for record in result.records}
    assert {Stage.DORMANT, Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING} <= lived


class Shift(nn.Module):
    """A blueprint of one's own: features moved by what is learnt, along the last axis."""

    def __init__(self, channels: int, generator: torch.Generator, *, spread: float = 0.01) -> None:
        super().__init__()
        self.by = nn.Parameter(spread * torch.randn(channels, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) to the same shape."""
        return x + self.by


@pytest.fixture(scope="module")
def shift() -> str:
    """One line registers it."""
    if "shift" not in blueprint_names("transformer"):
        blueprint("transformer", "shift")(Shift)
    return "shift"


@pytest.mark.parametrize("name", ["attention", "lora", "mlp_small", "shift"])
def test_a_gpt_grows(name: str, shift: str) -> None:
    text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog. " * 40))
    windows = text[: 32 * 48 + 1]
    inputs, targets = windows[:-1].view(48, 32), windows[1:].view(48, 32)
    torch.manual_seed(0)
    model = GrownModel(GptHost(context=32, width=16, blocks=2), SlotConfig(tempo=3))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)

    def epochs(count: int) -> float:
        value = float("nan")
        for _ in range(count):
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            torch.autograd.backward(loss)
            optimiser.step()
            model.tick()
            value = float(loss.detach())
        return value

    before = epochs(10)
    slot = model.slots["r0c0"]
    slot.commit(name, slot.prepare(name, torch.Generator().manual_seed(1)))
    optimiser.add_param_group({"params": list(slot.parameters())})
    for ticks in (0, 5, 4, 2):  # GERMINATED, TRAINING, BLENDING, HOLDING
        epochs(ticks)
        slot.advance()
    assert slot.stage is Stage.FOSSILIZED
    assert slot.record().alpha == 1.0
    after = epochs(10)
    assert after < before
    with torch.no_grad():
        whole, without = model.eval().counterfactuals(inputs, [{}, {"r0c0": 0.0}])
    assert torch.equal(whole, model(inputs))
    assert not torch.equal(whole, without)


def test_what_cannot_carry_a_slot_is_named() -> None:
    wrong: list[tuple[list[str], Any]] = [
        (["layer9"], "is not one submodule's name"),
        (["fc"], "has an output of shape"),
        (["layer2.1.downsample", "layer2.1.relu"], "is run more than once"),
    ]
    for after, said in wrong:
        with pytest.raises(BadSlotPoint, match=said):
            ModuleHost(ResNet(), after=after, example=torch.zeros(2, 1, 8, 8))
