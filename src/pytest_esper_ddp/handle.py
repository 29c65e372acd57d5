"""What a test body on a rank can ask: the `ddp` fixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch


class DDP:
    """This rank's place in the world of the running test."""

    def __init__(self, rank: int, world_size: int, backend: str, shared_path: Path) -> None:
        self.rank = rank
        self._backend = backend
        self.world_size = world_size
        self.shared_path = shared_path
        self.notes: list[str] = []

    @property
    def device(self) -> torch.device:
        """Where this rank's tensors belong: its GPU with nccl, the processor otherwise."""
        import torch

        return torch.device("cuda", self.rank) if self._backend == "nccl" else torch.device("cpu")

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

        mine = list(fingerprints(value, name))
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine)
        difference = first_difference(everyone)
        if difference is not None:
            raise AssertionError(difference)


CURRENT = pytest.StashKey[DDP]()


def fingerprints(value: Any, name: str) -> Sequence[tuple[str, str, str]]:
    """(path, digest of the bits, text for people) of every leaf, in the value's own order."""
    import hashlib

    import torch

    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest = hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()
        shown = str(flat.tolist())
        if flat.numel() > 8:
            mean = flat.to(torch.cdouble if flat.is_complex() else torch.double).mean()
            shown = f"{list(value.shape)} of mean {mean:.9g}"
        return [(name, f"{value.dtype} {list(value.shape)} {digest}", shown)]
    if hasattr(value, "state_dict"):
        return fingerprints(value.state_dict(), name)
    if isinstance(value, Mapping):
        parts = [fingerprints(part, f"{name}[{key!r}]") for key, part in value.items()]
        return [
            (name, f"keys {list(value)!r}", f"keys {list(value)!r}"),
            *(leaf for part in parts for leaf in part),
        ]
    if isinstance(value, list | tuple):
        parts = [fingerprints(part, f"{name}[{index}]") for index, part in enumerate(value)]
        return [
            (name, f"length {len(value)}", f"length {len(value)}"),
            *(leaf for part in parts for leaf in part),
        ]
    return [(name, repr(value), repr(value))]


def first_difference(everyone: Sequence[Sequence[tuple[str, str, str]]]) -> str | None:
    """The sentence for the first leaf on which ranks differ; None when all are equal."""
    for index in range(max(map(len, everyone))):
        sides: dict[tuple[str, str], list[int]] = {}
        shown: dict[tuple[str, str], str] = {}
        for rank, leaves in enumerate(everyone):
            name, digest, text = leaves[index] if index < len(leaves) else ("(nothing)", "", "nothing")
            sides.setdefault((name, digest), []).append(rank)
            shown[name, digest] = text
        if len(sides) > 1:
            ordered = sorted(sides.items(), key=lambda side: len(side[1]), reverse=True)
            if len(set(shown.values())) < len(shown):  # in dtype, shape or far behind the point
                shown = {key: f"{text} ({key[1]})" for key, text in shown.items()}
            told = "; ".join(
                f"{shown[key]} on {'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
                for key, ranks in ordered
            )
            return f"{ordered[0][0][0]} differs: {told}"
    return None
