"""Rank slots: who gets them, who waits, what is said meanwhile; and whole sessions that share a budget."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_esper_ddp.controller.slots import Slots
from tests.pytest_esper_ddp.inner import Inner, eventually


class Place:
    """Sessions' slots in one folder, and a clock that only waiting moves: `then` happens at the n-th look."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.looks = folder, 0.0, 0
        self.told: list[str] = []
        self.then: dict[int, Callable[[], object]] = {}
        self.all: list[Slots] = []

    def session(self, budget: int = 4) -> Slots:
        self.all.append(
            Slots(budget, self.told.append, folders=[self.folder], clock=lambda: self.now, sleep=self._sleep)
        )
        return self.all[-1]

    def hold(self, slots: Slots, ranks: int, whose: str = "test_it") -> Callable[[], None]:
        """Take slots; what is returned gives them back."""
        stack = ExitStack()
        stack.enter_context(slots.take(ranks, whose))
        return stack.close

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.looks += 1
        assert self.looks < 10_000, "waits for ever"
        self.then.pop(self.looks, lambda: None)()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for slots in place.all:
        slots.close()


def test_what_fits_the_budget_does_not_wait(place: Place) -> None:
    one, two = place.session(), place.session()
    give_back = place.hold(one, 2)
    place.hold(two, 2)
    give_back()
    place.hold(one, 2)
    assert place.looks == 0


def test_what_does_not_fit_waits_for_the_others_end(place: Place) -> None:
    one, two = place.session(), place.session()
    place.then[7] = place.hold(one, 3)
    place.hold(two, 2)
    assert place.looks == 7


def test_a_world_above_the_budget_runs_alone(place: Place) -> None:
    one, two, three = place.session(), place.session(), place.session()
    give_back = place.hold(one, 2)
    ends = []
    place.then[3] = give_back
    ends.append(place.hold(two, 9))
    assert place.looks == 3
    place.then[5] = ends[0]
    place.hold(three, 2)
    assert place.looks == 5


def test_two_that_each_need_more_than_is_free_do_not_lock_each_other_out(place: Place) -> None:
    one, two, three = (place.session() for _ in range(3))
    give_back = place.hold(one, 3)
    order: list[str] = []

    def second_asks() -> None:
        # While `two` has the turn and one slot: `three` gets none until `two` has had what it needs.
        place.then[place.looks + 4] = give_back
        assert not three._collect(4) or order == ["two"]
        three._release()

    place.then[2] = second_asks
    ended = place.hold(two, 4)
    order.append("two")
    ended()
    place.hold(three, 4)
    assert order == ["two"]


def test_who_goes_on_at_once_does_not_get_before_who_waits(place: Place) -> None:
    one, two = place.session(), place.session()
    give_back = place.hold(one, 4)

    def next_test() -> None:
        give_back()
        assert not one_has_the_turn()

    def one_has_the_turn() -> bool:
        import fcntl

        try:
            fcntl.flock(one._file("turn"), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    place.then[2] = next_test
    place.hold(two, 4)
    assert place.looks == 2


def test_slots_end_with_their_holder(place: Place) -> None:
    code = (
        "import sys; from pathlib import Path; from pytest_esper_ddp.controller.slots import Slots\n"
        "with Slots(4, print, folders=[Path(sys.argv[1])]).take(4, 'theirs'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        def end() -> None:
            holder.send_signal(signal.SIGKILL)
            holder.wait()

        place.then[600] = end
        place.hold(place.session(), 4, "test_file.py::test_mine")
    assert place.looks == 600
    assert place.told == [
        f"waiting for 5 s for 4 of 4 rank slots to run test_file.py::test_mine; held by process {holder.pid}"
    ]


def test_a_session_in_a_test_that_holds_slots_does_not_wait_for_them(place: Place) -> None:
    place.hold(place.session(), 4)
    code = (
        "import sys; from pathlib import Path; from pytest_esper_ddp.controller.slots import Slots\n"
        "with Slots(4, print, folders=[Path(sys.argv[1])]).take(4, 'inner'): print('runs')\n"
    )
    command = [sys.executable, "-c", code, str(place.folder)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "runs\n"


def test_only_a_folder_that_nobody_else_can_enter_is_used(tmp_path: Path) -> None:
    name = f"pytest-ddp-slots.{os.getuid()}"
    open_to_all, link, good = (tmp_path / part for part in ("open", "link", "good"))
    for parent in (open_to_all, link, good):
        parent.mkdir()
    (open_to_all / name).mkdir()
    (open_to_all / name).chmod(0o755)
    (link / name).symlink_to(tmp_path)
    told: list[str] = []
    slots = Slots(4, told.append, folders=[tmp_path / "missing", open_to_all, link, good])
    with slots.take(2, "test_it"):
        assert sorted(path.name for path in (good / name).iterdir()) == ["0", "1", "turn"]
        assert (good / name).stat().st_mode & 0o777 == 0o700
    slots.close()
    slots = Slots(4, told.append, folders=[open_to_all])
    with slots.take(2, "test_it"):
        assert told == ["no folder for locks can be made here: ranks of other sessions are not waited for"]
    slots.close()


ALONE = """
RUNNING = Path(os.environ["RUNNING"])

def alone(ddp):
    # Long enough for another worker's test to come between, if it could.
    if ddp.rank == 0:
        (RUNNING / f"{os.getpid()}").touch()
    dist.barrier()
    time.sleep(0.1)
    if ddp.rank == 0:
        assert len(list(RUNNING.iterdir())) == 1
        (RUNNING / f"{os.getpid()}").unlink()

@pytest.mark.ddp(world_size=4)
@pytest.mark.timeout(30)
@pytest.mark.parametrize("number", range(6))
def test_of_four(ddp, number):
    alone(ddp)

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(3))
@ddp2
def test_swept(ddp, number):
    dist.all_reduce(torch.ones(1))
    assert dist.get_world_size() == ddp.world_size

@pytest.mark.ddp(world_size=6)
def test_larger_than_the_budget(ddp):
    alone(ddp)
"""


def test_workers_share_the_budget(inner: Inner) -> None:
    for name in ("test_one.py", "test_two.py"):
        inner.file(ALONE, name)
    running = inner.folder / "running"
    running.mkdir()
    given = {"RUNNING": str(running), "PYTEST_DDP_SLOTS": "5"}
    result = inner.run("-n", "2", "--dist", "loadgroup", "--ddp-world-size=2,4", env=given)
    assert re.search(r"= 26 passed in", result.text), result.text
    assert "Traceback" not in result.text + result.errors


WAITS = """
@pytest.mark.ddp(world_size=4, lockstep="off")
def test_that_others_wait_for(ddp):
    if ddp.rank == 0:
        Path("held").touch()
        while not Path("told").exists():
            time.sleep(0.01)
    dist.barrier()
"""


def test_a_wait_is_told_and_is_not_the_tests_own_time(inner: Inner) -> None:
    inner.file(WAITS, "test_first.py")
    inner.file("@ddp4\n@pytest.mark.timeout(4)\ndef test_waiting(ddp): ...\n", "test_second.py")
    first = inner.begin("test_first.py", "--ddp-slots=4")
    assert inner.eventually_exists("held")
    second = inner.begin("test_second.py", "--ddp-slots=4")
    assert eventually(lambda: second.errors().strip())
    (inner.folder / "told").touch()
    assert first.finish().passed == {"test_that_others_wait_for"}
    result = second.finish()
    assert result.passed == {"test_waiting"}
    assert re.fullmatch(
        r"ddp: waiting for \d s for 4 of 4 rank slots to run \S+::test_waiting; "
        rf"held by process {first.pid}",
        next(line for line in result.errors.splitlines() if line.strip()),
    )
