"""Worlds so small that what is best, and what a policy is worth, can be counted out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from esper.control.ppo import ActionSpace, Choice, Masks, Op, PpoConfig
from esper.control.ppo.episode import Episode, batch_of
from esper.control.ppo.policy import Logits, MaskTensors, Policy, Sizes, choose, log_probs
from esper.control.ppo.update import Update, update
from esper.lifecycle.config import Blend

SPACE = ActionSpace(
    slots=("r0c0", "r0c1", "r0c2"),
    blueprints=("norm", "conv_light"),
    blends=(Blend.ADD, Blend.GATE),
    targets=(0.5, 1.0),
    tempos=(3, 5),
)
OBSERVED = len(SPACE.slots)


def masks(*ops: Op) -> Masks:
    """Every choice of these operations, and no other."""
    permitted = tuple(op in ops for op in Op)
    slots = tuple(tuple(op in ops and op is not Op.WAIT for _ in SPACE.slots) for op in Op)
    return Masks(permitted, slots, tuple(tuple(True for _ in SPACE.targets) for _ in SPACE.slots))


def fresh(config: PpoConfig, seed: int = 0) -> Policy:
    return Policy(Sizes.of(OBSERVED, SPACE), config.hidden, seed)


def optimizer_of(policy: Policy, config: PpoConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(policy.parameters(), lr=config.lr, eps=1e-5)


def hint(slot: int | None) -> tuple[float, ...]:
    """An observation that says which slot is meant, or nothing."""
    return tuple(float(place == slot) for place in range(OBSERVED))


Reward = Callable[[int, Sequence[Choice]], float]


@torch.no_grad()
def play(
    policy: Policy,
    observations: Sequence[Sequence[tuple[float, ...]]],
    allowed: Masks,
    reward: Reward,
    generator: torch.Generator,
) -> list[Episode]:
    """As many episodes at once as each step has observations; `reward` is told an episode's number and its
    choices so far, and says what the last was worth.
    """
    episodes, state = [Episode() for _ in observations[0]], None
    tensors = MaskTensors.of([allowed] * len(episodes))
    for seen in observations:
        logits, values, state = policy(torch.tensor([seen]), state)
        now = Logits(*(head[0] for head in logits))
        chosen = choose(now, tensors, generator)
        likely = log_probs(now, tensors, chosen)
        for number, episode in enumerate(episodes):
            episode.observations.append(seen[number])
            episode.masks.append(allowed)
            episode.choices.append(Choice(*chosen[number].tolist()))
            episode.log_probs.append(tuple(likely[number].tolist()))
            episode.values.append(float(values[0, number]))
            episode.rewards.append(reward(number, episode.choices))
    return episodes


def learn(
    policy: Policy,
    config: PpoConfig,
    rollout: Callable[[Policy, torch.Generator], list[Episode]],
    *,
    updates: int,
) -> list[Update]:
    """So many rollouts and updates."""
    optimizer, generator = optimizer_of(policy, config), torch.Generator().manual_seed(1)
    told = []
    for _ in range(updates):
        batch = batch_of(rollout(policy, generator), gamma=config.gamma, lam=config.lam)
        told.append(update(policy, optimizer, batch, config))
    return told
