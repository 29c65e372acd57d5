"""Policies on disk: what was learned, how to go on learning, and what it was learned for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esper.control.ppo.controller import Learned
from esper.control.ppo.space import ActionSpace
from esper.errors import BadState, CheckpointRefused
from esper.training.checkpoint import seal, unseal, write_on_first, write_whole
from esper.training.learning import Learner, Lesson
from esper.training.plain import from_plain, to_plain

NAME = "policy.checkpoint"
_PARTS = frozenset({"space", "hidden", "policy", "statistics", "optimizer", "lessons"})


def save_policy(learner: Learner, path: Path) -> None:
    """Collective: every rank, same order. The first rank writes what has been learned; the file appears
    whole or not at all. Raises as `write_on_first`.
    """
    learned = learner.learned
    content = {
        "space": to_plain(learned.space),
        "hidden": learned.policy.hidden,
        "policy": learned.policy.state_dict(),
        "statistics": learned.statistics.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "lessons": [to_plain(lesson) for lesson in learner.lessons],
    }
    where = f"the policy after update {len(learner.lessons)}"
    write_on_first(learner.agreement, path, where, lambda: write_whole(path, seal(content)))


def load_policy(path: Path, learned: Learned) -> None:
    """Make `learned`, a fresh one, what is in the file. Raises CheckpointRefused, and then it is as it was,
    for a file that can't be read, is none, or is of other slots, choices or sizes.
    """
    _take(_read(path, learned.space, learned.policy.hidden), learned)


def resume_policy(path: Path, learner: Learner) -> None:
    """Go on learning from the file. Raises as `load_policy`."""
    learned = learner.learned
    content = _read(path, learned.space, learned.policy.hidden)
    try:
        lessons = [from_plain(Lesson, one, f"{path} lessons") for one in content["lessons"]]
    except BadState as error:
        raise CheckpointRefused(str(path), f"its lessons don't fit ({error})", "those of a policy") from error
    _take(content, learned)
    learner.optimizer.load_state_dict(content["optimizer"])
    learner.lessons[:] = lessons


def _read(path: Path, space: ActionSpace, hidden: int) -> dict[str, Any]:
    try:
        content = unseal(path.read_bytes(), str(path), _PARTS)
    except OSError as error:
        raise CheckpointRefused(
            str(path), f"it cannot be read: {error.strerror}", "a file that learning a policy wrote"
        ) from error
    ours = {**to_plain(space), "hidden": hidden}
    theirs = {**content["space"], "hidden": content["hidden"]}
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise CheckpointRefused(str(path), f"its policy has {key}={theirs.get(key)!r}", f"{value!r}")
    return content


def _take(content: dict[str, Any], learned: Learned) -> None:
    learned.policy.load_state_dict(content["policy"])
    learned.statistics.load_state_dict(content["statistics"])
