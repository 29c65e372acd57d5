"""A controller that learns when to grow: proximal policy optimisation (Schulman et al. 2017,
arXiv:1707.06347) with a factored, masked action and a recurrent policy.

What can be chosen and how it is configured is here and does not import torch; policy and update do, and are
imported from where they are.
"""

from esper.control.ppo.config import PpoConfig, PpoMode, RewardConfig
from esper.control.ppo.space import ActionSpace, Choice, Masks, Op

__all__ = ["ActionSpace", "Choice", "Masks", "Op", "PpoConfig", "PpoMode", "RewardConfig"]
