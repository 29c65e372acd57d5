"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equations 11 and 16)."""

from __future__ import annotations

from collections.abc import Sequence


def advantages_of(
    rewards: Sequence[float], values: Sequence[float], bootstrap: float, *, gamma: float, lam: float
) -> list[float]:
    """Of each of an episode's T steps: A_t = sum over l of (gamma lam)^l delta_(t+l), with
    delta_t = r_t + gamma V(s_(t+1)) - V(s_t).

    `bootstrap` is V of the state after the last step: 0 where the episode has terminated, the policy's value
    where it was cut off. Returns to learn values from are A_t + V(s_t).
    """
    found: list[float] = []
    following, advantage = bootstrap, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        advantage = reward + gamma * following - value + gamma * lam * advantage
        found.append(advantage)
        following = value
    return found[::-1]
