"""Is all state the same on all ranks, bit for bit? If not, the first part that differs, by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from esper.distributed.digest import stable_digest
from esper.distributed.divergence import ABSENT, require_same
from esper.lockstep.rank.fingerprints import Leaf, leaves

__all__ = ["Leaf", "digest_of", "leaves", "require_same_leaves"]


def digest_of(parts: Sequence[Leaf]) -> int:
    """63-bit digest of names, bits, dtypes and shapes, in order."""
    return stable_digest([(part.path, part.digest, part.kind) for part in parts])


def require_same_leaves(
    texts: Callable[[str, str], Mapping[int, str]], mine: Sequence[Leaf], where: str
) -> None:
    """Collective: every rank, same order. Raise LifecycleDivergence with the first leaf that differs.

    `texts(text, where)` exchanges a text a rank.
    """
    told = json.dumps([(part.path, f"{part.digest:016x} {part.kind}", part.text) for part in mine])
    everyone = {rank: json.loads(text) for rank, text in texts(told, where).items()}
    for index in range(max(map(len, everyone.values()))):
        # A list that has ended, or one that has something else in this place, differs in the place's name.
        at = {
            rank: tuple(parts[index]) if index < len(parts) else (ABSENT, "", "")
            for rank, parts in everyone.items()
        }
        if len(set(at.values())) == 1:
            continue
        names = {path for path, _, _ in at.values()}
        if len(names) > 1:
            require_same({f"part {index}": [(rank, path) for rank, (path, _, _) in at.items()]}, where)
        shown = len({text for _, _, text in at.values()}) == len({digest for _, digest, _ in at.values()})
        values = [(rank, text if shown else f"{text} ({digest})") for rank, (_, digest, text) in at.items()]
        require_same({names.pop(): values}, where)
