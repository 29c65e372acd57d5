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

from tests.forked import MARK, Program, forkserver
from tests.pytest_esper_ddp.warm import LOADED, READ_AT_START, be_session

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


class Inner:
    """Runs tests that are given as text; each process that comes of it carries a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = uuid.uuid4().hex
        self._started: list[subprocess.Popen[str]] = []

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
        before: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start a session, or what else Python is to run, and leave it running; `before`: a command that
        starts what follows it.
        """
        process = subprocess.Popen(
            [*before, sys.executable, *command, *arguments],
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

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = PYTEST,
        cold: bool = False,
    ) -> Result:
        """A whole session, in processes that need not load torch first unless `cold`: for what depends on
        what is loaded, how processes are started, or what their command lines are.
        """
        environment = self._environment(env or {})
        if cold or any(name.startswith(READ_AT_START) for name in env or {}):
            return self.finish(self.start(*arguments, env=env, command=command))
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            server = forkserver(*LOADED)
            words = (*command[2:], *arguments)
            program = Program(be_session, words, environment, str(self.folder))
            pid = server.start(program, out.fileno(), err.fileno())
            status = server.wait(LONG)
            if status is None:
                os.kill(pid, signal.SIGKILL)
                server.wait(LONG)
            out.seek(0)
            err.seek(0)
            result = Result(status, out.read(), err.read())
        if status is None:
            raise AssertionError(f"not over after {LONG:g} s:\n{result.text}\n{result.errors}")
        return result

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
