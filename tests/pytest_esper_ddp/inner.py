"""A pytest session of its own in a subprocess, and the processes that come of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tests.forked import MARK, Program, Started, forkserver
from tests.pytest_esper_ddp.warm import LOADED, READ_AT_START, be_python

# A bound that only a hang reaches; nothing is measured with it.
LONG = 100.0
# So many that no inner session waits for ranks of another, or of whatever else runs here.
_ALONE = {"PYTEST_DDP_SLOTS": "500"}
# Outcomes with their messages, uncut.
PYTEST = ("-m", "pytest", "-rpfEsxX", "-p", "no:cacheprovider")
HEAD = """
import os, signal, sys, threading, time
from pathlib import Path
import pytest, torch, torch.distributed as dist

ddp2, ddp4 = pytest.mark.ddp, pytest.mark.ddp(world_size=4)
fault, expect = pytest.mark.ddp_fault, pytest.mark.ddp_expect
"""
_STATED = re.compile(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS) \S*?::(\S+)(?: - (.*))?$", re.MULTILINE)
_SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] (\S+): (.*)$", re.MULTILINE)


class Result:
    """What an inner session came to."""

    def __init__(self, status: int | None, text: str, errors: str) -> None:
        self.status, self.text, self.errors = status, text, errors
        self.ends: dict[str, str] = {}
        self.messages: dict[str, str] = {}
        for end, name, message in _STATED.findall(text):
            self.ends[name] = f"{self.ends[name]}+{end}" if name in self.ends else end
            self.messages[name] = message
        self.skipped = [reason for _, _, reason in _SKIPPED.findall(text)]

    @property
    def passed(self) -> set[str]:
        """The tests that passed and did nothing else."""
        return {name for name, end in self.ends.items() if end == "PASSED"}

    def told(self, name: str) -> str:
        """What is printed below a test's headline among errors and failures."""
        parts = re.split(
            r"^_{3,} (.*?) _{3,}$|^={3,} .*$|^-{3,} tests on ranks -{3,}$", self.text, flags=re.M
        )
        for headline, text in zip(parts[1::2], parts[2::2], strict=False):
            if headline is not None and headline.split()[-1] == name:
                return text.strip("\n")
        raise AssertionError(f"{name} is not among the failures:\n{self.text}")

    @property
    def table(self) -> list[list[str]]:
        """The rows of the table of tests on ranks, cells apart."""
        _, found, rest = self.text.partition(" tests on ranks ")
        if not found:
            return []
        lines = rest.splitlines()[1:]
        end = next((at for at, line in enumerate(lines) if line.startswith("===")), len(lines))
        return [re.split(r"\s{2,}", line) for line in lines[:end]]


class Session:
    """One under way whose processes were forked, as `Inner.begin` starts it."""

    def __init__(self, process: Started, out: IO[str], err: IO[str]) -> None:
        self.pid, self.send_signal = process.pid, process.send_signal
        self._process, self._out, self._err = process, out, err

    def finish(self, within: float = LONG) -> Result:
        """Wait for its end."""
        try:
            return Result(self._process.wait(within), self._read(self._out), self.errors())
        except subprocess.TimeoutExpired as error:
            error.add_note(f"{self._read(self._out)}\n{self.errors()}")
            raise

    def errors(self) -> str:
        """What it has written to its standard error so far."""
        return self._read(self._err)

    def close(self) -> None:
        """What it has written is of no interest any more; it is over, or killed."""
        self._process.wait(LONG)
        self._out.close()
        self._err.close()

    def _read(self, file: IO[str]) -> str:
        # By its own offset: the session writes at the one that it shares with this process.
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0).decode(errors="replace")


class Inner:
    """Runs tests that are given as text; each process that comes of it carries a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = uuid.uuid4().hex
        self._started: list[subprocess.Popen[str]] = []
        self._begun: list[Session] = []

    def file(self, text: str, name: str = "test_inner.py", *, head: str = HEAD) -> Path:
        """Write one file of the inner session."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + text)
        return path

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = PYTEST,
    ) -> subprocess.Popen[str]:
        """Start a session, or what else Python is to run, and leave it running."""
        process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=self.folder,
            env=self._environment(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], within: float = LONG) -> Result:
        """Wait for a session's end."""
        text, errors = process.communicate(timeout=within)
        return Result(process.returncode, text, errors)

    def eventually_exists(self, name: str) -> bool:
        """Whether a file of this name comes to be in the folder."""
        return eventually((self.folder / name).exists)

    def begin(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = PYTEST,
        typed: str = "",
        starts: int = 0,
    ) -> Session:
        """As `start`, in processes that need not load torch first: its own, and of those that it starts as
        many as sessions usually do, or `starts`. `typed` is what its standard input has.
        """
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  closed with the session
        words = (str(starts), *command, *arguments)
        program = Program(be_python, words, self._environment(env or {}), str(self.folder))
        with tempfile.TemporaryFile("w+") as keys:
            keys.write(typed)
            keys.seek(0)
            process = forkserver(*LOADED).start(program, out.fileno(), err.fileno(), keys.fileno())
        self._begun.append(Session(process, out, err))
        return self._begun[-1]

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = PYTEST,
        cold: bool = False,
        starts: int = 0,
    ) -> Result:
        """A whole session, in processes that need not load torch first unless `cold`: for what depends on
        what is loaded, how processes are started, or what their command lines are.
        """
        if cold or any(name.startswith(READ_AT_START) for name in env or {}):
            return self.finish(self.start(*arguments, env=env, command=command))
        return self.begin(*arguments, env=env, command=command, starts=starts).finish()

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "COV_", "COVERAGE")) and name not in ("RANK", "WORLD_SIZE")
        }
        return {**kept, "COLUMNS": "250", MARK: self.token, **_ALONE, **more}

    def alive(self) -> dict[int, str]:
        """The command lines of all processes that carry the token, by process id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                # A process that is only a zombie has no environment any more.
                if self.token.encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def end(self) -> dict[int, str]:
        """End what is left; returns what that was."""
        eventually(lambda: not self.alive(), within=2)
        left = self.alive()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.communicate(timeout=LONG)  # all that could hold its pipes open is gone
        for session in self._begun:
            session.close()
        return left


def warned(result: Result) -> dict[str, str]:
    """What pytest's summary says of each test on ranks, by the test's name."""
    found = re.findall(r"::(\S+)\n  \S+: RanksWarning: (.*)$", result.text, re.MULTILINE)
    return dict(found)


@contextmanager
def inner_session(folder: Path) -> Iterator[Inner]:
    """A place for inner sessions; whatever of theirs is alive afterwards is an error."""
    inner = Inner(folder)
    try:
        yield inner
    finally:
        left = inner.end()
    assert not left, f"still alive: {left}"


def eventually(holds: Callable[[], object], within: float = LONG) -> bool:
    """Whether it comes to hold; looks every few milliseconds, and gives up late."""
    end = time.monotonic() + within
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
