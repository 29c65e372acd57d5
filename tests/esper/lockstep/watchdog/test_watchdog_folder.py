"""What a run without a verdict leaves goes at the latest when another begins; how ends are told."""

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path
from selectors import EpollSelector

import pytest

from esper.lockstep.errors import StartError
from esper.lockstep.watchdog.folder import VERDICTS_KEPT, hold, hold_folder, sweep
from esper.lockstep.watchdog.processes import Processes


def folder(base: Path, digit: str) -> Path:
    path = base / f"lockstep.{digit * 16}"
    path.mkdir(mode=0o700)
    (path / "rank0.ledger").touch()
    return path


def test_only_what_nobody_holds_any_more_is_swept(tmp_path: Path) -> None:
    left, living, judged, foreign = (folder(tmp_path, digit) for digit in "abcd")
    other = tmp_path / "lockstep.of-another-kind"
    other.mkdir()
    for path in (left, judged, other):
        os.close(hold(path))  # as its ranks' ends do
    (judged / "verdict.json").touch()
    held = hold(living)
    sweep(tmp_path)
    # One whose ranks have not come to hold it yet may be about to begin.
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in (living, judged, foreign, other)
    }
    os.close(held)
    sweep(tmp_path)
    assert not living.exists()


def test_the_last_few_verdicts_stay(tmp_path: Path) -> None:
    by_age = [folder(tmp_path, digit) for digit in "50718234"[: VERDICTS_KEPT + 2]]
    held = {}
    for age, path in enumerate(by_age):
        held[path] = hold(path)
        (path / "verdict.json").touch()
        os.utime(path / "verdict.json", (1e9 - age, 1e9 - age))
    living = by_age[VERDICTS_KEPT]

    for path in by_age:
        if path != living:
            os.close(held[path])
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {*by_age[:VERDICTS_KEPT], living}
    os.close(held[living])
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
    sweeping = (path / "held").open("w")
    fcntl.flock(sweeping, fcntl.LOCK_EX)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if swept and len(slept) == 3:
            shutil.rmtree(path)
            sweeping.close()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    if swept:
        found, held = hold_folder(tmp_path, "0123abcd" * 4, 0)
        assert (found, len(slept)) == (path, 3)
        assert os.path.samestat(os.fstat(held), (path / "held").stat())
        os.close(held)
    else:
        with pytest.raises(StartError, match="for 2 s another process has been sweeping it away"):
            hold_folder(tmp_path, "0123abcd" * 4, 0)
        sweeping.close()


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
