"""One slot: what its steps do to its seed, and what they leave alone when refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.errors import (
    BadState,
    ConfigError,
    EsperError,
    FossilPruned,
    IllegalTransition,
    SeedRefused,
    ShapeMismatch,
    SlotEmpty,
    SlotOccupied,
    UnknownBlueprint,
)
from esper.lifecycle import Blend, Stage, has_seed, in_forward
from esper.model import SeedSlot, build
from esper.model.topology import TOPOLOGIES
from tests.esper.model.growing import CONFIG, bring, germinate

H = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def slot_in(stage: Stage) -> SeedSlot:
    slot = SeedSlot("r0c0", 4, "cnn", CONFIG)
    bring(slot, stage)
    assert slot.stage is stage
    return slot


def everything(slot: SeedSlot) -> tuple[object, ...]:
    """All there is to a slot, to compare before and after."""
    bits = tuple(value.clone().numpy().tobytes() for value in slot.state_dict().values())
    trainable = tuple(parameter.requires_grad for parameter in slot.parameters())
    return slot.record(), slot.lifecycle_state(), slot.seed, bits, trainable, slot._alpha.item()


@pytest.mark.parametrize("stage", Stage)
def test_the_seed_is_there_and_learns_when_its_stage_says_so(stage: Stage) -> None:
    slot = slot_in(stage)
    assert (slot.seed is not None) == has_seed(stage)
    assert bool(slot.seed_parameters()) == has_seed(stage)
    assert all(parameter.requires_grad == in_forward(stage) for parameter in slot.seed_parameters())


@pytest.mark.parametrize("training", [True, False])
def test_a_seed_is_in_the_mode_of_its_slot(training: bool) -> None:
    slot = SeedSlot("r0c0", 4, "cnn", CONFIG).train(training)
    germinate(slot)
    assert all(module.training is training for module in slot.modules())
    again = SeedSlot("r0c0", 4, "cnn", CONFIG).train(training)
    again.load_lifecycle_state(slot.lifecycle_state())
    assert all(module.training is training for module in again.modules())


@pytest.mark.parametrize("stage", [stage for stage in Stage if not in_forward(stage)])
def test_outside_the_forward_pass_the_features_pass_untouched(stage: Stage) -> None:
    assert slot_in(stage)(H) is H
    assert slot_in(stage)(H, torch.tensor(1.0)) is H


def test_in_training_the_value_is_the_hosts_and_the_gradient_the_seeds() -> None:
    slot = slot_in(Stage.TRAINING)
    assert slot.seed is not None
    h = H.clone().requires_grad_()
    weight = torch.randn_like(H)
    output = slot(h)
    assert torch.equal(output, H)
    got = torch.autograd.grad(output, [h, *slot.seed_parameters()], weight)
    assert torch.equal(got[0], weight)
    expected = torch.autograd.grad(slot.seed(H), slot.seed_parameters(), weight)
    assert all(torch.equal(one, other) for one, other in zip(got[1:], expected, strict=True))


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED])
def test_after_training_host_and_seed_are_mixed_by_alpha(stage: Stage) -> None:
    slot = slot_in(stage)
    assert slot.seed is not None
    expected = torch.lerp(H, slot.seed(H), slot.record().alpha)
    assert torch.equal(slot(H), expected)
    assert slot.record().alpha == (0.25 if stage is Stage.BLENDING else 1.0)


@pytest.mark.parametrize("stage", [stage for stage in Stage if in_forward(stage)])
def test_an_alpha_given_stands_in_for_the_slots_own(stage: Stage) -> None:
    slot = slot_in(stage)
    assert slot.seed is not None
    before = everything(slot)
    assert torch.equal(slot(H, torch.tensor(0.0)), H)
    assert torch.equal(slot(H, torch.tensor(1.0)), slot.seed(H))
    assert everything(slot) == before


def test_on_the_way_out_the_seed_is_frozen_but_the_host_learns_through_it() -> None:
    slot = slot_in(Stage.HOLDING)
    for parameter in slot.seed_parameters():
        parameter.grad = torch.ones_like(parameter)
    slot.prune()
    assert not any(parameter.requires_grad for parameter in slot.seed_parameters())
    assert all(parameter.grad is None for parameter in slot.seed_parameters())
    h = H.clone().requires_grad_()
    (through,) = torch.autograd.grad(slot(h), h, torch.ones_like(H))
    assert not torch.equal(through, torch.ones_like(H))


def test_on_the_way_out_alpha_goes_down_and_the_seed_leaves_on_arrival() -> None:
    slot = slot_in(Stage.HOLDING)
    slot.prune()
    seen = []
    for _ in range(4):
        slot.tick()
        seen.append((slot.stage, slot.record().alpha, slot.seed is None))
    assert seen == [
        (Stage.HOLDING, 0.75, False),
        (Stage.HOLDING, 0.5, False),
        (Stage.HOLDING, 0.25, False),
        (Stage.PRUNED, 0.0, True),
    ]
    assert slot(H) is H


def test_a_prune_can_be_at_once() -> None:
    slot = slot_in(Stage.HOLDING)
    slot.prune(tempo=0)
    assert slot.stage is Stage.PRUNED
    assert list(slot.parameters()) == []


def test_preparing_shows_nowhere() -> None:
    slot = slot_in(Stage.DORMANT)
    before, rng = everything(slot), torch.get_rng_state()
    seed = slot.prepare("norm", torch.Generator().manual_seed(0))
    assert isinstance(seed, nn.Module)
    assert everything(slot) == before
    assert torch.equal(torch.get_rng_state(), rng)


TEXT: Any = "add"  # not a Blend, though equal to one
REFUSALS: list[tuple[Stage, Callable[[SeedSlot], object], type[EsperError]]] = [
    (Stage.DORMANT, lambda slot: slot.prepare("lora", torch.Generator()), UnknownBlueprint),
    (Stage.DORMANT, lambda slot: slot.prepare("norm", torch.Generator(), TEXT), ConfigError),
    (Stage.DORMANT, lambda slot: slot.commit("norm", nn.Identity(), TEXT), ConfigError),
    (Stage.DORMANT, lambda slot: slot.commit("norm", nn.Identity(), Blend.GATE), ConfigError),
    (Stage.TRAINING, lambda slot: slot.prepare("norm", torch.Generator()), SlotOccupied),
    (Stage.EMBARGOED, lambda slot: slot.prepare("norm", torch.Generator()), IllegalTransition),
    (Stage.HOLDING, lambda slot: slot.commit("norm", nn.Identity()), SlotOccupied),
    (Stage.PRUNED, lambda slot: slot.commit("norm", nn.Identity()), IllegalTransition),
    (Stage.DORMANT, lambda slot: slot.advance(), SlotEmpty),
    (Stage.FOSSILIZED, lambda slot: slot.advance(), IllegalTransition),
    (Stage.RESETTING, lambda slot: slot.advance(), IllegalTransition),
    (Stage.DORMANT, lambda slot: slot.prune(), SlotEmpty),
    (Stage.FOSSILIZED, lambda slot: slot.prune(), FossilPruned),
    (Stage.FOSSILIZED, lambda slot: slot.prune(0), FossilPruned),
    (Stage.EMBARGOED, lambda slot: slot.prune(), IllegalTransition),
    (Stage.TRAINING, lambda slot: slot.load_lifecycle_state({}), BadState),
]


@pytest.mark.parametrize(("stage", "step", "error"), REFUSALS)
def test_a_refused_step_changes_nothing(
    stage: Stage, step: Callable[[SeedSlot], object], error: type[EsperError]
) -> None:
    slot = slot_in(stage)
    before, rng = everything(slot), torch.get_rng_state()
    with pytest.raises(error):
        step(slot)
    assert everything(slot) == before
    assert torch.equal(torch.get_rng_state(), rng)


class _Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=1, keepdim=True)  # would broadcast


class _LaterSum(nn.Module):
    """Keeps the shape until it has been taken in."""

    changed = False

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=1, keepdim=True) if self.changed else x


@pytest.mark.parametrize(
    ("seed", "error"),
    [
        (_Sum(), ShapeMismatch),
        (build("cnn", "conv_light", 8, torch.Generator()), SeedRefused),
        (build("cnn", "attention", 8, torch.Generator()), SeedRefused),
        (build("transformer", "mlp", 4, torch.Generator()), SeedRefused),
    ],
)
def test_a_seed_that_was_made_for_other_features_is_not_taken_in(
    seed: nn.Module, error: type[EsperError]
) -> None:
    slot = slot_in(Stage.DORMANT)
    before = everything(slot)
    with pytest.raises(error, match=r"slot 'r0c0': .*\(2, 4, 5, 3\)"):
        slot.commit("it", seed)
    assert everything(slot) == before


def test_a_seed_that_changes_the_shape_later_is_named() -> None:
    slot, seed = slot_in(Stage.DORMANT), _LaterSum()
    slot.commit("sum", seed)
    slot.advance()
    seed.changed = True
    with pytest.raises(ShapeMismatch, match=r"slot 'r0c0': output shape \(2, 1, 8, 8\)"):
        slot(H)


def test_only_the_first_seed_of_a_blueprint_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(build("cnn", "norm", 4, torch.Generator()))
    forward, runs = kind.forward, list[torch.Size]()

    def counted(seed: nn.Module, x: Tensor) -> object:
        runs.append(x.shape)
        return forward(seed, x)

    monkeypatch.setattr(kind, "forward", counted)
    slot = slot_in(Stage.DORMANT)
    for _ in range(2):
        slot.commit("norm", slot.prepare("norm", torch.Generator()))
        assert len(runs) == len(TOPOLOGIES["cnn"].probes)
        slot.prune(0)
        while slot.stage is not Stage.DORMANT:
            slot.tick()


def test_features_of_another_dtype_are_tried_out_anew() -> None:
    slot, seed = slot_in(Stage.DORMANT), build("cnn", "conv_light", 4, torch.Generator())
    slot.show_alpha_in(torch.zeros((), dtype=torch.float64))
    with pytest.raises(SeedRefused, match="expected scalar type Double"):
        slot.commit("conv_light", seed)


@pytest.mark.parametrize("stage", Stage)
def test_saved_and_loaded_it_is_the_same_slot(stage: Stage) -> None:
    slot = slot_in(stage)
    other = SeedSlot("r0c0", 4, "cnn", CONFIG)
    other.load_lifecycle_state(slot.lifecycle_state())
    other.load_state_dict(slot.state_dict())
    assert other.record() == slot.record()
    assert torch.equal(other(H), slot(H))
    assert everything(other)[3:] == everything(slot)[3:]


def test_loading_draws_nothing() -> None:
    saved, rng = slot_in(Stage.HOLDING).lifecycle_state(), torch.get_rng_state()
    SeedSlot("r0c0", 4, "cnn", CONFIG).load_lifecycle_state(saved)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"slot_id": "r0c1"}, BadState),
        ({"blend": "mix"}, BadState),
        ({"blueprint": "lora"}, UnknownBlueprint),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(
    change: dict[str, Any], error: type[EsperError]
) -> None:
    saved = {**slot_in(Stage.HOLDING).lifecycle_state(), **change}
    slot = slot_in(Stage.TRAINING)
    before = everything(slot)
    with pytest.raises(error):
        slot.load_lifecycle_state(saved)
    assert everything(slot) == before


def test_a_slot_can_be_used_again_after_its_cooldown() -> None:
    slot = slot_in(Stage.RESETTING)
    slot.tick()
    germinate(slot, "norm")
    assert (slot.record().blueprint, slot.record().birth) == ("norm", 2)


def test_it_says_where_it_is() -> None:
    assert repr(slot_in(Stage.DORMANT)) == "SeedSlot('r0c0', channels=4, stage=DORMANT)"
