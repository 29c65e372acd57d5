"""Models in every stage, for the tests of slots and models."""

import torch
from torch import Tensor
from torch.nn import functional

from esper.lifecycle import Blend, SlotConfig, Stage
from esper.model import CnnHost, GrownModel, SeedSlot

CONFIG = SlotConfig(tempo=4)


def batch() -> tuple[Tensor, Tensor]:
    """Pictures (16, 1, 8, 8) and labels (16,)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)


def model(config: SlotConfig = CONFIG) -> GrownModel:
    """Always the same weights; two slots."""
    torch.manual_seed(3)
    return GrownModel(CnnHost(width=4, blocks=2), config)


def germinate(
    slot: SeedSlot, blueprint: str = "conv_light", seed: int = 1, blend: Blend | None = None
) -> None:
    """Prepare and commit."""
    generator = torch.Generator().manual_seed(seed)
    slot.commit(blueprint, slot.prepare(blueprint, generator, blend), blend)


def bring(slot: SeedSlot, stage: Stage, blueprint: str = "conv_light", blend: Blend | None = None) -> None:
    """From DORMANT to this stage; BLENDING with alpha on its way, later ones with alpha 1."""
    if stage is Stage.DORMANT:
        return
    germinate(slot, blueprint, blend=blend)
    if stage in (Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING):
        slot.prune()
        while slot.stage is not stage:
            slot.tick()
        return
    while slot.stage is not stage:
        if slot.stage is Stage.BLENDING:
            for _ in range(4):
                slot.tick()
        slot.advance()
        slot.tick()


def loss_of(network: torch.nn.Module) -> Tensor:
    """Cross entropy on the batch."""
    x, y = batch()
    return functional.cross_entropy(network(x), y)


def backward(network: torch.nn.Module) -> Tensor:
    """The loss, its gradients left in the parameters."""
    loss = loss_of(network)
    torch.autograd.backward(loss)
    return loss
