"""What a run without a verdict leaves goes at the latest when another begins; how ends are told."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from selectors import EpollSelector

import pytest

from esper.lockstep.errors import StartError
from esper.lockstep.watchdog.folder import VERDICTS_KEPT, hold, hold_folder, remove_if_left, sweep
from esper.lockstep.watchdog.processes import Processes
from tests.esper.lockstep.watchdog.jobs import job
from tests.mounts import may_mount


def folder(base: Path, digit: str) -> Path:
    path = base / f"lockstep.{digit * 16}"
    path.mkdir(mode=0o700)
    (path / "rank0.ledger").touch()
    return path


@contextmanager
def in_another_process(do: Callable[[], object]) -> Iterator[None]:
    """Has been done there, and the process lives."""
    (done, tell), (wait, end) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.close(end)
        do()
        os.write(tell, b".")
        os.read(wait, 1)
        os._exit(0)
    os.close(tell)
    assert os.read(done, 1) == b"."
    try:
        yield
    finally:
        for file in (done, wait, end):
            os.close(file)
        os.waitpid(child, 0)


def test_only_what_nobody_holds_any_more_is_swept(tmp_path: Path) -> None:
    left, living, judged, foreign = (folder(tmp_path, digit) for digit in "abcd")
    other = tmp_path / "lockstep.of-another-kind"
    other.mkdir()
    for path in (left, judged, other):
        os.close(hold(path))  # as its ranks' ends do
    (judged / "verdict.json").touch()
    with in_another_process(lambda: hold(living)):
        sweep(tmp_path)
        # One whose ranks have not come to hold it yet may be about to begin.
        assert {path.name for path in tmp_path.iterdir()} == {
            path.name for path in (living, judged, foreign, other)
        }
    sweep(tmp_path)
    assert not living.exists()


def test_a_child_that_has_only_just_been_forked_holds_nothing(tmp_path: Path) -> None:
    path = folder(tmp_path, "a")
    held = hold(path)
    with in_another_process(lambda: None):
        os.close(held)
        remove_if_left(path)
        assert not path.exists()


def test_the_last_few_verdicts_stay(tmp_path: Path) -> None:
    by_age = [folder(tmp_path, digit) for digit in "50718234"[: VERDICTS_KEPT + 2]]
    for age, path in enumerate(by_age):
        os.close(hold(path))
        (path / "verdict.json").touch()
        os.utime(path / "verdict.json", (1e9 - age, 1e9 - age))
    living = by_age[VERDICTS_KEPT]

    with in_another_process(lambda: hold(living)):
        sweep(tmp_path)
        assert set(tmp_path.iterdir()) == {*by_age[:VERDICTS_KEPT], living}
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == set(by_age[:VERDICTS_KEPT])


def test_a_folder_that_was_swept_before_it_was_held_is_not_taken_for_one_that_is(tmp_path: Path) -> None:
    gone = folder(tmp_path, "a")
    os.close(hold(gone))
    sweep(tmp_path)
    with pytest.raises(FileNotFoundError):
        hold(gone)


@pytest.mark.parametrize("swept", [True, False])
def test_a_folder_that_is_being_swept_is_made_anew(
    swept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "attempt-0-0123abcd").mkdir(mode=0o700)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if swept and len(slept) == 3:
            shutil.rmtree(path)

    def begin_to_sweep() -> None:
        fcntl.lockf(os.open(path / "held", os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    with in_another_process(begin_to_sweep):
        if swept:
            found, held = hold_folder(tmp_path, "0123abcd" * 4, 0)
            assert (found, len(slept)) == (path, 3)
            assert os.path.samestat(os.fstat(held), (path / "held").stat())
            os.close(held)
        else:
            with pytest.raises(StartError, match="for 2 s another process has been sweeping it away"):
                hold_folder(tmp_path, "0123abcd" * 4, 0)


def test_a_disk_that_has_filled_up_has_room_for_the_verdict(tmp_path: Path) -> None:
    if not may_mount():
        pytest.skip("mounts need root")
    small = tmp_path / "small"
    small.mkdir()
    done = job(
        tmp_path / "job",
        f"""
        from tests.esper.lockstep.watchdog.notes import run_folder
        dist.all_reduce(x)
        dist.barrier()
        if rank == 0:
            with open("{small}/large", "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 12))
                except OSError:
                    pass
        try:
            dist.all_reduce(x)
            dist.barrier() if rank else dist.all_reduce(x)
            time.sleep(1000)
        except lockstep.LockstepError:
            note("verdict", os.path.getsize(f"{{run_folder()}}/verdict.json"))
            raise
        """,
        start=f"patience=60, run_dir={str(small)!r}",
        ESPER_TEST_MOUNTS=f"mount -t tmpfs -o size=24m none {small}",
    )
    assert {error["type"] for error in done.notes("error").values()} == {"LockstepError"}
    assert len(done.notes("verdict")) == 3
    assert all(done.notes("verdict").values())
    assert done.said.startswith("lockstep: rank 0 disagrees in barrier #4\n")
    assert "evidence: python -m esper.lockstep explain" in done.said


def test_a_process_that_was_reaped_by_others_is_told_a_little_later_without_its_end() -> None:
    child = subprocess.Popen(["sleep", "60"])
    told: list[tuple[int, int | None]] = []
    with EpollSelector() as selector:
        processes = Processes(selector, {3: child.pid})
        child.kill()
        child.wait()
        now = time.monotonic()
        assert processes.ended(now, lambda rank, code: told.append((rank, code)))
        # Whoever ends all of them ends this one, too, by then.
        assert told == []
        processes.ended(now + 1.0, lambda rank, code: told.append((rank, code)))
        processes.close()
    assert told == [(3, None)]
