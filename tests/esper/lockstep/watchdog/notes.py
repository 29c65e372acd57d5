"""What a rank of a test's job leaves in the job's folder."""

from __future__ import annotations

import json
import os
import pickle
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from esper.lockstep import LockstepError

_LEDGER = re.compile(r"\S+ r\S+ .* (/\S*)/rank\d+\.ledger$")


class Note:
    """Of one rank; `begin` says of which."""

    rank = -1

    def __call__(self, name: str, value: Any = None) -> None:
        path = Path(os.environ["ESPER_TEST_NOTES"]) / f"note-{name}.{self.rank}"
        unfinished = path.with_name(f"unfinished-{path.name}")
        unfinished.write_text(json.dumps(value))
        unfinished.rename(path)

    def begin(self, rank: int, world_size: int) -> None:
        """Where the ledger lies, as the kernel has it mapped; waits until this rank watches all processes."""
        self.rank = rank
        self("folder", run_folder())
        while watched_processes() < world_size:
            time.sleep(0.01)

    def fault(self) -> None:
        """Here and now it goes wrong."""
        self("fault", time.monotonic())

    def error(self, error: BaseException) -> None:
        """What this rank raised, and when."""
        whole = {"type": type(error).__name__, "at": time.monotonic(), "text": str(error)}
        if isinstance(error, LockstepError):
            again = pickle.loads(pickle.dumps(error))
            whole |= {
                "diagnosis": error.diagnosis.to_json(),
                "pickles": again.diagnosis == error.diagnosis and str(again) == str(error),
                "main": threading.current_thread() is threading.main_thread(),
            }
        self("error", whole)


def watched_processes() -> int:
    """How many processes this one waits for the end of."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found += os.readlink(link) == "anon_inode:[pidfd]"
    return found


def run_folder() -> str | None:
    """Of this process's ledger."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if (match := _LEDGER.match(line)) is not None:
            return match[1]
    return None


note = Note()
