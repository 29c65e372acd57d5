"""The policy that a run of `esper train --controller ppo` goes by: one from a file, or learned first."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist

from esper.control.ppo.controller import Learned
from esper.distributed.agreement import Agreement
from esper.training import Learner, TrainConfig, load_policy, resume_policy, save_policy
from esper.training.environments import fresh_policy
from esper.training.plain import to_plain
from esper.training.policies import NAME

LESSONS = "policy.jsonl"


def policy_for(
    config: TrainConfig,
    *,
    file: Path | None,
    folder: Path,
    group: dist.ProcessGroup | None,
    device: torch.device,
    data_dir: Path | None,
    say: Callable[[str], None],
    stopping: Callable[[Learner], AbstractContextManager[None]],
) -> Learned | None:
    """Collective: every rank, same order. The policy in `file`; without one that of the run's folder, learned
    to its end first: after each update the folder has it, and a line of JSON about it. None: somebody asked
    for an early end.

    Raises as `load_policy`, `Learner.lesson` and `save_policy`.
    """
    if file is not None:
        learned = fresh_policy(config)
        with Agreement(group, config.agreement) as agreement:
            load_policy(file, learned, agreement)
        return learned
    with Learner(config, group=group, device=str(device), data_dir=data_dir) as learner, stopping(learner):
        kept, first = folder / NAME, group is None or dist.get_rank(group) == 0
        # Which the ranks see alike once the first has told them, also where a disk shows it late.
        if learner.agreement.texts(str(kept.exists() if first else ""), "the policy")[0] == "True":
            resume_policy(kept, learner)
            say(f"learns on from {kept}, update {len(learner.lessons)}")
        wanted = config.ppo.updates

        def after_lesson(learner: Learner) -> None:
            save_policy(learner, kept)
            one = learner.lessons[-1]
            if first:
                with (folder / LESSONS).open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(to_plain(one)) + "\n")
            say(
                f"update {one.number} of {wanted}: {one.episodes} runs to accuracy {one.accuracy:.2f}, "
                f"reward {one.reward:.3f}, entropy {one.update.entropy:.3f}, explained variance "
                f"{one.update.explained_variance:.2f}, {one.rollout_seconds + one.update_seconds:.1f} s"
            )

        learner.run(after_lesson=after_lesson)
        if learner.stopping and len(learner.lessons) < wanted:
            say(f"stopped after update {len(learner.lessons)} of {wanted}; --resume goes on")
            return None
        return learner.learned
