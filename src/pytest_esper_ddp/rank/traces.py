"""Which frames of an error are shown: those of the user's program, down to its call of a collective."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import _pytest
import pluggy
import pytest
from torch.distributed import _functional_collectives, c10d_logger, distributed_c10d

import pytest_esper_ddp
from esper import lockstep
from esper.lockstep.frames import INTERNAL


def _folder(package: object) -> str:
    return str(Path(str(package.__file__)).parent) + os.sep  # type: ignore[attr-defined]


# Files of the harness, in which no line of the user's program lies.
HARNESS = tuple(map(_folder, (pytest, _pytest, pluggy, pytest_esper_ddp)))
_C10D = tuple(str(module.__file__) for module in (distributed_c10d, c10d_logger, _functional_collectives))
_BELOW = (_folder(lockstep), _folder(pytest_esper_ddp), *_C10D)


def cut_plumbing(error: BaseException) -> None:
    """Take away what follows the user's last frame from the first one of torch's collectives or of ours on.

    To show a frame pytest reads all of its file: 0.1 s of a processor for that of torch's collectives.
    """
    for one in _chain(error):
        frames = list(_frames(one.__traceback__))
        files = [frame.tb_frame.f_code.co_filename for frame in frames]
        last = max(
            (at for at, file in enumerate(files) if not file.startswith(INTERNAL + HARNESS)), default=None
        )
        if last is None:
            continue
        below = next((at for at in range(last + 1, len(files)) if files[at].startswith(_BELOW)), None)
        if below is not None:
            frames[below - 1].tb_next = None


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__
