"""A run told event by event, as its ledgers would hold it: builds the `View` that the proof reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from esper.lockstep.proof.finding import Finding, Patience
from esper.lockstep.proof.prove import only_time_decides, prove
from esper.lockstep.proof.view import Ended, View
from esper.lockstep.record.entry import Entry, Flag, Kind, Site, Times

ENDLESS = Patience(running=1e9, stopped=1e9)
TWO_SECONDS = Patience(running=2.0, stopped=0.5)
ASYNC = Flag(0)
NATIVE = Flag.WAITED | Flag.NATIVE
_TICK = 0.01


@dataclass
class Story:
    """N ranks, all in the group `default`, with one thread each; `now` moves with each event."""

    world_size: int
    now: float = 100.0
    threads_of: dict[int, int] = field(default_factory=dict)
    awake: set[int] = field(default_factory=set)
    letters: dict[int, str] = field(default_factory=dict)
    stopped: dict[int, float] = field(default_factory=dict)
    starving: dict[int, float] = field(default_factory=dict)
    compiling: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.view = View(self.world_size, self)
        self._times: dict[tuple[int, int], Times] = {}
        self._overwritten: set[tuple[int, int]] = set()
        self._native: list[Entry] = []
        self._records = [0] * self.world_size
        self._sequences: dict[tuple[int, str], int] = {}
        self.group("default", *range(self.world_size))

    # What the ranks do.

    def group(self, name: str, *members: int) -> None:
        for rank in members:
            self.write(rank, Kind.GROUP, group=name, detail={"ranks": list(members)})

    def call(
        self,
        rank: int,
        op: str = "all_reduce",
        group: str = "default",
        *,
        reduce_op: str | None = None,
        dtype: str | None = "float32",
        elements: int = 4,
        root: int = -1,
        tag: str | None = None,
        flags: Flag = Flag.WAITED,
        thread: int = 0,
        skip: int = 0,
        legible: bool = True,
    ) -> Entry:
        """A collective is entered, and waited for; `skip` records before it were lost."""
        sequence = self._sequences.get((rank, group), 0) + skip
        self._sequences[rank, group] = sequence + 1
        return self.write(
            rank,
            Kind.COLLECTIVE,
            group=group,
            sequence=sequence,
            op=op,
            reduce_op=reduce_op,
            dtype=dtype,
            elements=elements,
            root=root,
            tag=tag,
            flags=flags,
            thread=thread or rank + 1,
            legible=legible,
        )

    def point(
        self,
        rank: int,
        op: str,
        peer: int,
        group: str = "default",
        *,
        p2p_tag: int = 0,
        flags: Flag = Flag.WAITED,
        skip: int = 0,
        shape: tuple[int, ...] = (4,),
        dtype: str = "float32",
    ) -> Entry:
        """A send or a receive; `peer` counts in the group, -1 is any source."""
        key = f"p2p:{group}"
        sequence = self._sequences.get((rank, key), 0) + skip
        self._sequences[rank, key] = sequence + 1
        detail: dict[str, object] = {"tag": p2p_tag} if p2p_tag else {}
        return self.write(
            rank,
            Kind.COLLECTIVE,
            group=key,
            sequence=sequence,
            op=op,
            peer=peer,
            dtype=dtype,
            shape=shape,
            flags=flags,
            thread=rank + 1,
            detail=detail,
        )

    def begin_wait(self, entry: Entry, *, polled: bool = False) -> None:
        times = self._times[entry.rank, entry.number]
        flags = times.flags | Flag.POLLED if polled else times.flags & ~Flag.POLLED
        self._stamp(entry, times._replace(wait_begun=self.tick(), flags=flags))

    def come_back(self, *entries: Entry, failed: bool = False) -> None:
        for entry in entries:
            times = self._times[entry.rank, entry.number]
            flags = times.flags | Flag.FAILED if failed else times.flags & ~Flag.FAILED
            self._stamp(entry, times._replace(wait_ended=self.tick(), flags=flags))

    def finish(self, entry: Entry) -> None:
        """The backend is done with a call from C++, and its kernel records that."""
        self._stamp(entry, self._times[entry.rank, entry.number]._replace(done=self.tick()))

    def take(self, entry: Entry) -> None:
        """The backend takes a call that was only offered to it."""
        times = self._times[entry.rank, entry.number]
        self._stamp(entry, times._replace(flags=times.flags & ~Flag.OFFERED))

    def refuse(self, entry: Entry) -> None:
        """The backend refuses a call, and the next one has its number."""
        times = self._times[entry.rank, entry.number]
        flags = times.flags & ~Flag.OFFERED | Flag.FAILED | Flag.REFUSED
        self._stamp(entry, times._replace(wait_ended=self.tick(), flags=flags))
        self._sequences[entry.rank, entry.group] -= 1

    def overwrite(self, entry: Entry) -> None:
        """The ring is used again where this entry was."""
        self._overwritten.add((entry.rank, entry.number))

    def raises(self, rank: int, *, victim: bool = False, leaves: bool = True, line: int = 7) -> None:
        self.write(
            rank,
            Kind.RAISED,
            detail={"type": "ValueError", "text": "bad", "victim": victim, "leaves": leaves},
            site=Site("/raise.py", line, "f"),
        )

    def exits(self, rank: int, code: int = 0, *, victim: bool = False, leaves: bool = True) -> None:
        self.write(rank, Kind.EXIT, detail={"code": code, "victim": victim, "leaves": leaves})

    def destroys(self, rank: int, group: str = "default", *, error: str = "", victim: bool = False) -> None:
        detail: dict[str, object] = {"error": error, "victim": victim} if error else {}
        self.write(rank, Kind.DESTROY, group=group, detail=detail)

    def ends_program(self, rank: int) -> None:
        self.write(rank, Kind.OVER)

    def ends_process(self, rank: int, code: int = 0) -> None:
        self.view.ranks[rank].ended = Ended(code, self.tick())

    # What is seen from outside.

    def prove(
        self, *, later: float = 0.0, patience: Patience = ENDLESS, final: bool = False
    ) -> Finding | None:
        self.now += later
        finding = prove(self.view, self.now, patience, final=final)
        if finding is not None and patience == ENDLESS and not final:  # a supervisor would not have asked
            assert not only_time_decides(self.view)
        return finding

    def found(self, **how: object) -> tuple[str, list[int]] | None:
        """(kind, guilty ranks) of what is proved now."""
        finding = self.prove(**how)  # type: ignore[arg-type]
        return None if finding is None else (finding.kind, sorted(finding.guilty))

    def tick(self) -> float:
        self.now += _TICK
        return self.now

    def times(self, entry: Entry) -> Times | None:
        place = (entry.rank, entry.number)
        return None if place in self._overwritten else self._times[place]

    def threads(self, rank: int) -> int:
        return self.threads_of.get(rank, 1)

    def under_way(self, entry: Entry, besides: Collection[int]) -> bool:
        others = [one for one in self._native if one.rank == entry.rank and one.number not in besides]
        times = [self.times(one) for one in others if one.thread == entry.thread]
        return any(one is not None and not (one.done or one.wait_ended) for one in times)

    def asleep(self, entry: Entry) -> bool:
        return entry.rank not in self.awake

    def state(self, rank: int) -> str:
        return self.letters.get(rank, "R")

    def starved(self, rank: int, since: float) -> float:
        return self.starving.get(rank, 0.0)

    def compiled(self, rank: int, since: float) -> float:
        return self.compiling.get(rank, 0.0)

    def audit(self, entry: Entry) -> tuple[int, ...] | None:
        return None

    def stopped_since(self, rank: int) -> float | None:
        return self.stopped.get(rank)

    def _stamp(self, entry: Entry, times: Times) -> None:
        self._times[entry.rank, entry.number] = times

    def write(
        self,
        rank: int,
        kind: Kind,
        *,
        flags: int = 0,
        thread: int = 0,
        detail: dict[str, object] | None = None,
        **fields: object,
    ) -> Entry:
        number = self._records[rank]
        self._records[rank] += 1
        times = Times(self.tick(), 0.0, 0.0, 0.0, thread or rank + 1, int(flags))
        self._times[rank, number] = times
        entry = _BLANK._replace(
            rank=rank,
            number=number,
            kind=kind,
            times=times,
            detail=detail or {},
            **fields,  # type: ignore[arg-type]
        )
        self.view.fold([entry])
        if flags & Flag.NATIVE:
            self._native.append(entry)
        return entry


_BLANK = Entry(
    rank=0,
    number=0,
    kind=Kind.COLLECTIVE,
    group="",
    sequence=0,
    op="",
    reduce_op=None,
    dtype=None,
    shape=None,
    site=Site("/program.py", 1, "step"),
    tag=None,
    detail={},
    root=-1,
    peer=-1,
    elements=0,
    digest=0,
    times=Times(0.0, 0.0, 0.0, 0.0, 0, 0),
)


def in_step(world_size: int, times: int = 1) -> Story:
    """All ranks have done `times` all_reduces together."""
    story = Story(world_size)
    for _ in range(times):
        story.come_back(*[story.call(rank) for rank in range(world_size)])
    return story
