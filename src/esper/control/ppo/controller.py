"""The policy as a controller of one run: it observes, chooses, and remembers what came of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from esper.bits import bits_of
from esper.control.actions import Decision
from esper.control.ppo.config import PpoConfig
from esper.control.ppo.episode import Episode
from esper.control.ppo.observe import observation_size, observe
from esper.control.ppo.policy import MaskTensors, Policy, Sizes, choose, log_probs
from esper.control.ppo.reward import Rewards
from esper.control.ppo.space import ActionSpace, Choice
from esper.control.ppo.statistics import RunningStatistics
from esper.control.signals import EpochSignals
from esper.errors import BadState
from esper.lifecycle.gates import GateConfig


@dataclass(frozen=True)
class Learned:
    """What is learned: the policy, and the statistics by which its observations are scaled."""

    space: ActionSpace
    policy: Policy
    statistics: RunningStatistics

    @classmethod
    def fresh(cls, space: ActionSpace, config: PpoConfig, seed: int) -> Learned:
        """One that has learned nothing, the same in every process."""
        size = observation_size(space)
        policy = Policy(Sizes.of(size, space), config.hidden, seed)
        return cls(space, policy, RunningStatistics(size))

    def digest(self) -> str:
        """Of all that decisions follow from; the same in every process."""
        digest = hashlib.blake2b(repr(self.space).encode(), digest_size=8)
        for module in (self.policy, self.statistics):
            for values in module.state_dict().values():
                digest.update(bits_of(values))
        return digest.hexdigest()


@dataclass
class PpoController:
    """Decides by a policy from agreed numbers and agreed random bits, so every rank decides the same.

    `epochs` is the run's length; the last epoch is followed by none, so nothing is done there. `greedy`: the
    likeliest action instead of a drawn one.
    """

    learned: Learned
    config: PpoConfig
    gates: GateConfig
    epochs: int
    costs: Mapping[tuple[str, str], float] = field(default_factory=dict)  # see `Rewards`
    greedy: bool = False
    episode: Episode = field(default_factory=Episode, init=False)
    observed: list[tuple[float, ...]] = field(default_factory=list, init=False)  # before they were scaled
    _state: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.rewards = Rewards(self.config.reward, self.config.gamma, self.costs)

    @torch.no_grad()
    def decide(self, signals: EpochSignals) -> Decision:
        """What to do after this epoch. Call it once an epoch."""
        reward = self.rewards.of(signals)
        if self.episode.choices:
            self.episode.rewards.append(reward)
        observed = observe(signals, self.learned.space, self.gates, epochs=self.epochs)
        observation = self.learned.statistics.normalise(observed)
        logits, value, self._state = self.learned.policy(torch.tensor([[observation]]), self._state)
        if signals.epoch >= self.epochs:
            self.episode.bootstrap = float(value)  # the run is cut off here, not over
            return Decision()
        masks = self.learned.space.masks(signals, self.gates)
        one = type(logits)(*(head[0] for head in logits))
        generator = None if self.greedy else torch.Generator().manual_seed(signals.random_bits & _BITS)
        tensors = MaskTensors.of([masks])
        chosen = choose(one, tensors, generator)
        choice = Choice(*chosen[0].tolist())
        episode = self.episode
        episode.observations.append(observation)
        episode.masks.append(masks)
        episode.choices.append(choice)
        episode.log_probs.append(tuple(log_probs(one, tensors, chosen)[0].tolist()))
        episode.values.append(float(value))
        self.observed.append(observed)
        decision = self.learned.space.decision(choice)
        likely = math.exp(math.fsum(episode.log_probs[-1]))
        reason = f"of probability {likely:.2f}, where the value was {float(value):+.2f}"
        return replace(decision, reasons=(reason,) * len(decision.actions))

    def finished(self) -> Episode:
        """The episode of a run that is over. One whose last decision nothing came of has diverged: that costs
        as much as an epoch in which all accuracy was lost.
        """
        episode = self.episode
        if not episode.choices:  # before anything was decided
            space = self.learned.space
            episode.observations.append((0.0,) * self.learned.policy.sizes.observation)
            episode.masks.append(space.only_wait())
            episode.choices.append(Choice(0))
            episode.log_probs.append((0.0,) * len(Choice._fields))
            episode.values.append(0.0)
        if len(episode.rewards) < len(episode.choices):
            episode.rewards.append(-self.config.reward.gain)  # and nothing to come: `bootstrap` is 0 still
        return episode

    def state_dict(self) -> dict[str, object]:
        """Plain values that `load_state_dict` takes back: what the policy remembers of the run. Neither the
        policy nor what is recorded to learn from is among them.
        """
        state = None if self._state is None else self._state.flatten().tolist()
        return {"state": state, "rewards": self.rewards.state(), "policy": self.learned.digest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Raises BadState, and stays as it is, for one of another policy."""
        saved, hidden = state.get("state"), self.learned.policy.hidden
        if saved is not None and (not isinstance(saved, list) or len(saved) != hidden):
            raise BadState("ppo.state", saved, f"a list of {hidden} numbers")
        if state.get("policy") != (digest := self.learned.digest()):
            raise BadState("ppo.policy", state.get("policy"), f"{digest}, the digest of the policy here")
        try:
            self.rewards.load(state["rewards"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadState("ppo.rewards", state.get("rewards"), "what `Rewards.state` gives") from error
        self._state = None if saved is None else torch.tensor(saved).view(1, 1, hidden)


_BITS = (1 << 63) - 1
