"""What was done and what came of it: episodes, and several of them as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from esper.control.ppo.gae import advantages_of
from esper.control.ppo.policy import MaskTensors
from esper.control.ppo.space import Choice, Masks


@dataclass
class Episode:
    """One episode, a step at a time. A step's reward comes after it, so the last one may lack it."""

    observations: list[tuple[float, ...]] = field(default_factory=list)  # as the policy read them
    masks: list[Masks] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    log_probs: list[tuple[float, ...]] = field(default_factory=list)  # one a head
    values: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    bootstrap: float = 0.0  # V of the state after the last step; 0: the episode has terminated


class Batch(NamedTuple):
    """N episodes of at most T steps; shorter ones are padded at their ends."""

    observations: Tensor  # (T, N, observation)
    masks: MaskTensors
    choices: Tensor  # int64 (T, N, heads)
    log_probs: Tensor  # (T, N, heads)
    advantages: Tensor  # (T, N)
    returns: Tensor  # (T, N)
    counts: Tensor  # bool (T, N): False for what is padding

    def of(self, episodes: slice) -> Batch:
        """The batch of some of its episodes."""
        masks = MaskTensors(*(mask[:, episodes] for mask in self.masks))
        rest = {name: getattr(self, name)[:, episodes] for name in self._fields if name != "masks"}
        return Batch(masks=masks, **rest)


def batch_of(episodes: Sequence[Episode], *, gamma: float, lam: float) -> Batch:
    """The batch of episodes of at least one step each. Raises ValueError where a step has no reward."""
    length = max(len(episode.rewards) for episode in episodes)
    columns = []
    for episode in episodes:
        found = advantages_of(episode.rewards, episode.values, episode.bootstrap, gamma=gamma, lam=lam)
        returns = [one + value for one, value in zip(found, episode.values, strict=True)]
        steps = len(found)
        # Padding repeats the last step: its masks permit what was chosen, and it counts for nothing.
        index = [min(step, steps - 1) for step in range(length)]
        masks = MaskTensors.of([episode.masks[step] for step in index])
        columns.append(
            (
                torch.tensor([episode.observations[step] for step in index]),
                *masks,
                torch.tensor([episode.choices[step] for step in index]),
                torch.tensor([episode.log_probs[step] for step in index]),
                torch.tensor([found[step] for step in index]),
                torch.tensor([returns[step] for step in index]),
                torch.tensor([step < steps for step in range(length)]),
            )
        )
    observations, op, slot, target, *rest = (
        torch.stack(column, dim=1) for column in zip(*columns, strict=True)
    )
    return Batch(observations, MaskTensors(op, slot, target), *rest)
