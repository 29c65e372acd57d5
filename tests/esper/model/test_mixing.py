"""Every way of mixing a seed in, on slots of both topologies."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper.errors import AlphaNotHolding, ConfigError, FeatureMismatch, ForcedAlpha
from esper.lifecycle import Blend, SlotConfig, Stage, in_forward
from esper.model import GptHost, GrownModel, SeedSlot, build
from esper.model.gate import GatedSeed
from tests.esper.model.growing import backward, bring, germinate, model

SHAPES = {"cnn": (2, 4, 8, 8), "transformer": (2, 6, 4)}
BLUEPRINTS = {"cnn": "conv_light", "transformer": "mlp"}
FORWARD = [stage for stage in Stage if in_forward(stage)]


def config(blend: Blend) -> SlotConfig:
    return SlotConfig(blend=blend, tempo=4)


def slot_in(stage: Stage, blend: Blend, topology: str = "cnn") -> SeedSlot:
    slot = SeedSlot("r0c0", 4, topology, config(blend))
    bring(slot, stage, BLUEPRINTS[topology])
    return slot


def features(topology: str) -> Tensor:
    return torch.randn(SHAPES[topology], generator=torch.Generator().manual_seed(0)) * 10


@pytest.mark.parametrize("blend", Blend)
@pytest.mark.parametrize("topology", SHAPES)
@pytest.mark.parametrize("stage", FORWARD)
def test_at_alpha_0_the_features_are_the_hosts(stage: Stage, topology: str, blend: Blend) -> None:
    slot, h = slot_in(stage, blend, topology), features(topology)
    assert torch.equal(slot(h, torch.tensor(0.0)), h)
    assert not torch.equal(slot(h, torch.tensor(0.5)), h)


@pytest.mark.parametrize("blend", Blend)
@pytest.mark.parametrize("topology", SHAPES)
def test_in_training_the_host_is_as_without_a_seed_and_the_seed_learns(topology: str, blend: Blend) -> None:
    slot, h = slot_in(Stage.TRAINING, blend, topology), features(topology).requires_grad_()
    output = slot(h)
    assert torch.equal(output, h)
    (to_host,) = torch.autograd.grad((output**2).sum(), h, retain_graph=True)
    assert torch.equal(to_host, 2 * h)
    learning = [parameter for parameter in slot.parameters() if parameter.requires_grad]
    assert len(learning) == len(
        list(build(topology, BLUEPRINTS[topology], 4, torch.Generator()).parameters())
    )
    assert all(each.norm() > 0 for each in torch.autograd.grad((output**2).sum(), learning))


@pytest.mark.parametrize("blend", Blend)
def test_a_whole_model_keeps_its_hosts_output_and_gradients_with_a_seed_in_training(blend: Blend) -> None:
    plain, grown = model(), model(config(blend))
    bring(grown.slots["r0c0"], Stage.TRAINING)
    assert torch.equal(backward(grown), backward(plain))
    for one, other in zip(grown.host.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("blend", Blend)
def test_a_pruned_slot_is_as_if_there_had_never_been_a_seed(blend: Blend) -> None:
    plain, grown = model(), model(config(blend))
    bring(grown.slots["r0c0"], Stage.HOLDING)
    grown.slots["r0c0"].prune(0)
    assert grown.fingerprint() == plain.fingerprint()
    assert torch.equal(backward(grown), backward(plain))


def test_multiply_weighs_the_host_by_what_the_seed_changes() -> None:
    slot, h = slot_in(Stage.BLENDING, Blend.MULTIPLY), features("cnn")
    assert slot.seed is not None
    torch.testing.assert_close(slot(h), h * (1 + 0.25 * torch.tanh(slot.seed(h) - h)))


def test_a_gate_lets_in_as_much_as_it_says_and_learns_with_the_seed() -> None:
    slot, h = slot_in(Stage.HOLDING, Blend.GATE), features("cnn")
    assert isinstance(slot.seed, GatedSeed)
    share = slot.seed.gate(h)
    assert share.shape == (2, 1, 1, 1)
    assert torch.equal(slot(h), torch.lerp(h, slot.seed.body(h), share))
    assert all(
        each.norm() > 0 for each in torch.autograd.grad(slot(h).sum(), list(slot.seed.gate.parameters()))
    )


def test_a_gate_learns_only_where_it_is_part_of_the_output() -> None:
    trainable = {}
    for stage in Stage:
        slot = slot_in(stage, Blend.GATE)
        if isinstance(slot.seed, GatedSeed):
            trainable[stage] = {parameter.requires_grad for parameter in slot.seed.gate.parameters()}
    mixing = {Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED}
    assert trainable == {
        stage: {stage in mixing} for stage in (Stage.GERMINATED, Stage.TRAINING, *sorted(mixing))
    }


def test_a_gate_is_born_from_the_generator_and_saved_with_its_slot() -> None:
    one, other = (slot_in(Stage.HOLDING, Blend.GATE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    fresh = SeedSlot("r0c0", 4, "cnn", config(Blend.GATE))
    fresh.load_lifecycle_state(one.lifecycle_state())
    fresh.load_state_dict(one.state_dict())
    assert torch.equal(fresh(features("cnn")), one(features("cnn")))


def test_a_gate_for_text_does_not_look_ahead() -> None:
    slot, h = slot_in(Stage.BLENDING, Blend.GATE, "transformer"), features("transformer")
    changed = h.clone()
    changed[:, 3:] += 1.0
    assert torch.equal(slot(h)[:, :3], slot(changed)[:, :3])
    assert not torch.equal(slot(h)[:, 3:], slot(changed)[:, 3:])


def test_a_slot_with_a_gate_takes_no_seed_without_one() -> None:
    slot = SeedSlot("r0c0", 4, "cnn", config(Blend.GATE))
    with pytest.raises(ConfigError, match="seed='Identity'"):
        slot.commit("norm", nn.Identity())
    assert slot.stage is Stage.DORMANT


def test_a_slot_without_a_gate_takes_no_seed_with_one() -> None:
    slot = SeedSlot("r0c0", 4, "cnn", config(Blend.GATE))
    seed = slot.prepare("norm", torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="a seed without a gate, since it is mixed by multiply"):
        slot.commit("norm", seed, Blend.MULTIPLY)
    assert slot.stage is Stage.DORMANT


@pytest.mark.parametrize("stage", FORWARD)
@pytest.mark.parametrize("chosen", Blend)
@pytest.mark.parametrize("usual", Blend)
def test_a_seed_whose_blend_was_chosen_is_as_in_a_slot_that_always_mixes_so(
    usual: Blend, chosen: Blend, stage: Stage
) -> None:
    slot, like = SeedSlot("r0c0", 4, "cnn", config(usual)), slot_in(stage, chosen)
    bring(slot, stage, blend=chosen)
    h, half = features("cnn"), torch.tensor(0.5)
    assert slot.record() == like.record()
    assert slot.configuration() == like.configuration()
    assert torch.equal(slot(h), like(h))
    assert torch.equal(slot(h, half), like(h, half))
    assert [each.requires_grad for each in slot.parameters()] == [
        each.requires_grad for each in like.parameters()
    ]
    again = SeedSlot("r0c0", 4, "cnn", config(usual))
    again.load_lifecycle_state(slot.lifecycle_state())
    again.load_state_dict(slot.state_dict())
    assert again.record() == slot.record()
    assert torch.equal(again(h), slot(h))
    assert torch.equal(again(h, half), slot(h, half))


def test_each_seed_of_a_slot_has_a_blend_of_its_own() -> None:
    slot, h, seen = SeedSlot("r0c0", 4, "cnn", config(Blend.ADD)), features("cnn"), list[Tensor]()
    for blend in (*Blend, None):
        bring(slot, Stage.HOLDING, blend=blend)
        seen.append(slot(h))
        slot.prune(0)
        while slot.stage is not Stage.DORMANT:
            slot.tick()
    added, multiplied, gated, usual = seen
    assert torch.equal(added, usual)
    assert not torch.equal(added, multiplied)
    assert not torch.equal(added, gated)


def test_what_is_compiled_depends_on_how_a_seed_is_mixed_once_it_is() -> None:
    ways = {}
    for blend in Blend:
        slot = SeedSlot("r0c0", 4, "cnn", config(Blend.ADD))
        germinate(slot, blend=blend)
        configurations = []
        for _ in range(2):
            slot.advance()
            configurations.append(slot.configuration())
        ways[blend] = tuple(configurations)
    assert len({training for training, _ in ways.values()}) == 1
    assert len({blending for _, blending in ways.values()}) == 3


@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (2, 4, 8), (4, 8, 8)])
def test_features_that_a_slot_was_not_made_for_are_refused(shape: tuple[int, ...]) -> None:
    slot = slot_in(Stage.BLENDING, Blend.ADD)
    with pytest.raises(FeatureMismatch) as caught:
        slot(torch.zeros(shape))
    assert (caught.value.channels, caught.value.got) == (4, shape)


def test_an_unknown_topology_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of cnn, transformer"):
        SeedSlot("r0c0", 4, "graph", SlotConfig())

    class Graph(GptHost):
        topology = "graph"

    with pytest.raises(ConfigError, match=r"model\.host\.topology='graph'"):
        GrownModel(Graph())


def test_alpha_can_be_sent_elsewhere_from_holding_and_the_seed_rests_on_the_way_down() -> None:
    slot = slot_in(Stage.HOLDING, Blend.ADD)
    slot.retarget(0.5, 2)
    assert slot.record().stage == Stage.BLENDING
    assert not any(parameter.requires_grad for parameter in slot.seed_parameters())
    with pytest.raises(AlphaNotHolding):
        slot.retarget(0.7)
    slot.tick()
    assert not any(parameter.requires_grad for parameter in slot.seed_parameters())
    slot.tick()
    assert (slot.record().alpha, slot.stage) == (0.5, Stage.BLENDING)
    assert all(parameter.requires_grad for parameter in slot.seed_parameters())
    slot.retarget(1.0)
    slot.tick()
    assert slot.record().alpha == 0.625


@pytest.mark.parametrize("owner", [lambda grown: grown, lambda grown: grown.slots["r0c0"]])
def test_there_is_no_mutating_way_to_set_alpha(owner: Callable[[GrownModel], GrownModel | SeedSlot]) -> None:
    grown = model()
    germinate(grown.slots["r0c0"])
    with pytest.raises(ForcedAlpha, match=r"use model\(x, alpha_overrides=") as caught:
        owner(grown).force_alpha(0.0)
    assert "alpha_overrides" in caught.value.replacement


@pytest.mark.parametrize("stages", [(Stage.BLENDING, Stage.DORMANT), (Stage.HOLDING, Stage.PRUNED)])
def test_ticks_of_the_model_are_those_of_its_slots(stages: tuple[Stage, Stage]) -> None:
    one, other = model(), model()
    for grown in (one, other):
        for slot_id, stage in zip(grown.slot_ids, stages, strict=True):
            bring(grown.slots[slot_id], stage)
        if grown.slots["r0c1"].stage is Stage.PRUNED:
            grown.slots["r0c0"].prune()
    for _ in range(12):
        one.tick()
        for slot_id in other.slot_ids:
            other.slots[slot_id].tick()
        assert one.records() == other.records()
        assert torch.equal(one.alphas, other.alphas)
        assert one.alphas.tolist() == [record.alpha for record in one.records()]
