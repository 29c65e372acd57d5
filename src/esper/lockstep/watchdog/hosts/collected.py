"""A run that goes on, as its hosts have told of it: their ledgers, and how their ranks were then."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

from esper.lockstep.postmortem.afterwards import Afterwards
from esper.lockstep.postmortem.files import Left
from esper.lockstep.proof.view import Ended
from esper.lockstep.record.entry import Entry
from esper.lockstep.run.natives import NativeCalls
from esper.lockstep.watchdog.hosts.facts import Facts


class Collected(Afterwards):
    """Times are those of the host that judges."""

    def __init__(
        self,
        left: Left,
        now: float,
        *,
        behind: Mapping[int, float],
        entered: Mapping[int, Mapping[str, int]],
        facts: Mapping[int, Facts],
        silent: Mapping[int, float],
        gone: Mapping[int, float],
        starved: Callable[[int, float], float],
    ) -> None:
        """`behind`: by how many seconds each rank's clock is; `silent`: since when nothing was heard of a
        rank, of those of whom nothing is; `gone`: when one was last heard of whose process is; `starved`: as
        the proof asks it.
        """
        self.facts, self.silent, self.gone = facts, silent, gone
        self._now, self._starved = now, starved
        super().__init__(left, behind=behind, entered=entered)
        for seen in self.view.ranks:
            seen.vanished = False
            one = facts.get(seen.rank)
            if one is not None and one.ended is not None:
                seen.ended = Ended(one.code, one.ended + self._ahead[seen.rank])
            elif seen.rank in gone:
                seen.ended = Ended(None, gone[seen.rank])
        self._natives = {
            rank: NativeCalls(witness.ledger, partial(self._clock, rank))
            for rank, witness in self._witnesses.items()
        }

    def _clock(self, rank: int) -> float:
        return self._now - self._ahead[rank]

    def over(self, rank: int) -> bool:
        """Whether the rank is watched no more, and may go on."""
        return super().over(rank) and (rank not in self.facts or self.facts[rank].ended is None)

    def asleep(self, entry: Entry) -> bool:
        return entry.thread in self.facts[entry.rank].asleep

    def under_way(self, entry: Entry, besides: Collection[int]) -> bool:
        return self._natives[entry.rank].under_way(entry.thread, besides)

    def state(self, rank: int) -> str:
        return self.facts[rank].state if rank in self.facts else "S"

    def starved(self, rank: int, since: float) -> float:
        return self._starved(rank, since)

    def compiled(self, rank: int, since: float) -> float:
        if rank not in self._witnesses:
            return 0.0
        in_all = self._witnesses[rank].ledger.compiled(self._clock(rank))[0]
        return max(0.0, min(in_all, self._now - since))

    def stopped_since(self, rank: int) -> float | None:
        if rank in self.silent:
            return self.silent[rank]
        since = self.facts[rank].stopped_since if rank in self.facts else None
        return None if since is None else since + self._ahead[rank]
