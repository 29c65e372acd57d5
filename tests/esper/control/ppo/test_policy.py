"""Probabilities of actions, against all actions counted out one by one."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from esper.control.ppo import Choice, Masks, Op, PpoConfig
from esper.control.ppo.policy import Logits, MaskTensors, choose, entropy, log_probs
from esper.control.ppo.space import HEADS
from tests.esper.control.ppo.worlds import OBSERVED, SPACE, fresh

WIDTHS = {
    "op": len(Op), "slot": len(SPACE.slots), "blueprint": len(SPACE.blueprints), "blend": len(SPACE.blends),
    "target": len(SPACE.targets), "tempo": len(SPACE.tempos),
}  # fmt: skip
# WAIT; GERMINATE in the first and last; SET_ALPHA in the middle, to the second target; nothing else.
MASKS = Masks(
    op=(True, True, False, True, False, False),
    slot=tuple(
        {Op.GERMINATE: (True, False, True), Op.SET_ALPHA: (False, True, False)}.get(op, (False,) * 3)
        for op in Op
    ),
    target=((True, True), (False, True), (True, True)),
)


def drawn_logits(seed: int) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(WIDTHS["op"],), (WIDTHS["op"], WIDTHS["slot"])] + [
        (WIDTHS[head],) for head in ("blueprint", "blend", "target", "tempo")
    ]
    return Logits(*(torch.randn(1, *shape, generator=generator, dtype=torch.float64) for shape in shapes))


def actions(masks: Masks) -> list[Choice]:
    """Every action there is, once."""
    found = []
    for op in Op:
        if not masks.op[op]:
            continue
        heads = [range(WIDTHS[head]) if head in HEADS[op] else range(1) for head in Choice._fields[1:]]
        for rest in product(*heads):
            choice = Choice(op, *rest)
            slot_open = op is Op.WAIT or masks.slot[op][choice.slot]
            if slot_open and (op is not Op.SET_ALPHA or masks.target[choice.slot][choice.target]):
                found.append(choice)
    return found


def reference(logits: Logits, masks: Masks, choice: Choice) -> float:
    """log P of an action, written down without tensors."""

    def log_p(scores: list[float], permitted: tuple[bool, ...], index: int) -> float:
        whole = math.fsum(math.exp(s) for s, open_ in zip(scores, permitted, strict=True) if open_)
        return scores[index] - math.log(whole)

    everything = {head: (True,) * width for head, width in WIDTHS.items()}
    heads = {head: getattr(logits, head)[0].tolist() for head in WIDTHS}
    found = log_p(heads["op"], masks.op, choice.op)
    for head in HEADS[Op(choice.op)]:
        if head == "slot":
            found += log_p(heads["slot"][choice.op], masks.slot[choice.op], choice.slot)
        elif head == "target":
            found += log_p(heads["target"], masks.target[choice.slot], choice.target)
        else:
            found += log_p(heads[head], everything[head], getattr(choice, head))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_action_has_the_probability_that_its_heads_give_it(seed: int) -> None:
    logits, tensors = drawn_logits(seed), MaskTensors.of([MASKS])
    expected = {choice: reference(logits, MASKS, choice) for choice in actions(MASKS)}
    assert math.fsum(map(math.exp, expected.values())) == pytest.approx(1.0)
    for choice, value in expected.items():
        heads = log_probs(logits, tensors, torch.tensor([choice]))[0]
        assert float(heads.sum()) == pytest.approx(value)
        foreign = [head not in (*HEADS[Op(choice.op)], "op") for head in Choice._fields]
        assert not heads[torch.tensor(foreign)].any()


@pytest.mark.parametrize("seed", range(5))
def test_entropy_is_that_of_the_action(seed: int) -> None:
    logits = drawn_logits(seed)
    logs = [reference(logits, MASKS, choice) for choice in actions(MASKS)]
    expected = -math.fsum(math.exp(one) * one for one in logs)
    assert float(entropy(logits, MaskTensors.of([MASKS]))[0]) == pytest.approx(expected)


def test_what_is_masked_is_never_chosen_and_the_rest_as_often_as_it_is_likely() -> None:
    draws, logits = 20000, drawn_logits(7)
    many = Logits(*(head.expand(draws, *head.shape[1:]) for head in logits))
    tensors = MaskTensors(*(mask.expand(draws, *mask.shape[1:]) for mask in MaskTensors.of([MASKS])))
    chosen = choose(many, tensors, torch.Generator().manual_seed(0)).tolist()
    counts = dict.fromkeys(actions(MASKS), 0)
    for one in chosen:
        counts[Choice(*one)] += 1  # KeyError: it may not be chosen
    for choice, count in counts.items():
        p = math.exp(reference(logits, MASKS, choice))
        assert count == pytest.approx(draws * p, abs=5.0 * math.sqrt(draws * p * (1.0 - p)) + 1.0)


def test_without_a_generator_the_likeliest_of_each_head_is_chosen() -> None:
    logits = drawn_logits(3)
    logits.op[0, Op.ADVANCE] = 50.0  # masked
    logits.op[0, Op.GERMINATE] = 40.0
    logits.slot[0, Op.GERMINATE] = torch.tensor([1.0, 9.0, 2.0])  # the best is masked
    choice = Choice(*choose(logits, MaskTensors.of([MASKS]), None)[0].tolist())
    assert (choice.op, choice.slot) == (Op.GERMINATE, 2)
    assert choice.blueprint == int(logits.blueprint[0].argmax())
    assert choice.target == choice.tempo == 0


def test_gradients_of_masked_choices_are_zero_and_none_is_nan() -> None:
    logits = Logits(*(head.requires_grad_() for head in drawn_logits(1)))
    tensors = MaskTensors.of([MASKS])
    choice = torch.tensor([actions(MASKS)[1]])
    torch.autograd.backward(log_probs(logits, tensors, choice).sum() + entropy(logits, tensors).sum())
    for head in logits:
        assert head.grad is None or head.grad.isfinite().all()
    assert logits.op.grad is not None
    assert not logits.op.grad[0, ~torch.tensor(MASKS.op)].any()


def test_the_policy_is_the_same_in_steps_and_at_once_and_follows_from_its_seed() -> None:
    policy, other = fresh(PpoConfig(), seed=3), fresh(PpoConfig(), seed=3)
    observations = torch.randn(6, 2, OBSERVED)
    at_once, values, _ = policy(observations)
    state = None
    for step in range(6):
        logits, value, state = other(observations[step : step + 1], state)
        torch.testing.assert_close(value[0], values[step])
        for one, both in zip(logits, at_once, strict=True):
            torch.testing.assert_close(one[0], both[step])


def test_a_policy_remembers_what_it_has_seen() -> None:
    policy = fresh(PpoConfig(), seed=3)
    one, other = torch.zeros(3, 1, OBSERVED), torch.zeros(3, 1, OBSERVED)
    other[0] = 1.0
    assert not torch.equal(policy(one)[1][2], policy(other)[1][2])
