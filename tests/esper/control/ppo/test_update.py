"""One update, against the same sums written down plainly in float64; alone and on ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from esper.control.ppo import Choice, Op, PpoConfig
from esper.control.ppo.episode import Batch, Episode, batch_of
from esper.control.ppo.policy import Policy
from esper.control.ppo.statistics import RunningStatistics
from esper.control.ppo.update import Update, update
from tests.esper.control.ppo.worlds import fresh, hint, masks, optimizer_of, play
from tests.esper.ranks import run_ranks

CONFIG = PpoConfig(environments=4, hidden=8, passes=1, gamma=0.9, lam=0.8, max_norm=1e9)
OPS = (Op.WAIT, Op.GERMINATE, Op.SET_ALPHA, Op.PRUNE)


def episodes(policy: Policy, count: int = 4, steps: int = 5, seed: int = 0) -> list[Episode]:
    """Of different lengths, with rewards by what was done."""
    generator = torch.Generator().manual_seed(seed)
    seen = [[hint((step + number) % 4) for number in range(count)] for step in range(steps)]

    def reward(number: int, choices: list[Choice]) -> float:
        return float(choices[-1].op) - choices[-1].slot + 0.5 * number

    found = play(policy, seen, masks(*OPS), reward, generator)  # type: ignore[arg-type]
    for number, episode in enumerate(found[1:], 1):
        for values in vars(episode).values():
            if isinstance(values, list):
                del values[max(1, steps - number) :]
        episode.bootstrap = 0.25 * number
    return found


def batch(policy: Policy, config: PpoConfig, *args: int) -> Batch:
    return batch_of(episodes(policy, *args), gamma=config.gamma, lam=config.lam)


def gradients(policy: Policy) -> Tensor:
    return torch.cat([one.grad.flatten() for one in policy.parameters() if one.grad is not None])


def weights(policy: Policy) -> Tensor:
    return torch.cat([one.detach().flatten() for one in policy.parameters()])


def plain_loss(policy: Policy, found: list[Episode], config: PpoConfig, old: Policy) -> Tensor:
    """The loss of equation 9, an episode and a step at a time, for a policy in float64."""
    samples = []
    for episode in found:
        for at in range(len(episode.rewards)):
            value = episode.values[at]
            delta = 0.0
            for later in reversed(range(at, len(episode.rewards))):
                ahead = episode.values[later + 1] if later + 1 < len(episode.rewards) else episode.bootstrap
                one = episode.rewards[later] + config.gamma * ahead - episode.values[later]
                delta = one + config.gamma * config.lam * delta
            samples.append((episode, at, delta, delta + value))
    mean = math.fsum(one[2] for one in samples) / len(samples)
    spread = math.sqrt(math.fsum((one[2] - mean) ** 2 for one in samples) / len(samples))
    loss = torch.zeros((), dtype=torch.float64)
    for episode, at, advantage, wanted in samples:
        scaled = (advantage - mean) / (spread + 1e-8)
        now = policy(torch.tensor([[one] for one in episode.observations[: at + 1]], dtype=torch.float64))
        logits, values, _ = now
        before = episode.log_probs[at]
        choice, mask = episode.choices[at], episode.masks[at]
        heads = []
        op = logits.op[-1, 0].masked_fill(~torch.tensor(mask.op), -math.inf).log_softmax(0)
        heads.append((op[choice.op], before[0]))
        entropy = -(op.exp() * op.masked_fill(op == -math.inf, 0.0)).sum()
        slots = logits.slot[-1, 0].log_softmax(-1)
        inner = {Op.WAIT: torch.zeros((), dtype=torch.float64)}
        of = {name: getattr(logits, name)[-1, 0].log_softmax(0) for name in Choice._fields[2:]}
        spreads = {name: -(one.exp() * one).sum() for name, one in of.items()}
        belongs = {
            Op.GERMINATE: ("blueprint", "blend"), Op.SET_ALPHA: ("target", "tempo"), Op.PRUNE: ("tempo",)
        }  # fmt: skip
        for kind, names in belongs.items():
            inner[kind] = -(slots[kind].exp() * slots[kind]).sum() + sum(spreads[name] for name in names)
        entropy = entropy + sum(op[kind].exp() * value for kind, value in inner.items())
        if choice.op != Op.WAIT:
            heads.append((slots[choice.op, choice.slot], before[1]))
            for name in belongs[Op(choice.op)]:
                place = Choice._fields.index(name)
                heads.append((of[name][choice[place]], before[place]))
        for log, was in heads:
            ratio = (log - was).exp()
            clipped = ratio.clamp(1.0 - config.clip, 1.0 + config.clip)
            loss = loss - torch.minimum(ratio * scaled, clipped * scaled)
        loss = loss + config.value_weight * 0.5 * (values[-1, 0] - wanted) ** 2
        loss = loss - config.entropy_weight * entropy
    return loss / len(samples)


@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_gradients_are_those_of_the_loss_as_it_is_written(moved: float) -> None:
    policy = fresh(CONFIG)
    found = episodes(policy)
    # As in a later pass: the policy is not any more the one that chose.
    with torch.no_grad():
        for index, one in enumerate(policy.parameters()):
            one.add_(moved * torch.randn(one.shape, generator=torch.Generator().manual_seed(index)))
    double = fresh(CONFIG).double()
    double.load_state_dict(policy.state_dict())
    torch.autograd.backward(plain_loss(double, found, CONFIG, policy))
    told = update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.0),
        batch_of(found, gamma=CONFIG.gamma, lam=CONFIG.lam),
        replace(CONFIG, target_kl=1e9),
    )
    torch.testing.assert_close(gradients(policy).double(), gradients(double), rtol=1e-3, atol=1e-5)
    assert (told.clipped > 0.0) == (moved > 0.0)
    assert told.samples == 5 + 4 + 3 + 2


def test_explained_variance() -> None:
    policy = fresh(CONFIG)
    found = episodes(policy)
    for episode in found:  # values that foretell every return
        for at in reversed(range(len(episode.rewards))):
            ahead = episode.values[at + 1] if at + 1 < len(episode.rewards) else episode.bootstrap
            episode.values[at] = episode.rewards[at] + CONFIG.gamma * ahead
    told = update(policy, optimizer_of(policy, CONFIG), batch_of(found, gamma=0.9, lam=0.8), CONFIG)
    assert told.explained_variance == pytest.approx(1.0)


def test_an_update_ends_once_the_policy_has_moved_far_enough() -> None:
    policy = fresh(CONFIG)
    config = replace(CONFIG, passes=50, lr=0.05, target_kl=0.01)
    told = update(policy, optimizer_of(policy, config), batch(policy, config), config)
    assert told.stopped
    assert 1 <= told.steps < 50
    assert told.kl > 1.5 * 0.01
    # What went too far is not stepped on again.
    before = weights(policy)
    again = fresh(CONFIG)
    update(again, optimizer_of(again, config), batch(again, config), replace(config, passes=told.steps))
    assert torch.equal(before, weights(again))


def test_a_minibatch_is_whole_episodes() -> None:
    policy = fresh(CONFIG)
    for minibatches, steps in ((2, 2), (3, 3), (9, 4)):  # of four episodes
        config = replace(CONFIG, minibatches=minibatches)
        assert update(policy, optimizer_of(policy, config), batch(policy, config), config).steps == steps


def _share(rank: int, ranks: int) -> tuple[Update, Tensor, Tensor]:
    """An update in which each rank has its part of the same eight episodes."""
    config = replace(CONFIG, passes=3, lr=1e-2)
    policy, group = fresh(config), dist.group.WORLD if ranks > 1 else None
    every = episodes(policy, 8)
    statistics = RunningStatistics(len(every[0].observations[0]))
    own = every[rank * 8 // ranks : (rank + 1) * 8 // ranks]
    statistics.take([seen for episode in own for seen in episode.observations], group)
    told = update(policy, optimizer_of(policy, config), batch_of(own, gamma=0.9, lam=0.8), config, group)
    return told, weights(policy), torch.cat([buffer.flatten() for buffer in statistics.buffers()])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_update_alike_and_as_one_process_with_all_their_episodes(ranks: int) -> None:
    outcomes = run_ranks(lambda rank: _share(rank, ranks), ranks)
    alone, expected, counted = _share(0, 1)
    for outcome in outcomes:
        assert outcome.error is None
        told, found, statistics = outcome.value
        assert torch.equal(found, outcomes[0].value[1])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(statistics, counted)
        assert torch.equal(statistics, outcomes[0].value[2])
        assert (told.samples, told.steps) == (alone.samples, alone.steps)
        assert told.explained_variance == pytest.approx(alone.explained_variance)
