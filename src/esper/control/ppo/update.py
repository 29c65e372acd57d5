"""The clipped update (Schulman et al. 2017, equation 7), alike on all ranks that take part in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.control.ppo.config import PpoConfig
from esper.control.ppo.episode import Batch
from esper.control.ppo.policy import Policy, entropy, log_probs
from esper.lockstep import tag

# An update ends where the policy has moved by so much more than the configured divergence.
_KL_MARGIN = 1.5
_LEAST_DEVIATION = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an update came to, over all ranks; losses and the like are means a step of the last pass."""

    policy_loss: float
    value_loss: float
    entropy: float  # nats
    explained_variance: float  # of the returns, by the values before the update; nan without any variance
    kl: float  # nats, of the policy before the update from the one after the last step but one
    clipped: float  # share of heads' ratios outside of 1 +- clip
    steps: int  # of the optimiser
    stopped: bool  # early, by the divergence
    samples: int  # steps of episodes, of all ranks


def total(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Collective where there is a group: the sum over its ranks, in place; the same bits on each."""
    if group is not None:
        # A policy is small and stays with the processor; NCCL has none but its devices' memory.
        there = values.cuda() if dist.get_backend(group) == dist.Backend.NCCL else values
        with tag("policy"):
            dist.all_reduce(there, group=group)
        values.copy_(there)
    return values


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: PpoConfig,
    group: dist.ProcessGroup | None = None,
) -> Update:
    """Collective where there is a group: every rank with a batch of its own, of as many episodes.

    What comes of it is the update by all ranks' episodes together: sums are added up and divided by what all
    have. Each rank takes as many steps as the others, and stops with them.
    """
    batch, explained, samples = _normalised(batch, group)
    size = batch.counts.shape[1]
    parts = min(config.minibatches, size)
    edges = [round(part * size / parts) for part in range(parts + 1)]
    told: Tensor | None = None
    steps, stopped = 0, False
    for _ in range(config.passes):
        sums = torch.zeros(_TOLD, dtype=torch.float64)
        for start, end in pairwise(edges):
            part = _gradients(policy, batch.of(slice(start, end)), config, group)
            sums += part
            if _mean(part, 3) > _KL_MARGIN * config.target_kl:
                stopped = True
                break
            nn.utils.clip_grad_norm_(policy.parameters(), config.max_norm)
            optimizer.step()
            steps += 1
        told = sums
        if stopped:
            break
    assert told is not None
    return Update(
        policy_loss=_mean(told, 0),
        value_loss=_mean(told, 1),
        entropy=_mean(told, 2),
        explained_variance=explained,
        kl=_mean(told, 3),
        clipped=float(told[4] / told[5].clamp(min=1.0)),
        steps=steps,
        stopped=stopped,
        samples=samples,
    )


# Sums over a minibatch: policy loss, value loss, entropy, divergence, clipped ratios, ratios, steps.
_TOLD = 7


def _mean(sums: Tensor, place: int) -> float:
    return float(sums[place] / sums[_TOLD - 1].clamp(min=1.0))


def _normalised(batch: Batch, group: dist.ProcessGroup | None) -> tuple[Batch, float, int]:
    """The batch with advantages of mean 0 and deviation 1 over all ranks; the explained variance; the number
    of steps of all ranks.
    """
    counts = batch.counts
    advantages, returns = batch.advantages.double()[counts], batch.returns.double()[counts]
    sums = torch.stack(
        [
            torch.tensor(float(advantages.numel()), dtype=torch.float64),
            advantages.sum(),
            advantages.square().sum(),
            returns.sum(),
            returns.square().sum(),
        ]
    )
    count, one, two, three, four = total(sums, group).tolist()
    mean, spread = one / count, max(0.0, two / count - (one / count) ** 2)
    of_returns = max(0.0, four / count - (three / count) ** 2)
    explained = 1.0 - spread / of_returns if of_returns > 0.0 else math.nan
    scaled = (batch.advantages - mean) / (math.sqrt(spread) + _LEAST_DEVIATION)
    return batch._replace(advantages=scaled.to(batch.advantages.dtype)), explained, int(count)


def _gradients(policy: Policy, batch: Batch, config: PpoConfig, group: dist.ProcessGroup | None) -> Tensor:
    """Leave the gradients of the mean over all ranks' steps in the policy; the sums that are told of."""
    logits, values, _ = policy(batch.observations)
    counts = batch.counts.to(values.dtype)
    new = log_probs(logits, batch.masks, batch.choices)
    ratios = (new - batch.log_probs).exp()  # (T, N, heads): 1 where a head does not belong
    relevant = (batch.log_probs != 0.0).to(values.dtype) * counts[..., None]
    advantages = batch.advantages[..., None]
    clipped = ratios.clamp(1.0 - config.clip, 1.0 + config.clip)
    # At ratio 1 the sum over heads has the gradient of the action's log-probability.
    gained = (torch.minimum(ratios * advantages, clipped * advantages) * relevant).sum(-1)
    policy_loss = -gained.sum()
    value_loss = (0.5 * (values - batch.returns).square() * counts).sum()
    entropies = (entropy(logits, batch.masks) * counts).sum()
    loss = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropies
    policy.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    with torch.no_grad():
        # The estimate with the least variance that is never negative (Schulman 2020, "Approximating KL").
        moved = (new - batch.log_probs).sum(-1)
        divergence = ((moved.exp() - 1.0 - moved) * counts).sum()
        outside = (((ratios - 1.0).abs() > config.clip) * relevant).sum()
        told = torch.stack(
            [policy_loss, value_loss, entropies, divergence, outside, relevant.sum(), counts.sum()]
        ).double()
        return _added_up(policy, told, group)


def _added_up(policy: Policy, told: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    parameters = list(policy.parameters())
    gradients = [one.grad if one.grad is not None else torch.zeros_like(one) for one in parameters]
    flat = total(torch.cat([told, *(gradient.double().flatten() for gradient in gradients)]), group)
    told, rest = flat[:_TOLD], flat[_TOLD:] / flat[_TOLD - 1].clamp(min=1.0)
    for one, summed in zip(parameters, torch.split(rest, [one.numel() for one in parameters]), strict=True):
        one.grad = summed.view_as(one).to(one.dtype)
    return told
