"""Tells a run of the reference to a `Story`, step by step, as its ledgers would hold it."""

from __future__ import annotations

from esper.lockstep.record.entry import Entry, Flag, Kind
from tests.esper.lockstep.machine import ANY, At, Issue, Run, State, Step, start, steps
from tests.esper.lockstep.story import ASYNC, NATIVE, Story


class Telling:
    """Where a run is, and the ledgers it has left so far."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.state = start(run)
        self.story = Story(len(run.programs))
        self._entries: dict[At, Entry] = {}
        self._numbers: dict[tuple[int, str], int] = {}
        for name, members in run.groups.items():
            self.story.group(name, *members)

    @property
    def broken(self) -> bool:
        return any(at.broken for at in self.state.ranks)

    def may_be_elsewhere(self, place: At) -> bool:
        """Whether the thread that waits in this call may be in another one, as its ledger has it: both came
        from C++, and the backend is not known to be done with the other.
        """
        natives = (at for at, entry in self._entries.items() if entry.native and at[:2] == place[:2])
        others = [self.story.times(self._entries[at]) for at in natives if at != place]
        return self.run.call(place).native and any(times is not None and not times.done for times in others)

    def options(self) -> list[tuple[Step, State]]:
        return steps(self.run, self.state)

    def follow(self, path: list[Step]) -> None:
        for step in path:
            self.take(step)

    def take(self, step: Step) -> None:
        self.state = dict(self.options())[step]
        what, place, _ = step
        rank, story = place[0], self.story
        if what == "issue":
            self._issue(place)
        elif what == "await":
            self._count_threads(rank)
            if not self.run.call(place).native:
                story.begin_wait(self._entries[place])
        elif what in ("return", "break"):
            if not self.run.call(place).native:
                story.come_back(self._entries[place], failed=what == "break")
            elif what == "return":  # the latest moment at which the backend can be done
                story.finish(self._entries[place])
            if what == "break":
                story.raises(rank, victim=True)
                story.ends_process(rank, 1)
        elif what == "over":
            story.ends_program(rank)
        elif what == "fail":
            story.raises(rank)
            story.ends_process(rank, 1)
        elif what == "leave":
            story.exits(rank, 0)
            story.ends_process(rank)
        elif what == "stop":
            story.letters[rank] = "T"
            story.stopped[rank] = story.tick()
        elif what in ("end", "kill"):
            story.ends_process(rank, 0 if what == "end" else -9)
        self._follow_sleep(rank)

    def _follow_sleep(self, rank: int) -> None:
        """Whether the rank's thread sleeps in C++; ranks of two threads issue nothing from there."""
        now = self.state.ranks[rank].threads[0].waits_in
        native = now is not None and self.run.call((rank, 0, now)).native
        (self.story.awake.discard if native else self.story.awake.add)(rank)

    def _count_threads(self, rank: int) -> None:
        """As a ledger holds it: when a thread began to wait. The first thread waits for the second at its
        end.
        """
        programs, seen = self.run.threads(rank), self.state.ranks[rank].threads
        self.story.threads_of[rank] = 1 + sum(
            one.done < len(program) or one.waits_in is not None
            for program, one in zip(programs[1:], seen[1:], strict=True)
        )

    def _issue(self, place: At) -> None:
        rank, thread, _ = place
        call = self.run.call(place)
        if call.waits or call.native:
            self._count_threads(rank)
        group = call.group if call.peer == -1 else f"p2p:{call.group}"
        number = self._numbers.get((rank, group), 0)
        self._numbers[rank, group] = number + 1
        peer = self.run.members(call.group).index(call.peer) if call.peer >= 0 else -1
        assert call.peer in (-1, ANY) or peer >= 0
        self._entries[place] = self.story.write(
            rank,
            Kind.COLLECTIVE,
            group=group,
            sequence=number,
            op=call.op,
            reduce_op=call.reduce_op or None,
            root=call.root,
            peer=peer,
            dtype=None if call.op == "barrier" else call.dtype,
            elements=0 if call.op == "barrier" or call.peer != -1 else call.elements,
            tag=call.name,
            flags=NATIVE if call.native else Flag.WAITED if call.waits else ASYNC,
            thread=rank + 1 + 100 * thread,
            detail={"tag": call.tag} if call.tag else {},
        )


__all__ = ["Issue", "Telling"]
