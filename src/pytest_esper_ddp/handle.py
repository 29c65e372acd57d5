"""What a test body on a rank can ask: the `ddp` fixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from esper.lockstep.rank.fingerprints import Leaf
    from pytest_esper_ddp.wire.messages import ForkWorld


class DDP:
    """This rank's place in the world of the running test."""

    def __init__(self, rank: int, world: ForkWorld) -> None:
        self.rank, self._world = rank, world
        self.world_size = world.world_size
        self.notes: list[str] = []

    @property
    def shared_path(self) -> Path:
        """A directory that all ranks have in common, empty at the test's start. Made when first asked for."""
        path = self._world.shared_path
        path.mkdir(exist_ok=True)
        return path

    @property
    def device(self) -> torch.device:
        """Where this rank's tensors belong: its GPU with nccl, the processor otherwise."""
        import torch

        return torch.device("cuda", self.rank) if self._world.backend == "nccl" else torch.device("cpu")

    def __repr__(self) -> str:
        return f"<rank {self.rank} of {self.world_size}>"

    def note(self, text: str) -> None:
        """Have `text` printed below this test's row in the summary; equal notes of several ranks once."""
        self.notes.append(str(text))

    def assert_same(self, value: Any, name: str = "value") -> None:
        """Collective: every rank, same order. Fail unless `value` is bit-equal on all ranks.

        `value` is a tensor, a module or optimiser (its state_dict), or nested mappings and sequences of
        tensors and plain values. The AssertionError names the first differing part and the ranks on each
        side, and is the same on every rank.
        """
        import torch.distributed as dist

        from esper.lockstep.rank.fingerprints import leaves

        mine = list(leaves(value, name))
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine)
        difference = first_difference(everyone)
        if difference is not None:
            raise AssertionError(difference)


CURRENT = pytest.StashKey[DDP]()


def first_difference(everyone: Sequence[Sequence[Leaf]]) -> str | None:
    """The sentence for the first leaf on which ranks differ; None when all are equal."""
    for index in range(max(map(len, everyone))):
        sides: dict[tuple[object, ...], list[int]] = {}
        shown: dict[tuple[object, ...], str] = {}
        for rank, leaves in enumerate(everyone):
            name, digest, text, kind = (
                leaves[index] if index < len(leaves) else ("(nothing)", 0, "nothing", "")
            )
            sides.setdefault((name, digest, kind), []).append(rank)
            shown[name, digest, kind] = text
        if len(sides) > 1:
            ordered = sorted(sides.items(), key=lambda side: len(side[1]), reverse=True)
            if len(set(shown.values())) < len(shown):  # in dtype, shape or far behind the point
                shown = {key: f"{text} ({key[2]} {key[1]:016x})" for key, text in shown.items()}
            told = "; ".join(
                f"{shown[key]} on {'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
                for key, ranks in ordered
            )
            return f"{ordered[0][0][0]} differs: {told}"
    return None
