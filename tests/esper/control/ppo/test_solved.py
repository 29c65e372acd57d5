"""Worlds whose optimum is known are learned to within two percent of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from esper.control.ppo import Choice, Op, PpoConfig
from esper.control.ppo.episode import Episode
from esper.control.ppo.policy import Logits, MaskTensors, Policy, log_probs
from tests.esper.control.ppo.worlds import SPACE, fresh, hint, learn, masks, play

CONFIG = PpoConfig(environments=96, hidden=32, lr=3e-3, minibatches=4, target_kl=0.05, gamma=1.0, lam=0.95)
WORTH = (0.2, 0.5, 1.0)  # of germinating in each slot


def probability(logits: Logits, step: int, number: int, op: Op, slot: int, ops: Sequence[Op]) -> float:
    """Of this operation in this slot, whatever else is chosen with it."""
    one = Logits(*(head[step, number][None] for head in logits))
    heads = log_probs(one, MaskTensors.of([masks(*ops)]), torch.tensor([Choice(op, slot)]))[0]
    return float((heads[0] + heads[1]).exp())


@torch.no_grad()
def test_a_bandit_over_slots() -> None:
    ops = (Op.WAIT, Op.GERMINATE)

    def reward(number: int, choices: Sequence[Choice]) -> float:
        (choice,) = choices
        return WORTH[choice.slot] if choice.op == Op.GERMINATE else 0.0

    def rollout(policy: Policy, generator: torch.Generator) -> list[Episode]:
        return play(policy, [[hint(None)] * CONFIG.environments], masks(*ops), reward, generator)

    policy = fresh(CONFIG)

    def worth() -> float:
        logits, _, _ = policy(torch.tensor([[hint(None)]]))
        chances = (probability(logits, 0, 0, Op.GERMINATE, slot, ops) for slot in range(3))
        return sum(p * w for p, w in zip(chances, WORTH, strict=True))

    assert worth() < 0.5
    with torch.enable_grad():
        told = learn(policy, CONFIG, rollout, updates=25)
    assert worth() > 0.98 * max(WORTH)
    assert told[-1].entropy < told[0].entropy


CHAIN = (Op.GERMINATE, Op.ADVANCE, Op.FOSSILIZE)


@torch.no_grad()
def test_a_chain_of_three_steps_of_which_only_the_first_says_in_which_slot() -> None:
    ops = (Op.WAIT, *CHAIN)
    slots = range(len(SPACE.slots))
    views = [[hint(slot), hint(None), hint(None)] for slot in slots]

    def reward(number: int, choices: Sequence[Choice]) -> float:
        slot = number % len(slots)
        right = [(one.op, one.slot) == (op, slot) for one, op in zip(choices, CHAIN, strict=False)]
        return 1.0 / 3.0 if all(right) else 0.0

    def rollout(policy: Policy, generator: torch.Generator) -> list[Episode]:
        shown = [hint(number % len(slots)) for number in range(CONFIG.environments)]
        blank = [hint(None)] * CONFIG.environments
        return play(policy, [shown, blank, blank], masks(*ops), reward, generator)

    policy = fresh(CONFIG)

    def worth() -> float:
        logits, _, _ = policy(torch.tensor(views).transpose(0, 1))
        found = 0.0
        for slot in slots:
            chance = 1.0
            for step, op in enumerate(CHAIN):
                chance *= probability(logits, step, slot, op, slot, ops)
                found += chance / 3.0 / len(slots)
        return found

    assert worth() < 0.2
    with torch.enable_grad():
        learn(policy, CONFIG, rollout, updates=50)
    assert worth() > 0.98
