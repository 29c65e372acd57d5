"""What the proof costs with many ranks: ledgers of 1,000 records each, and one culprit among them.

    .venv/bin/python ci/bench/proof.py [--ranks 100 1000] [--kinds KIND ...] [--json FILE]

The ledgers are files of the project's own writer: one for each part that ranks play, then a copy for every
rank, with its number in it. Loading is timed beside, the proof after it, in turn over one large job and over
as many ranks in small ones: medians, and the ratio with its range.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from esper.lockstep.proof.finding import Finding, Patience
from esper.lockstep.proof.prove import prove
from esper.lockstep.proof.view import View
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Entry, Flag, Kind, Site, Time, Times
from esper.lockstep.record.ledger import IDENTITY, Ledger, ledger_path
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.report.message import diagnosis_of

RECORDS = 1000
CAPACITY = 1024
TIMES = 9
AT_MOST = 1.0
# The proof of one large job may take as long as that of as many ranks in small ones, and this much more.
SLACK = 1.5
PATIENCE = Patience(2.0, 0.5)


class Part:
    """What one rank, or many alike, did: written by the project's own writer."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.recorder = Recorder(Ledger(folder, 0, ranks, CAPACITY))
        self.ledger = self.recorder.ledger
        self.next: dict[str, int] = {}
        self.written = 1
        for group in ("default", "other"):
            self.recorder.event(Kind.GROUP, group=group, ranks=tuple(range(ranks)))
            self.written += 1
        self.recorder.begin("program.py")

    def call(self, op: str = "all_reduce", group: str = "default", peer: int = -1) -> int:
        """Enter a collective, and wait in it."""
        string, sequence = self.ledger.string, self.next.get(group, 0)
        self.next[group] = sequence + 1
        self.written += 1
        return self.ledger.append(
            Kind.COLLECTIVE,
            string(group),
            sequence,
            string(op),
            string("SUM" if op == "all_reduce" else None),
            string("torch.float32"),
            string((1024,)),
            string(Site("/work/program.py", 70 + sequence % 7, "Trainer.step")),
            peer=peer,
            elements=1024,
            thread=1,
            flags=Flag.WAITED,
        )

    def work(self, records: int) -> None:
        """Collectives that all have done, until there are so many records."""
        while self.written < records:
            self.ledger.stamp(self.call(), Time.WAIT_ENDED)

    def write(self) -> tuple[bytes, bytes]:
        """Its ledger and its strings."""
        self.ledger.set_threads(1)
        self.ledger.close()
        path = self.ledger.path
        return path.read_bytes(), path.with_suffix(".strings").read_bytes()


Act = Callable[[Part, int], object]


@dataclass(frozen=True)
class Scene:
    """How it ends: what the many do, what the few do instead, and who is found guilty."""

    many: Act
    few: Callable[[int], dict[int, Act]]
    guilty: Callable[[int], list[int]]


def _over(part: Part, ranks: int) -> None:
    part.recorder.over()


SCENES = {
    "missing": Scene(lambda part, _: part.call(), lambda n: {n // 2: _over}, lambda n: [n // 2]),
    "mismatch": Scene(
        lambda part, _: part.call(),
        lambda n: {n // 2: lambda part, _: part.call("broadcast")},
        lambda n: [n // 2],
    ),
    "wait_cycle": Scene(
        lambda part, _: part.call(),
        lambda n: {n // 2: lambda part, _: part.call(group="other")},
        lambda n: [n // 2],
    ),
    "peer": Scene(
        lambda part, _: part.call("barrier"),
        lambda n: {
            1: lambda part, _: part.call("send", "p2p:default", 2),
            2: lambda part, _: part.call("recv", "p2p:default", 0),
        },
        lambda n: [2],
    ),
    "frozen": Scene(
        lambda part, _: part.call(), lambda n: {n // 2: lambda part, _: None}, lambda n: [n // 2]
    ),
}


def write(folder: Path, ranks: int, scene: Scene) -> None:
    """The ledgers of all ranks."""
    few = scene.few(ranks)
    parts: dict[int | None, tuple[bytes, bytes]] = {}
    for rank, act in [(None, scene.many), *few.items()]:
        with tempfile.TemporaryDirectory() as own:
            part = Part(Path(own), ranks)
            part.work(RECORDS - 1)
            act(part, ranks)
            parts[rank] = part.write()
    for rank in range(ranks):
        records, strings = parts[rank if rank in few else None]
        path = ledger_path(folder, rank)
        path.write_bytes(records)
        with path.open("r+b") as file:
            magic, capacity, world_size, _, pid = IDENTITY.unpack(file.read(IDENTITY.size))
            file.seek(0)
            file.write(IDENTITY.pack(magic, capacity, world_size, rank, pid))
        path.with_suffix(".strings").write_bytes(strings)


class Files:
    """Ranks of which nothing is there but their ledgers: all asleep, as far as anybody knows."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.readers = [LedgerReader(folder, rank) for rank in range(ranks)]

    def times(self, entry: Entry) -> Times | None:
        return self.readers[entry.rank].times(entry.number)

    def threads(self, rank: int) -> int:
        return self.readers[rank].threads()

    def under_way(self, entry: Entry, besides: Collection[int]) -> bool:
        return False

    def asleep(self, entry: Entry) -> bool:
        return True

    def state(self, rank: int) -> str:
        return "S"

    def audit(self, entry: Entry) -> tuple[int, ...] | None:
        return None

    def starved(self, rank: int, since: float) -> float:
        return 0.0

    def compiled(self, rank: int, since: float) -> float:
        return 0.0

    def stopped_since(self, rank: int) -> float | None:
        return None


class Loaded:
    """The ledgers of some ranks with a culprit among them, loaded."""

    def __init__(self, folder: Path, ranks: int, kind: str) -> None:
        scene = SCENES[kind]
        write(folder, ranks, scene)
        begun = time.perf_counter()
        self._live = Files(folder, ranks)
        self.view = View(ranks, self._live)
        self.records = 0
        for reader in self._live.readers:
            entries = list(reader.new())
            self.records += len(entries)
            self.view.fold(entries)
        self.seconds = time.perf_counter() - begun
        self._now = time.monotonic() + (100.0 if kind == "frozen" else 0.0)
        self._kind, self._guilty = kind, scene.guilty(ranks)

    def prove(self) -> tuple[float, Finding]:
        """Seconds of a proof, and what it found. Ends where another culprit is found."""
        begun = time.perf_counter()
        finding = prove(self.view, self._now, PATIENCE)
        seconds = time.perf_counter() - begun
        found = finding and (finding.kind, sorted(finding.guilty))
        if finding is None or found != (self._kind, self._guilty):
            raise SystemExit(f"{self._kind} among {len(self.view.ranks)} ranks: {found}")
        return seconds, finding

    def say(self) -> float:
        """Seconds to put it in words."""
        finding = self.prove()[1]
        begun = time.perf_counter()
        settled = self.view.matching.last_settled(finding.group.removeprefix("p2p:"))
        diagnosis_of(finding, decided=self._now, last_settled=settled)
        return time.perf_counter() - begun

    def close(self) -> None:
        for reader in self._live.readers:
            reader.close()


def measure(folder: Path, few: int, many: int, kind: str) -> dict[str, float]:
    """Of one kind: seconds of a proof over few ranks and over many, and how much longer one over many takes
    than as many ranks in small jobs, proved one after the other: both sides go through as much memory.
    """
    small, large = [], Loaded(folder, many, kind)
    for number in range(many // few):
        place = folder / str(number)
        place.mkdir()
        small.append(Loaded(place, few, kind))
    first, _ = large.prove()
    ones, alls, ratios = [], [], []
    for _ in range(TIMES):
        several = [one.prove()[0] for one in small]
        whole, _ = large.prove()
        ones += several
        alls.append(whole)
        ratios.append(whole / sum(several))
    found = {
        "few": statistics.median(ones),
        "many": statistics.median(alls),
        "first": first,
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "records_per_ms": large.records / large.seconds / 1000,
        "say": large.say(),
    }
    for one in (large, *small):
        one.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs=2, default=[100, 1000], metavar=("FEW", "MANY"))
    parser.add_argument("--kinds", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    few, many = options.ranks
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # a reader has two open
    result: dict[str, dict[str, float]] = {}
    good = True
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            found = result[kind] = measure(Path(folder), few, many, kind)
        fine = found["first"] <= AT_MOST * many / 1000 and found["ratio"] <= SLACK
        good = good and fine
        print(
            f"{kind:10}  {few} ledgers {found['few'] * 1000:6.2f} ms, {many} {found['many'] * 1000:7.2f} ms"
            f" (first {found['first'] * 1000:.0f}, in words {found['say'] * 1000:.0f}):"
            f" {found['ratio']:5.2f} times linear ({found['least']:.2f} to {found['most']:.2f});"
            f" loading {found['records_per_ms']:.0f} records a ms{'' if fine else '  MISSED'}",
            flush=True,
        )
    print(f"at most {AT_MOST} s for 1000 ledgers, and {SLACK} times linear")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
