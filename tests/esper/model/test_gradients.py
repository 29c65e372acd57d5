"""Readings of gradients are those of the parameters."""

import math

import pytest
import torch

from esper.errors import UnknownSlot
from esper.lifecycle import Stage
from esper.model import gradient_stats
from tests.esper.model.growing import backward, bring, model


def test_norms_and_counts() -> None:
    grown = model()
    bring(grown.slots["r0c0"], Stage.TRAINING)
    backward(grown)
    stats = gradient_stats(grown, "r0c0")
    assert stats is not None
    host = [p.grad for p in grown.host.parameters() if p.grad is not None]
    assert stats.host_norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in host)))
    seed = grown.slots["r0c0"].seed_parameters()
    assert stats.seed_norms == pytest.approx(
        [float(torch.linalg.norm(p.grad)) for p in seed if p.grad is not None]
    )
    assert stats.host_parameters == sum(p.numel() for p in grown.host.parameters())
    assert stats.seed_parameters == sum(p.numel() for p in seed)


@pytest.mark.parametrize("stage", [Stage.DORMANT, Stage.GERMINATED, Stage.PRUNED])
def test_no_seed_in_the_forward_pass_has_no_reading(stage: Stage) -> None:
    grown = model()
    bring(grown.slots["r0c0"], stage)
    backward(grown)
    assert gradient_stats(grown, "r0c0") is None


def test_before_the_first_backward_pass_there_is_no_reading() -> None:
    grown = model()
    bring(grown.slots["r0c0"], Stage.TRAINING)
    assert gradient_stats(grown, "r0c0") is None


def test_an_unknown_slot_is_refused() -> None:
    with pytest.raises(UnknownSlot):
        gradient_stats(model(), "r9c9")
