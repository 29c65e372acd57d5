"""The session's directory: whose it is, and that nothing stays when its process is killed."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_esper_ddp.controller import rundir
from pytest_esper_ddp.controller.rundir import RunDirectory
from pytest_esper_ddp.errors import HarnessError
from tests.pytest_esper_ddp.inner import LONG, eventually

# Starts three process groups, forgets the second, and says all of it; then waits.
HOLDER = """
import subprocess, sys
from pathlib import Path
from pytest_esper_ddp.controller.rundir import RunDirectory

held = RunDirectory([Path(sys.argv[1])])
(held.path / "file").touch()
pids = [subprocess.Popen(["sleep", "1000"], process_group=0, stdout=subprocess.DEVNULL).pid for _ in range(3)]
held.watch(pids)
held.forget(pids[1:2])
print(held.path, *pids, flush=True)
sys.stdin.read()
"""


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_this_users_alone_and_goes_with_its_guard(tmp_path: Path) -> None:
    held = RunDirectory([tmp_path])
    assert (held.path.parent, held.path.stat().st_mode & 0o777) == (tmp_path, 0o700)
    guard = held._guard
    assert guard is not None
    held.close()
    assert not list(tmp_path.iterdir())
    assert guard.returncode == 0


def test_a_killed_process_leaves_neither_directory_nor_groups(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        path, *rest = holder.stdout.readline().split()
        first, forgotten, last = map(int, rest)
        try:
            holder.kill()
            assert eventually(
                lambda: not (running(first) or running(last) or Path(path).exists()), within=LONG
            )
            assert running(forgotten)
        finally:
            os.killpg(forgotten, 9)


# Forks, as a test's pool of workers does, and then closes one directory; the other stays as it is.
FORKER = """
import os, sys, time
from pathlib import Path
from pytest_esper_ddp.controller.rundir import RunDirectory

closed, left = RunDirectory([Path(sys.argv[1])]), RunDirectory([Path(sys.argv[1])])
if (pid := os.fork()) == 0:
    os.close(1)
    time.sleep(1000)
print(left.path, pid, flush=True)
closed.close()
print("closed", flush=True)
sys.stdin.read()
"""


def test_what_the_process_has_forked_and_left_holds_nothing_up(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forker:
        assert forker.stdout is not None
        path, pid = forker.stdout.readline().split()
        try:
            assert select.select([forker.stdout], [], [], LONG)[0], "it waits for what it has forked"
            assert [str(one) for one in tmp_path.iterdir()] == [path]
            forker.kill()
            assert eventually(lambda: not Path(path).exists(), within=LONG)
            assert running(int(pid))
        finally:
            os.kill(int(pid), 9)
            forker.kill()


def test_what_a_killed_session_and_its_guard_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = RunDirectory([tmp_path])
    # Its number says nothing: it may be one of this session's processes by now.
    left = tmp_path / f"pytest-ddp.{os.getpid()}.left"
    (left / "world1").mkdir(parents=True)
    foreign = tmp_path / "pytest-ddp.1.foreign"
    foreign.mkdir()
    (tmp_path / "pytest-ddp-slots.0").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "pytest-ddp.1.link")
    (tmp_path / "elsewhere").mkdir()
    os.chown(foreign, os.getuid() + 1, -1) if os.getuid() == 0 else foreign.rmdir()
    other = RunDirectory([tmp_path])
    assert held.path.exists()
    assert not left.exists()
    assert (tmp_path / "pytest-ddp-slots.0").exists()
    assert (tmp_path / "elsewhere").exists()
    assert foreign.exists() == (os.getuid() == 0)
    held.close()
    other.close()


def test_a_directory_that_another_session_sweeps_before_it_is_held_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = rundir._locked
    taken: list[Path] = []

    def swept_first(path: Path) -> int | None:
        if len(taken) < 2:
            taken.append(path)
            if len(taken) == 1:
                shutil.rmtree(path)
                return locked(path)  # it is gone
            lock = locked(path)
            shutil.rmtree(path)
            return lock
        return locked(path)

    monkeypatch.setattr(rundir, "_locked", swept_first)
    held = RunDirectory([tmp_path])
    assert held.path.exists()
    assert held.path not in taken
    held.close()


def test_where_none_can_be_made_each_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    full.mkdir()
    usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(path)._replace(free=1000) if path == full else usage(path)
    )
    with pytest.raises(HarnessError) as caught:
        RunDirectory([tmp_path / "none", file, full])
    assert str(caught.value) == (
        f"no directory for the ranks' records can be made ({tmp_path}/none: No such file or directory; "
        f"{file}: Not a directory; {full}: less than 16 MiB are free)"
    )
    # The next one is taken where the first has no room.
    held = RunDirectory([full, tmp_path])
    assert held.path.parent == tmp_path
    held.close()
