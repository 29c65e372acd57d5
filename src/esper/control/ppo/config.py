"""Settings of the learning controller."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from esper.checks import check_int, check_number
from esper.errors import ConfigError
from esper.lifecycle.config import Blend


class PpoMode(StrEnum):
    """What several ranks do while a policy is learned."""

    SHARED = "shared"  # all train one network, and take one action
    PARALLEL = "parallel"  # each has networks of its own; gradients of the policy are averaged


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """What an epoch is worth, each part bounded: see `esper.control.ppo.reward`."""

    gain: float = 1.0  # of tanh(points of accuracy gained / gain_scale)
    gain_scale: float = 5.0
    contribution: float = 0.05  # of the mean over slots of tanh(contribution / contribution_scale)
    contribution_scale: float = 10.0
    shaping: float = 0.1  # of the potential: the mean over slots of how far a stage is along
    rent: float = 0.01  # an epoch, of parameters added / parameters of the host

    def __post_init__(self) -> None:
        for name in ("gain", "contribution", "shaping", "rent"):
            check_number(f"ppo.reward.{name}", getattr(self, name), 0.0)
        for name in ("gain_scale", "contribution_scale"):
            if check_number(f"ppo.reward.{name}", getattr(self, name), 0.0) == 0.0:
                raise ConfigError(f"ppo.reward.{name}", 0.0, "a finite number above 0")


@dataclass(frozen=True, slots=True)
class PpoConfig:
    """Settings of policy, update and rollout. `environments` are episodes an update, per rank in mode
    parallel; an episode is a run of the config's epochs.
    """

    mode: PpoMode = PpoMode.PARALLEL
    updates: int = 20
    environments: int = 4
    # What can be chosen.
    blueprints: tuple[str, ...] = ("norm", "conv_light")
    blends: tuple[Blend, ...] = (Blend.ADD,)
    targets: tuple[float, ...] = (0.5, 0.7, 1.0)
    tempos: tuple[int, ...] = (3, 5, 8)  # epochs
    # The policy and its update.
    hidden: int = 64
    gamma: float = 0.995
    lam: float = 0.98
    clip: float = 0.2
    lr: float = 3e-4
    passes: int = 4  # over a rollout
    minibatches: int = 1  # a pass, each of whole episodes; as many as there are episodes at most
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    max_norm: float = 0.5  # of the gradient
    target_kl: float = 0.02  # an update ends early beyond 1.5 times that
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        for name in ("updates", "environments", "hidden", "passes", "minibatches"):
            check_int(f"ppo.{name}", getattr(self, name), 1)
        for name in ("gamma", "lam"):
            check_number(f"ppo.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("clip", "lr", "max_norm", "target_kl"):
            if check_number(f"ppo.{name}", getattr(self, name), 0.0) == 0.0:
                raise ConfigError(f"ppo.{name}", 0.0, "a finite number above 0")
        for name in ("value_weight", "entropy_weight"):
            check_number(f"ppo.{name}", getattr(self, name), 0.0)
        for name in ("blueprints", "blends", "targets", "tempos"):
            if not getattr(self, name):
                raise ConfigError(f"ppo.{name}", getattr(self, name), "at least one to choose")
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"ppo.{name}", getattr(self, name), "each once")
        for index, target in enumerate(self.targets):
            if check_number(f"ppo.targets[{index}]", target, 0.0, 1.0) == 0.0:
                raise ConfigError(f"ppo.targets[{index}]", target, "a number in (0, 1]")
        for index, tempo in enumerate(self.tempos):
            check_int(f"ppo.tempos[{index}]", tempo, 0)
