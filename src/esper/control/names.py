"""The controllers that a run can be given by name."""

from enum import StrEnum


class ControllerName(StrEnum):
    """Who decides what grows."""

    OWN = "own"  # one of the caller's
    NONE = "none"  # nobody: the host alone
    HEURISTIC = "heuristic"
    RANDOM = "random"
    PPO = "ppo"  # by a policy that was learned
