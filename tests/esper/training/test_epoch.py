"""Steps, evaluation and measurement by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from esper.lifecycle import GradientTrend, SlotConfig, Stage
from esper.model import GptHost, GrownModel, gradient_stats
from esper.training.epoch import GradientWatch, counting_slots, evaluate_on, measure_slots, train_on
from tests.esper.model.growing import backward, batch, bring, model


def test_watching_gradients_waits_for_no_device() -> None:
    """On the meta device there are no numbers, so reading one raises."""
    grown = model()
    bring(grown.slots["r0c0"], Stage.TRAINING)
    grown.to("meta")
    watch = GradientWatch(grown, clip=5.0)
    inputs = batch()[0].to("meta")
    for _ in range(2):
        torch.autograd.backward(grown(inputs).sum())
        watch()
    with pytest.raises(NotImplementedError, match="meta"):
        watch.trends()


def test_the_trend_is_that_of_the_readings_one_by_one() -> None:
    grown = model()
    bring(grown.slots["r0c0"], Stage.TRAINING)
    bring(grown.slots["r0c1"], Stage.BLENDING)
    watch, expected = GradientWatch(grown, clip=5.0), dict.fromkeys(grown.slot_ids, GradientTrend())
    optimiser = torch.optim.SGD(grown.parameters(), lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        backward(grown)
        watch()
        for slot_id in grown.slot_ids:
            stats = gradient_stats(grown, slot_id)
            assert stats is not None
            expected[slot_id] = expected[slot_id].updated(stats, 5.0)
        optimiser.step()
    assert watch.trends() == expected
    assert len({trend.ratio for trend in expected.values()}) == 2


@pytest.mark.parametrize("stage", [Stage.DORMANT, Stage.GERMINATED, Stage.FOSSILIZED, Stage.PRUNED])
def test_seeds_that_no_gate_asks_about_are_not_watched(stage: Stage) -> None:
    grown = model()
    bring(grown.slots["r0c0"], stage)
    watch = GradientWatch(grown, clip=5.0)
    backward(grown)
    watch()
    assert watch.trends() == {}


def test_there_is_one_backward_pass_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    grown, passes = model(), []
    bring(grown.slots["r0c0"], Stage.TRAINING)
    original = torch.autograd.backward

    def counted(loss: Tensor) -> None:
        passes.append(1)
        original(loss)

    monkeypatch.setattr(torch.autograd, "backward", counted)
    optimiser = torch.optim.SGD(grown.parameters(), lr=0.1)
    train_on(grown, [batch()] * 3, optimiser, clip=5.0, after_backward=GradientWatch(grown, 5.0))
    assert len(passes) == 3


def test_contributions_are_those_of_leaving_each_slot_out() -> None:
    grown = model(SlotConfig(tempo=4)).eval()
    for slot_id, blueprint in (("r0c0", "conv_heavy"), ("r0c1", "norm")):
        bring(grown.slots[slot_id], Stage.HOLDING, blueprint)
    x, y = batch()
    counting = counting_slots(grown.records())
    assert counting == ("r0c0", "r0c1")
    whole, *without = evaluate_on(grown, [(x, y)] * 2, [{}, *({slot_id: 0.0} for slot_id in counting)])
    assert whole.samples == 32
    with torch.no_grad():
        for slot_id, sums in zip(counting, without, strict=True):
            logits = grown(x, alpha_overrides={slot_id: 0.0})
            assert sums.correct == 2 * int((logits.argmax(dim=1) == y).sum())
    accuracies = {slot_id: sums.accuracy for slot_id, sums in zip(counting, without, strict=True)}
    measured = measure_slots(grown.records(), {}, accuracies, whole.accuracy)
    assert [each.contribution for each in measured] == [whole.accuracy - sums.accuracy for sums in without]


@pytest.mark.parametrize("stage", [Stage.DORMANT, Stage.TRAINING, Stage.FOSSILIZED])
def test_others_contribute_nothing_to_ask_for(stage: Stage) -> None:
    grown = model()
    bring(grown.slots["r0c0"], stage)
    assert counting_slots(grown.records()) == ()
    assert measure_slots(grown.records(), {}, {}, 50.0)[0].contribution is None


def test_a_seed_on_its_way_out_is_not_measured() -> None:
    grown = model()
    bring(grown.slots["r0c0"], Stage.HOLDING)
    grown.slots["r0c0"].prune()
    assert counting_slots(grown.records()) == ()


def test_text_is_trained_and_counted_by_the_token() -> None:
    torch.manual_seed(0)
    text = GrownModel(GptHost(vocabulary=5, context=6, width=8, heads=2))
    tokens: Tensor = torch.arange(12).view(2, 6) % 5
    targets = (tokens + 1) % 5
    optimiser = torch.optim.Adam(text.parameters(), lr=0.05)
    sums, steps = train_on(text, [(tokens, targets)] * 30, optimiser, clip=5.0, after_backward=lambda: None)
    assert (sums.samples, steps) == (360, 30)
    (after,) = evaluate_on(text, [(tokens, targets)])
    assert after.accuracy == 100.0
    assert after.loss < 0.2 < sums.loss


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(clip: float) -> None:
    grown, other = model(), model()
    x, y = batch()
    train_on(
        grown, [(x, y)], torch.optim.SGD(grown.parameters(), lr=1.0), clip=clip, after_backward=lambda: None
    )
    other.train()
    torch.autograd.backward(torch.nn.functional.cross_entropy(other(x), y))
    whole = torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
    assert (whole > clip) == (clip < 1e6)
    torch.optim.SGD(other.parameters(), lr=1.0).step()
    for one, expected in zip(grown.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, expected)
