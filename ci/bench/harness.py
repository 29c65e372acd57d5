"""What a test on ranks costs under this plugin, under torch's own harnesses, and at least.

    .venv/bin/pip install -c ci/constraints.txt -e '.[bench]'
    .venv/bin/python ci/bench/harness.py [--only PART ...] [--ranks N ...] [--rounds N] [--json FILE]

pytest runs the same bodies, one `all_reduce` and an assertion, in sessions that take turns: under the plugin,
and under `MultiProcContinuousTest` and `MultiProcessTestCase` of torch.testing, without the plugin then.

pooled   from one test's start to the next one's, the median of a session of 150, on ranks that live on; a
         ratio to MultiProcContinuousTest's in the session beside it
memory   the sum of the proportional set sizes of pytest and all processes below it late in those sessions
suite    a whole session of 20 tests in one class, from the command to its end
fresh    from start to start with new ranks for each test, the median of a session of 100, against
         MultiProcessTestCase's and against a floor: a process that has imported torch forks as many, which
         make a group, reduce once and end
death    from the moment before a rank ends (by exit, SIGKILL or a wild pointer) or raises, while the others
         wait for it, to the failed report in pytest's process
without  how much longer a session without tests on ranks takes with the plugin than without any

The figures are medians over the rounds, ratios and differences those of sessions that ran beside each
other. All sides have one thread for arithmetic. The plugin's ranks are batch threads for the kernel and
meet at a store that listens, torch's are usual threads and meet at a file: both belong to the harness. The
floor has the plugin's way of both, and torch's way of all else: each of its ranks asks a name server who
127.0.0.1 is, and the plugin's do not. `pooled` is at each of `--ranks`, everything else at four.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

POOLED, SUITE, FRESH, DEATHS = 150, 20, 100, 3  # tests a session; of DEATHS, those that end in one way
SPAWNED = 3  # of MultiProcessTestCase, which takes seconds for each
PLAIN_PAIRS = 60  # sessions of each side a round: a session's length varies by more than is looked for
WAYS = ("exit", "kill", "segfault", "raise")
FOUR = 4
WITHOUT_US = ("-p", "no:esper_ddp")
BODY = """
        tensor = torch.ones(8)
        dist.all_reduce(tensor)
        assert tensor[0] == {ranks}"""

# Times and sizes in pytest's own process, which this one has started; ranks load the file, too.
CONFTEST = """
import json, os, time

starts, failures, sizes = [], {}, []
mine = os.getppid() == int(os.environ["BENCH_PROCESS"])
size_after = int(os.environ["BENCH_SIZE_AFTER"])

def pytest_runtest_logstart(nodeid, location):
    starts.append(time.monotonic())

def pytest_runtest_logreport(report):
    if report.failed:
        failures.setdefault(report.nodeid.rpartition("::")[2], time.monotonic())

def pytest_runtest_logfinish(nodeid, location):
    if mine and len(starts) == size_after:
        import psutil
        pytest = psutil.Process()
        sizes.extend(one.memory_full_info().pss for one in [pytest, *pytest.children(recursive=True)])

def pytest_unconfigure(config):
    if mine:
        found = {"starts": starts, "failures": failures, "sizes": sizes}
        with open(os.environ["BENCH_RESULT"], "w") as file:
            json.dump(found, file)
"""
OURS = """
import pytest, torch, torch.distributed as dist

@pytest.mark.ddp(world_size={ranks}, isolation="{isolation}")
class TestReduce:
"""
CONTINUOUS = """
import torch, torch.distributed as dist
from torch.testing._internal.common_distributed import MultiProcContinuousTest

class TestReduce(MultiProcContinuousTest):
    world_size = {ranks}

    @classmethod
    def backend_str(cls):
        return "gloo"
"""
PROCESS = """
import torch, torch.distributed as dist
from torch.testing._internal.common_distributed import MultiProcessTestCase

class TestReduce(MultiProcessTestCase):
    world_size = {ranks}

    def setUp(self):
        super().setUp()
        self._spawn_processes()
"""
OWN_GROUP = """
        store = dist.FileStore(self.file_name, self.world_size)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world_size)"""
ENDS = """
import ctypes, os, signal, time
import pytest, torch, torch.distributed as dist

def end(way):
    if way == "exit":
        os._exit(3)
    elif way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "segfault":
        ctypes.string_at(0)
    raise ValueError(way)

@pytest.mark.parametrize("number", range({count}))
@pytest.mark.parametrize("way", {ways})
@pytest.mark.ddp(world_size={ranks})
def test_end(ddp, way, number):
    dist.barrier()
    if ddp.rank == 1:
        time.sleep(0.05)  # the others are waiting then
        with open(os.environ["BENCH_RESULT"] + f".{{way}}-{{number}}", "w") as file:
            file.write(str(time.monotonic()))
        end(way)
    dist.all_reduce(torch.ones(8))
"""
PLAIN = "".join(f"def test_{number}():\n    assert True\n\n" for number in range(20))
# The server of the store is a process of its own: one that is forked must have no threads.
FLOOR = """
import gc, json, os, socket, sys, time
import torch, torch.distributed as dist

ranks, rounds = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
listening = socket.create_server(("127.0.0.1", 0))
host, port = listening.getsockname()
reading, writing = os.pipe()
if os.fork() == 0:
    os.close(writing)
    file = listening.detach()
    store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=file)
    os.read(reading, 1)  # until all others have ended
    os._exit(0)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
gc.collect()
gc.freeze()

def be_rank(number, rank):
    store = dist.PrefixStore(str(number), dist.TCPStore(host, port, wait_for_workers=False))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    tensor = torch.ones(8)
    dist.all_reduce(tensor)
    assert tensor[0] == ranks

seconds = []
for number in range(rounds):
    begun, pids = time.monotonic(), []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            try:
                be_rank(number, rank)
            finally:
                os._exit(0)
        pids.append(pid)
    assert not any([os.waitpid(pid, 0)[1] for pid in pids])
    seconds.append(time.monotonic() - begun)
print(json.dumps(seconds))
"""


@dataclass(frozen=True)
class Figure:
    """A line of the report: seconds, bytes or a ratio, as `unit` says."""

    name: str
    values: tuple[float, ...]
    unit: str
    limit: float | None = None

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def missed(self) -> bool:
        """Whether it has a limit and is beyond it."""
        return self.limit is not None and self.value > self.limit

    def __str__(self) -> str:
        text = f"{self.name:52}{self._shown(self.value):>12}"
        if len(self.values) > 1:
            text += f"  ({self._shown(min(self.values))} to {self._shown(max(self.values))})"
        if self.limit is not None:
            text += f", at most {self._shown(self.limit)}{'  MISSED' if self.missed else ''}"
        return text

    def _shown(self, value: float) -> str:
        if self.unit == "bytes":
            return f"{value / 1e6:.0f} MB"
        return f"{value:.3f} x" if self.unit == "ratio" else f"{value * 1e3:.1f} ms"


Figures = Iterator[Figure]


def pooled(sizes: Sequence[int], rounds: int) -> Figures:
    """The parts `pooled` and `memory`, of the same sessions."""
    for ranks in sizes:
        mine, theirs = in_turn(
            rounds,
            partial(session, file_of(OURS, ranks, POOLED), sized_at=POOLED - 1),
            # After its last test torch's ranks would have ended.
            partial(session, file_of(CONTINUOUS, ranks, POOLED), *WITHOUT_US, sized_at=POOLED - 1),
        )
        sides = {"ours": marginals(mine), "MultiProcContinuousTest": marginals(theirs)}
        yield from compared(f"pooled, {ranks} ranks", sides, "seconds", {2: 0.5, FOUR: 0.8}.get(ranks))
        sides = {
            "ours": [sum(one["sizes"]) for one in mine],
            "MultiProcContinuousTest": [sum(one["sizes"]) for one in theirs],
        }
        yield from compared(f"memory, {ranks} ranks", sides, "bytes", 0.4 if ranks == FOUR else None)


def suite(_: Sequence[int], rounds: int) -> Figures:
    """The part `suite`."""
    mine, theirs = in_turn(
        rounds,
        partial(session, file_of(OURS, FOUR, SUITE)),
        partial(session, file_of(CONTINUOUS, FOUR, SUITE), *WITHOUT_US),
    )
    sides = {
        "ours": [one["seconds"] for one in mine],
        "MultiProcContinuousTest": [one["seconds"] for one in theirs],
    }
    yield from compared(f"suite of {SUITE}, {FOUR} ranks", sides, "seconds", 0.4)


def fresh(_: Sequence[int], rounds: int) -> Figures:
    """The part `fresh`."""
    mine, theirs, least = in_turn(
        rounds,
        partial(session, file_of(OURS, FOUR, FRESH, isolation="fresh")),
        partial(session, file_of(PROCESS, FOUR, SPAWNED, before=OWN_GROUP), *WITHOUT_US),
        partial(floor, FOUR),
    )
    name, took = f"fresh, {FOUR} ranks", marginals(mine)
    sides = {"ours": took, "MultiProcessTestCase": marginals(theirs)}
    yield from compared(name, sides, "seconds", 1 / 40)
    yield from list(compared(name, {"ours": took, "floor": least}, "seconds", 1.3))[1:]


def death(_: Sequence[int], rounds: int) -> Figures:
    """The part `death`."""
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for _round in range(rounds):
        result = session(ENDS.format(count=DEATHS, ways=WAYS, ranks=FOUR), failing=True)
        for case, died in result["died"].items():
            took[case.partition("-")[0]].append(result["failures"][f"test_end[{case}]"] - died)
    for way, seconds in took.items():
        limit = 0.8 if way == "raise" else 0.3
        yield Figure(f"death by {way} to the report, {FOUR} ranks", tuple(seconds), "seconds", limit)


def without(_: Sequence[int], rounds: int) -> Figures:
    """The part `without`, in which no other plugin loads what ours would have to."""
    both = in_turn(
        PLAIN_PAIRS * rounds,
        partial(session, PLAIN, "-p", "pytest_esper_ddp.plugin", alone=True),
        partial(session, PLAIN, alone=True),
    )
    with_us, bare = ([one["seconds"] for one in side] for side in both)
    yield Figure("without ranks, with the plugin", tuple(with_us), "seconds")
    yield Figure("without ranks, without it", tuple(bare), "seconds")
    more = tuple(one - other for one, other in zip(with_us, bare, strict=True))
    yield Figure("without ranks, difference", more, "seconds", 0.010)
    # Without what each side waited for a processor; how fast that was is in both.
    with_us, bare = ([one["processor"] for one in side] for side in both)
    more = tuple(one - other for one, other in zip(with_us, bare, strict=True))
    yield Figure("without ranks, difference in processor time", more, "seconds")


PARTS: dict[str, Callable[[Sequence[int], int], Figures]] = {
    "pooled": pooled,
    "suite": suite,
    "fresh": fresh,
    "death": death,
    "without": without,
}


def file_of(head: str, ranks: int, count: int, *, before: str = "", isolation: str = "pool") -> str:
    """A test file: as many methods of a class, of which `before` comes before the body."""
    text = head.format(ranks=ranks, isolation=isolation)
    body = before + BODY.format(ranks=ranks)
    return text + "".join(f"\n    def test_{number:03}(self):{body}\n" for number in range(count))


def floor(ranks: int) -> float:
    """Seconds to fork as many ranks, have them make a group and reduce once, and see them end."""
    done = subprocess.run(
        [sys.executable, "-c", FLOOR, str(ranks), str(FRESH)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    took: list[float] = json.loads(done.stdout)
    return statistics.median(took)


def session(
    text: str, *arguments: str, sized_at: int = 0, failing: bool = False, alone: bool = False
) -> dict[str, Any]:
    """One pytest session, `alone` without installed plugins: its seconds, and what the conftest noted."""
    with tempfile.TemporaryDirectory(prefix="bench-harness.") as name:
        folder = Path(name)
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_bench.py").write_text(text)
        found = folder / "result.json"
        environment = {
            "PYTHONDONTWRITEBYTECODE": "",  # who has it set compiles each plugin anew in each session
            "OMP_NUM_THREADS": "1",
            "BENCH_PROCESS": str(os.getpid()),
            "BENCH_RESULT": str(found),
            "BENCH_SIZE_AFTER": str(sized_at),
            **({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} if alone else {}),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
        begun, processor = time.monotonic(), processor_time()
        done = subprocess.run(
            [*command, *arguments, "test_bench.py"],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds, processor = time.monotonic() - begun, processor_time() - processor
        if done.returncode != int(failing):
            sys.exit(f"a session ended with status {done.returncode}\n{done.stdout}\n{done.stderr}")
        result: dict[str, Any] = json.loads(found.read_text())
        died = {path.suffix[1:]: float(path.read_text()) for path in folder.glob("result.json.*")}
    return {"seconds": seconds, "processor": processor, "died": died, **result}


def processor_time() -> float:
    """Seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def marginals(results: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds from a test's start to the next one's: the median of each session."""
    return [statistics.median(after - before for before, after in pairwise(one["starts"])) for one in results]


def in_turn(rounds: int, *sides: Callable[[], Any]) -> list[list[Any]]:
    """What each side gives, by side; who begins alternates, so that drift meets all."""
    found: list[list[Any]] = [[] for _ in sides]
    for number in range(rounds):
        order = list(enumerate(sides))
        for index, side in order if number % 2 == 0 else reversed(order):
            found[index].append(side())
    return found


def compared(name: str, sides: dict[str, list[float]], unit: str, limit: float | None) -> Figures:
    """Both sides, and the ratio of those that ran beside each other."""
    (mine, took), (other, least) = sides.items()
    yield Figure(f"{name}, {mine}", tuple(took), unit)
    yield Figure(f"{name}, {other}", tuple(least), unit)
    ratios = tuple(one / beside for one, beside in zip(took, least, strict=True))
    yield Figure(f"{name}, ratio to {other}", ratios, "ratio", limit)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="memory is in pooled")
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 8], help="of pooled (2, 4 and 8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if missing := [name for name in ("expecttest", "psutil") if find_spec(name) is None]:
        sys.exit(f"{missing[0]} is not installed: .venv/bin/pip install -c ci/constraints.txt -e '.[bench]'")
    figures: list[Figure] = []
    for part in options.only:
        for figure in PARTS[part](options.ranks, options.rounds):
            print(figure, flush=True)
            figures.append(figure)
    if options.json is not None:
        told = [{**asdict(one), "value": one.value, "missed": one.missed} for one in figures]
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if any(figure.missed for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
