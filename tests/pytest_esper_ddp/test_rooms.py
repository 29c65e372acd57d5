"""No room, or nothing may be written: one sentence, and the tests that need none of it pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mounts
from tests.pytest_esper_ddp.inner import Inner, Result

TESTS = """
@ddp2
def test_fill(ddp, tmp_path):
    path = tmp_path / "large"
    try:
        path.write_bytes(bytes(64 << 20))
    finally:
        path.unlink()

@ddp2
def test_small(ddp, tmp_path):
    print("printed")
    (tmp_path / "small").touch()
    dist.barrier()

def test_plain(): ...
"""


pytestmark = pytest.mark.skipif("not mounts.may_mount()", reason="mounts need root")


@pytest.fixture
def temp(inner: Inner) -> Path:
    path = inner.folder / "temp"
    path.mkdir()
    inner.file(TESTS)
    return path


def run_with(inner: Inner, temp: Path, commands: str, *arguments: str) -> Result:
    """A session that finds these mounts; $T is the directory for what is temporary."""
    return inner.run(*arguments, env={"TMPDIR": str(temp), "T": str(temp), mounts.MOUNTS: commands})


def test_a_disk_that_fills_up_fails_the_test_that_filled_it(inner: Inner, temp: Path) -> None:
    commands = "mount -t tmpfs -o size=64k none /dev/shm && mount -t tmpfs -o size=24m none $T"
    result = run_with(inner, temp, commands)
    assert result.ends == {"test_fill": "FAILED", "test_small": "PASSED", "test_plain": "PASSED"}, result.text
    assert result.messages["test_fill"].endswith("OSError: [Errno 28] No space left on device")


def test_a_full_disk_is_said(inner: Inner, temp: Path) -> None:
    commands = "mount -t tmpfs -o size=64k none /dev/shm && mount -t tmpfs -o size=8m none $T"
    result = run_with(inner, temp, commands)
    assert result.ends == {"test_fill": "ERROR", "test_small": "ERROR", "test_plain": "PASSED"}, result.text
    assert result.messages["test_small"] == (
        "no directory for the ranks' records can be made (/dev/shm: less than 16 MiB are free; "
        f"{temp}: less than 16 MiB are free)"
    )


def test_a_directory_that_can_not_be_written_is_said(inner: Inner, temp: Path) -> None:
    commands = "mount -t tmpfs -o ro none /dev/shm && mount -t tmpfs -o ro none $T"
    result = run_with(inner, temp, commands, f"--basetemp={temp}/base")
    assert result.ends == {"test_fill": "ERROR", "test_small": "ERROR", "test_plain": "PASSED"}, result.text
    assert result.messages["test_small"] == (
        f"no ranks can be started: [Errno 30] Read-only file system: '{temp}/base'"
    )
    assert "Traceback" not in result.text + result.errors
    # Where only the usual places are closed, pytest and the ranks find others.
    result = run_with(inner, temp, commands)
    assert result.passed == {"test_fill", "test_small", "test_plain"}, result.text
