"""How a policy is learned: rollouts of whole runs, each followed by an update that all ranks share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from esper.control.ppo.config import PpoMode
from esper.control.ppo.controller import Learned
from esper.control.ppo.episode import batch_of
from esper.control.ppo.update import Update, total, update
from esper.distributed.agreement import Agreement
from esper.distributed.digest import stable_digest
from esper.training.build import build_model, build_task
from esper.training.config import TrainConfig
from esper.training.environments import Environment, costs_of, fresh_policy
from esper.training.watchdog import watch

_EPSILON = 1e-5  # Adam's, as is usual for this algorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One rollout and what was learned from it, over all ranks."""

    number: int
    accuracy: float  # mean of the runs' last epochs, in points
    reward: float  # mean sum of an episode's rewards
    episodes: int
    rollout_seconds: float  # on this rank, waiting for the others included
    update_seconds: float
    update: Update


class Learner:
    """Learns a policy for the config's task and host, on one process or on every rank of `group`.

    Mode shared: the ranks train each network together, and take one action. Mode parallel: each rank has
    networks of its own, and what they learn from all of them is one policy. Either way the policy is the same
    on all ranks, bit for bit, which is checked after every update.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        group: dist.ProcessGroup | None = None,
        device: str = "cpu",
        data_dir: Path | None = None,
    ) -> None:
        """Collective: every rank, same order. Raises as `build_task`, and UnknownBlueprint."""
        self.config, self._device, self._group = config, device, group
        parallel = config.ppo.mode is PpoMode.PARALLEL
        self._learning = group if parallel else None  # with whom this rank shares what it learns
        self._training = None if parallel else group  # with whom it trains a network
        self._watchdog = watch(group, config.watchdog)
        self.agreement = Agreement(group, config.agreement)
        rank, size = (0, 1) if self._training is None else (group_rank(group), dist.get_world_size(group))
        self._task = build_task(config, data_dir=data_dir, rank=rank, world_size=size)
        self._costs = costs_of(build_model(config), config)
        self.learned = fresh_policy(config)
        self.optimizer = torch.optim.Adam(self.learned.policy.parameters(), lr=config.ppo.lr, eps=_EPSILON)
        self.lessons: list[Lesson] = []
        self._asked_to_stop = False
        self.stopping = False  # a rank was asked to end it early, which all do

    def stop(self) -> None:
        """Have `run` end after the lesson that is under way, on every rank; from any thread or signal
        handler, on any rank.
        """
        self._asked_to_stop = True

    def run(self, *, after_lesson: Callable[[Learner], object] | None = None) -> Learned:
        """Collective: every rank, same order. As many lessons as are configured, those before included, or
        until a rank was asked to stop.

        Raises as `lesson`.
        """
        while len(self.lessons) < self.config.ppo.updates and not self.stopping:
            self.lesson()
            if after_lesson is not None:
                after_lesson(self)
        return self.learned

    def lesson(self) -> Lesson:
        """Collective: every rank, same order. A rollout and an update.

        Raises AgreementDeadline when a rank is late, LifecycleDivergence when the policies differ, and what
        `Trainer.run` raises but TrainingDiverged, which ends an episode.
        """
        config, number, begun = self.config.ppo, len(self.lessons) + 1, time.perf_counter()
        with ExitStack() as stack:
            environments = [
                stack.enter_context(closing(self._environment(number, index)))
                for index in range(config.environments)
            ]
            self._play(environments, f"the rollout of update {number}")
            episodes = [environment.episode() for environment in environments]
            accuracies = [environment.accuracy for environment in environments]
            observed = [seen for environment in environments for seen in environment.controller.observed]
        played = time.perf_counter()
        batch = batch_of(episodes, gamma=config.gamma, lam=config.lam)
        told = update(self.learned.policy, self.optimizer, batch, config, self._learning)
        self.learned.statistics.take(observed, self._learning)
        rewards = [math.fsum(episode.rewards) for episode in episodes]
        accuracy, reward, count = self._means(accuracies, rewards)
        asked = self.agreement.counts(int(self._asked_to_stop), "stop", f"the end of update {number}")
        self.stopping = any(asked.values())
        if self._group is not None:
            self.agreement.audit(self._common(), f"the policy after update {number}")
        lesson = Lesson(
            number=number,
            accuracy=accuracy,
            reward=reward,
            episodes=count,
            rollout_seconds=played - begun,
            update_seconds=time.perf_counter() - played,
            update=told,
        )
        self.lessons.append(lesson)
        return lesson

    def close(self) -> None:
        """Destroy the agreement's groups, and watch no more. Not a collective."""
        self.agreement.close()
        if self._watchdog is not None:
            self._watchdog.stop()

    def __enter__(self) -> Learner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _play(self, environments: Sequence[Environment], where: str) -> None:
        """Until all are over, on all ranks: none waits for another longer than an epoch takes."""
        going = len(environments)
        while going:
            for environment in environments:
                if not environment.over:
                    environment.advance()
            left = sum(not environment.over for environment in environments)
            going = sum(self.agreement.counts(left, "rollout", where).values())

    def _environment(self, lesson: int, index: int) -> Environment:
        rank = 0 if self._learning is None else group_rank(self._learning)
        return Environment(
            self.config,
            self.learned,
            self._costs,
            self._task,
            seed=stable_digest("environment", self.config.seed, lesson, rank, index, bits=31),
            device=self._device,
            group=self._training,
        )

    def _means(self, accuracies: Sequence[float], rewards: Sequence[float]) -> tuple[float, float, int]:
        sums = torch.tensor(
            [math.fsum(accuracies), math.fsum(rewards), float(len(rewards))], dtype=torch.float64
        )
        accuracy, reward, count = total(sums, self._learning).tolist()
        return accuracy / count, reward / count, int(count)

    def _common(self) -> dict[str, object]:
        return {
            "policy": self.learned.policy,
            "statistics": self.learned.statistics,
            "optimizer": self.optimizer,
        }


def group_rank(group: dist.ProcessGroup | None) -> int:
    """This rank's place in the group."""
    return dist.get_rank(group)
