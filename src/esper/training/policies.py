"""Policies on disk: what was learned, how to go on learning, and what it was learned for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from esper.control.ppo.controller import Learned
from esper.control.ppo.space import ActionSpace
from esper.distributed.agreement import Agreement
from esper.distributed.divergence import require_same
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


def load_policy(path: Path, learned: Learned, agreement: Agreement | None = None) -> None:
    """Make `learned`, a fresh one, what is in the file. With an agreement collective: every rank, same order;
    all ranks take the same, or none does.

    Raises CheckpointRefused for a file that can't be read, is none, or is of other slots, choices or sizes,
    here or on another rank, LifecycleDivergence where files differ; `learned` is then as it was.
    """
    _take(_agreed(path, learned, agreement).content, learned)


def resume_policy(path: Path, learner: Learner) -> None:
    """Collective: every rank, same order. Go on learning from the file. Raises as `load_policy`."""
    content, lessons = _agreed(path, learner.learned, learner.agreement)
    _take(content, learner.learned)
    learner.optimizer.load_state_dict(content["optimizer"])
    learner.lessons[:] = lessons


class _Kept(NamedTuple):
    content: dict[str, Any]
    lessons: list[Lesson]


def _agreed(path: Path, learned: Learned, agreement: Agreement | None) -> _Kept:
    """What this rank has read, once all have read the same."""
    try:
        data = path.read_bytes()
        kept = _read(data, str(path), learned.space, learned.policy.hidden)
        refused = None
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
        refused = CheckpointRefused(str(path), problem, "a file that learning a policy wrote")
    except CheckpointRefused as error:
        refused = error
    if agreement is not None:
        mine = hashlib.blake2b(data, digest_size=8).hexdigest() if refused is None else refused.problem
        what = f"the policy in {path}"
        usable = agreement.counts(refused is None, "policy", what)
        said = agreement.texts(mine, what)
        if refused is None:
            for rank in (rank for rank, has in usable.items() if not has):
                accepted = "one file that all ranks can use"
                raise CheckpointRefused(str(path), f"on rank {rank} {said[rank]}", accepted)
            require_same({"digest": list(said.items())}, what)
    if refused is not None:
        raise refused
    return kept


def _read(data: bytes, path: str, space: ActionSpace, hidden: int) -> _Kept:
    content = unseal(data, path, _PARTS)
    ours = {**to_plain(space), "hidden": hidden}
    theirs = {**content["space"], "hidden": content["hidden"]}
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise CheckpointRefused(path, f"its policy has {key}={theirs.get(key)!r}", f"{value!r}")
    try:
        lessons = [from_plain(Lesson, one, f"{path} lessons") for one in content["lessons"]]
    except BadState as error:
        raise CheckpointRefused(path, f"its lessons don't fit ({error})", "those of a policy") from error
    return _Kept(content, lessons)


def _take(content: dict[str, Any], learned: Learned) -> None:
    learned.policy.load_state_dict(content["policy"])
    learned.statistics.load_state_dict(content["statistics"])
