"""Ranks in a job that is not followed, since its ranks are not those of the launch.

That they wait can be told, for whom can't: so nobody is accused there, and nothing passes for compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esper.lockstep.proof.finding import Patience, ranks_text
from esper.lockstep.proof.view import RankView, View
from esper.lockstep.record.entry import Entry, Flag, Site
from esper.lockstep.report.diagnosis import short_site, tensor_text
from esper.lockstep.run.process import SleepWatch, kept_waiting

_BETWEEN_LOOKS = 0.1
_ANSWER_WITHIN = 1.0  # the run ends, so there is time for a line
_MOST_NAMED = 4  # ranks, in one sentence
_APART = (
    "in a job that is not followed, since its ranks are not those of the launch: who keeps whom waiting is "
    "not known"
)
_UNCONNECTED = (
    "in init_process_group, which every rank has entered: torch has not connected them, as happens when a "
    "job is joined again at a store that still has the addresses of the time before"
)


class ApartWatch:
    """Follows the waits in such jobs from poll to poll, and those for torch to connect a job."""

    def __init__(
        self, view: View, pids: Sequence[int], patience: Patience, compiled: Callable[[int], float]
    ) -> None:
        """`patience`: how long a wait may last. `compiled`: for how many seconds a rank has, until now."""
        self._view, self._pids, self._patience, self._compiled = view, pids, patience, compiled
        self._next_look = 0.0
        self._sleep = SleepWatch(patience.running)
        # By rank and record: how long each process had been kept from a processor, and had compiled, when
        # the wait was first seen. Any of them may be the one that is late, and that time is not its own.
        self._before: dict[tuple[int, int], list[tuple[float, float]]] = {}

    def stuck(self, now: float) -> list[Entry]:
        """The calls that ranks wait in, once one of them has waited there longer than the patience."""
        failed = any(seen.ended is not None and seen.ended.code for seen in self._view.ranks)
        if failed or now < self._next_look:  # a failed run has the status of its script
            return []
        self._next_look = now + _BETWEEN_LOOKS
        waits = [entry for seen in self._view.ranks if not seen.left for entry in self._waits(seen, now)]
        self._before = {
            place: self._before.get(place) or self._not_their_own()
            for place in ((entry.rank, entry.number) for entry in waits)
        }
        long = [entry for entry in waits if self._too_long(entry, now)]
        if not long:
            return []
        # Asked last, since asking wakes a thread.
        sure = [entry for entry in waits if not entry.native or self._view.live.asleep(entry)]
        return sure if any(entry in sure for entry in long) else []

    def _waits(self, seen: RankView, now: float) -> list[Entry]:
        found = []
        for entry in list(seen.calls_apart):
            fresh = self._view.refresh(entry)
            # The end of a wait in C++ is not recorded, but nothing follows it while it lasts.
            passed = entry.native and seen.last_of_thread[entry.thread].number != entry.number
            if fresh is None or passed or _over(fresh):
                seen.calls_apart.remove(entry)
            elif fresh.waiting_since(now) is not None:
                found.append(fresh)
        # Where one has ended it is known for whom the others wait.
        if all(one.ended is None for one in self._view.ranks):
            found += self._view.unconnected(seen.rank)
        return found

    def _too_long(self, entry: Entry, now: float) -> bool:
        if entry.native:
            # Whether it still waits is not recorded: its thread must not have run for all that time.
            return self._sleep.asleep(self._pids[entry.rank], entry.thread)
        since = entry.waiting_since(now)
        before = self._before[entry.rank, entry.number]
        excused = max(
            kept - kept_before + min(compiled - compiled_before, self._patience.compiling)
            for (kept, compiled), (kept_before, compiled_before) in zip(
                self._not_their_own(), before, strict=True
            )
        )
        return since is not None and now - since > self._patience.running + excused

    def _not_their_own(self) -> list[tuple[float, float]]:
        return [(kept_waiting(pid), self._compiled(rank)) for rank, pid in enumerate(self._pids)]

    def text(
        self, waits: Sequence[Entry], now: float, line_of: Callable[[int, float], tuple[str, Site | None]]
    ) -> str:
        """What is said of a run in which these waits have lasted too long."""
        ranks = self._view.ranks
        longest = max(now - (entry.waiting_since(now) or now) for entry in waits)
        waiting = {entry.rank for entry in waits}
        verb = "waits" if len(waiting) == 1 else "wait"
        why = _APART if any(entry.group in ranks[entry.rank].apart for entry in waits) else _UNCONNECTED
        lines = [f"{ranks_text(waiting)} {verb} for {longest:.1f} s {why}"]
        for entry in waits:
            call = f"{entry.op} #{entry.sequence}{tensor_text(entry)}"
            there = ranks[entry.rank].apart.get(entry.group)
            place = f" ({there} there)" if there is not None else ""
            lines.append(f"  rank {entry.rank}{place} waits in {call}  {short_site(entry.site)}")
        for seen in ranks:
            if seen.rank in waiting:
                continue
            if seen.ended is not None:
                lines.append(f"  rank {seen.rank} has ended")
                continue
            state, site = line_of(seen.rank, _ANSWER_WITHIN)
            lines.append(f"  rank {seen.rank} is {state}  {short_site(site)}")
        return "\n".join(lines)


def _over(entry: Entry) -> bool:
    flags = entry.times.flags
    return bool(flags & Flag.REFUSED or (entry.times.wait_ended and not flags & Flag.FAILED))


def not_compared(view: View) -> str | None:
    """What to say of a run at whose end some of what was done had been compared with nothing; None where all
    was.
    """
    places = [
        f"rank {seen.rank} as {next(reversed(seen.apart.values()))}" for seen in view.ranks if seen.apart
    ]
    if not places:
        return None
    more = [f"{len(places) - _MOST_NAMED} more"] if len(places) > _MOST_NAMED else []
    return (
        f"not compared: what ranks did in a job whose ranks are not those of the launch "
        f"({', '.join(places[:_MOST_NAMED] + more)})"
    )
