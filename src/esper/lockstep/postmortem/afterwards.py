"""What the proof asks about live ranks, as far as their files can answer for them."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter

from esper.lockstep.postmortem.files import Left, Witness
from esper.lockstep.proof.view import View
from esper.lockstep.record.audits import read_audit
from esper.lockstep.record.entry import Entry, State, Times
from esper.lockstep.record.manifest import Manifest

# A rank says once in about a second that it is there; on a machine that is busy it may be late with that.
SILENT_AFTER = 5.0
# Of two ledgers without their hosts' names: a clock on a wall that is moved by more was another machine's.
_SAME_CLOCK = 60.0


class Afterwards:
    """A run whose processes nobody can ask any more; times are those of its first legible ledger's clock."""

    def __init__(
        self,
        left: Left,
        *,
        behind: Mapping[int, float] | None = None,
        entered: Mapping[int, Mapping[str, int]] | None = None,
    ) -> None:
        """Fold all that the ledgers hold into `view`. `behind`: by how many seconds each rank's clock is
        behind; by default what their clocks on the wall say. `entered`: how many collectives of each group
        a rank has entered, of ranks of which that is known besides.
        """
        self._left, self._witnesses = left, left.witnesses
        self._ahead = _shifts(left.witnesses, left.manifest) if behind is None else behind
        self._entered = entered or {}
        self.view = View(left.world_size, self)
        # When the last sign of life came from any rank.
        self.end = max((self.last_heard(rank) for rank in self._witnesses), default=0.0)
        self._introduce()
        for entry in heapq.merge(*map(self._entries, self._witnesses), key=attrgetter("issued")):
            self.view.fold([entry])
        for seen in self.view.ranks:
            seen.vanished = not seen.left and not self.over(seen.rank)

    @property
    def known(self) -> Collection[int]:
        """The ranks whose ledgers can be read."""
        return self._witnesses.keys()

    @property
    def clock_offset(self) -> float:
        """What is to be added to a time for seconds of the Unix epoch."""
        return next((one.ledger.clock_offset for one in self._witnesses.values()), 0.0)

    def last_heard(self, rank: int) -> float:
        """When the rank's last sign of life came."""
        return self._witnesses[rank].last + self._ahead[rank]

    def over(self, rank: int) -> bool:
        """Whether the rank has said that it is over, or is watched no more."""
        return rank in self._witnesses and self._witnesses[rank].ledger.state() is State.OVER

    def silent_for(self, rank: int) -> float | None:
        """For how long nothing was heard of the rank before the end; None where it was heard of until then,
        or says nothing of itself but what it does.
        """
        if rank not in self._witnesses or not self._witnesses[rank].beats or self.over(rank):
            return None
        seconds = self.end - self.last_heard(rank)
        return seconds if seconds > SILENT_AFTER else None

    def _introduce(self) -> None:
        """What is to be known before the first record: who is in the groups, and whose records of them are
        lost.
        """
        matching = self.view.matching
        for rank, witness in self._witnesses.items():
            for name, detail in witness.ledger.groups().items():
                matching.group(name, tuple(detail.get("ranks", ())))
                if "apart" in detail:
                    self.view.ranks[rank].apart[name] = detail["apart"]
        groups = frozenset().union(*(witness.groups for witness in self._witnesses.values()))
        for rank in range(self._left.world_size):
            if rank not in self._witnesses:
                matching.unknown(rank)
                continue
            witness = self._witnesses[rank]
            for name in groups if witness.ledger.wrapped else ():
                if rank not in matching.members(name.removeprefix("p2p:")):
                    continue
                if name.startswith("p2p:"):
                    matching.unknown(rank)  # which sends met which receives is not to be known any more
                elif name not in witness.groups:
                    self._unseen(rank, name)
        for rank, witness in self._witnesses.items():
            if self.over(rank) and not witness.ends:
                matching.unknown(rank)  # it may have gone on when it was watched no more
            if not all(matching.members(name.removeprefix("p2p:")) for name in witness.groups):
                matching.unknown(rank)

    def _unseen(self, rank: int, group: str) -> None:
        """It may have been there before what its ring holds."""
        if rank in self._entered:
            self.view.matching.unknown(rank, group, self._entered[rank].get(group, 0))
        else:
            self.view.matching.unknown(rank, group)

    def _entries(self, rank: int) -> Iterator[Entry]:
        ahead = self._ahead[rank]
        records = self._witnesses[rank].ledger.records()
        return records if not ahead else (one._replace(times=_shifted(one.times, ahead)) for one in records)

    # What the proof asks.

    def times(self, entry: Entry) -> Times | None:
        times = self._witnesses[entry.rank].ledger.times(entry.number)
        return None if times is None else _shifted(times, self._ahead[entry.rank])

    def threads(self, rank: int) -> int:
        return self._witnesses[rank].ledger.threads() if rank in self._witnesses else 0

    def asleep(self, entry: Entry) -> bool:
        return False  # nobody has looked

    def under_way(self, entry: Entry, besides: Collection[int]) -> bool:
        return True

    def state(self, rank: int) -> str:
        return "R" if self.silent_for(rank) is None else "S"

    def starved(self, rank: int, since: float) -> float:
        """At most what a rank did not get to say that it is there: all may have been stopped meanwhile."""
        found = 0.0
        for one, witness in self._witnesses.items():
            gaps, ended = witness.ledger.gaps()
            if ended and ended + self._ahead[one] > since:
                found = max(found, gaps)
        return max(0.0, min(found, self.end - since))

    def compiled(self, rank: int, since: float) -> float:
        """At most: how long it compiled in all is recorded, and not when."""
        if rank not in self._witnesses:
            return 0.0
        in_all = self._witnesses[rank].ledger.compiled(self.end - self._ahead[rank])[0]
        return max(0.0, min(in_all, self.end - since))

    def audit(self, entry: Entry) -> tuple[int, ...] | None:
        try:
            return read_audit(self._left.run_dir, entry.rank, entry.elements)
        except struct.error:  # a count that no rank has written
            return None

    def stopped_since(self, rank: int) -> float | None:
        return None if self.silent_for(rank) is None else self.last_heard(rank)


def _shifts(witnesses: Mapping[int, Witness], manifest: Manifest | None) -> dict[int, float]:
    """By how many seconds each rank's clock is behind the first one's."""
    hosts = {} if manifest is None else manifest.hosts
    offsets: dict[str | int, float] = {}  # one for all ranks of a host: the clock on the wall may be set
    found, first = {}, None
    for rank, witness in witnesses.items():
        offset = offsets.setdefault(hosts.get(rank, rank), witness.ledger.clock_offset)
        first = offset if first is None else first
        known = rank in hosts and len(hosts) > 1
        found[rank] = offset - first if known or abs(offset - first) > _SAME_CLOCK else 0.0
    return found


def _shifted(times: Times, ahead: float) -> Times:
    if not ahead:
        return times
    issued, begun, ended, done = (one + ahead if one else 0.0 for one in times[:4])
    return Times(issued, begun, ended, done, times.thread, times.flags)
