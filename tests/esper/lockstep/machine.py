"""A small reference for what a run of N ranks can do: programs, interleavings, and the ledgers they leave.

A program is a list of instructions; a rank does them in order:

* `Issue(op)` enters a collective, send or receive. A synchronous one is then waited in; an asynchronous one
  is waited in by a later `Await`. A `native` one is marked as waited for from its issue, as C++ issuers are.
* `Await(index)` waits in the call that instruction `index` issued.
* `Fail()` lets an exception leave the program; `Leave()` ends the process. A program that has done all its
  instructions is over, and then its process ends.

A wait ends when what its result depends on has been entered, and never if one of these entered something
else:

* all_reduce, barrier: all members.
* broadcast: for a leaf the root. For the root nobody where the backend buffers (`eager`), else all members.
  A group of two never buffers; gloo doesn't (measured).
* send and receive: the other end's call of the same number between these two ranks.

A wait for a rank whose process is gone may break: an exception that is marked as a victim's leaves the
program. Every condition only ever becomes true, so what a run comes to doesn't depend on the order of its
steps: it can complete if and only if doing any step that can be done, until none can, completes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from esper.lockstep.entry import Entry, Flag
from tests.esper.lockstep.story import ASYNC, NATIVE, Story


@dataclass(frozen=True)
class Issue:
    op: str
    group: str = "default"
    root: int = -1
    peer: int = -1  # global rank
    waits: bool = True
    native: bool = False


@dataclass(frozen=True)
class Await:
    index: int


@dataclass(frozen=True)
class Fail:
    pass


@dataclass(frozen=True)
class Leave:
    pass


Instruction = Issue | Await | Fail | Leave


@dataclass(frozen=True)
class Run:
    """Who does what: one program a rank, and the members of each group beside `default`."""

    programs: tuple[tuple[Instruction, ...], ...]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    eager: bool = True
    breaks: bool = False  # whether waits for the dead break

    def members(self, group: str) -> tuple[int, ...]:
        return self.groups.get(group, tuple(range(len(self.programs))))


@dataclass(frozen=True)
class RankState:
    done: int = 0
    waits_in: int | None = None
    over: bool = False
    gone: bool = False


State = tuple[RankState, ...]
Step = tuple[int, str]


def start(run: Run) -> State:
    return tuple(RankState() for _ in run.programs)


def steps(run: Run, state: State) -> Iterator[tuple[Step, State]]:
    """Everything that can happen next, and where it leads."""
    for rank, at in enumerate(state):
        for what, then in _steps_of(run, state, rank, at):
            yield (rank, what), (*state[:rank], then, *state[rank + 1 :])


def _steps_of(run: Run, state: State, rank: int, at: RankState) -> Iterator[tuple[str, RankState]]:
    program = run.programs[rank]
    if at.gone:
        return
    if at.waits_in is not None:
        if entered(run, state, rank, at.waits_in):
            yield "return", RankState(at.done)
        elif run.breaks and any(state[peer].gone for peer in awaited(run, state, rank, at.waits_in)):
            yield "break", RankState(at.done, gone=True)
        return
    if at.done == len(program):
        yield ("end", RankState(at.done, gone=True)) if at.over else ("over", RankState(at.done, over=True))
        return
    match program[at.done]:
        case Issue(waits=waits):
            yield "issue", RankState(at.done + 1, at.done if waits else None)
        case Await(index):
            yield "await", RankState(at.done + 1, index)
        case Fail():
            yield "fail", RankState(at.done, gone=True)
        case Leave():
            yield "leave", RankState(at.done, gone=True)


def entered(run: Run, state: State, rank: int, index: int) -> bool:
    """Whether the call's wait can end."""
    call = _call(run, rank, index)
    place = place_of(run, rank, index)
    for peer in needed(run, rank, call):
        their = _find(run, state, peer, place)
        if their is None or not _agree(call, their):
            return False
    return True


def awaited(run: Run, state: State, rank: int, index: int) -> list[int]:
    """Those without whom the call's wait can't end and who have not entered it."""
    place = place_of(run, rank, index)
    peers = needed(run, rank, _call(run, rank, index))
    return [peer for peer in peers if _find(run, state, peer, place) is None]


def needed(run: Run, rank: int, call: Issue) -> list[int]:
    if call.peer >= 0:
        return [call.peer]
    members = run.members(call.group)
    others = [member for member in members if member != rank]
    if call.op == "broadcast" and len(members) > 2:
        if rank != members[call.root]:
            return [members[call.root]]
        return [] if run.eager else others
    return others


Place = tuple[str, int, int, int]


def place_of(run: Run, rank: int, index: int) -> Place:
    """Group and number; for a send or receive the pair, in the data's direction, and the number in it."""
    call = _call(run, rank, index)
    here = _pair(rank, call)
    number = sum(
        _pair(rank, one) == here and one.group == call.group
        for one in run.programs[rank][:index]
        if isinstance(one, Issue)
    )
    return (call.group, *here, number)


def contradicted(run: Run, state: State) -> bool:
    """Whether two ranks have entered one place with different calls."""
    places: dict[Place, Issue] = {}
    for rank, at in enumerate(state):
        for index, one in enumerate(run.programs[rank][: at.done]):
            if isinstance(one, Issue) and not _agree(places.setdefault(place_of(run, rank, index), one), one):
                return True
    return False


def abandoned(run: Run, state: State) -> bool:
    """Whether a rank has entered a call that a member whose program is over never has."""
    ended = {rank for rank, at in enumerate(state) if at.over or at.gone}
    for rank, at in enumerate(state):
        for index, call in enumerate(run.programs[rank][: at.done]):
            if isinstance(call, Issue):
                place = place_of(run, rank, index)
                peers = {call.peer} if call.peer >= 0 else set(run.members(call.group))
                if any(_find(run, state, peer, place) is None for peer in peers & ended):
                    return True
    return False


def completes(run: Run, state: State) -> bool:
    """Whether the run can still come to its end with nobody waiting, or broken."""
    run = replace(run, breaks=False)
    while following := next(steps(run, state), None):
        state = following[1]
    return all(at.gone for at in state)


def _pair(rank: int, call: Issue) -> tuple[int, int]:
    if call.peer < 0:
        return (-1, -1)
    return (rank, call.peer) if call.op == "send" else (call.peer, rank)


def _call(run: Run, rank: int, index: int) -> Issue:
    call = run.programs[rank][index]
    assert isinstance(call, Issue)
    return call


def _find(run: Run, state: State, rank: int, place: Place) -> Issue | None:
    for index, one in enumerate(run.programs[rank][: state[rank].done]):
        if isinstance(one, Issue) and place_of(run, rank, index) == place:
            return one
    return None


def _agree(one: Issue, other: Issue) -> bool:
    return one.peer >= 0 or (one.op, one.root) == (other.op, other.root)


class Telling:
    """Follows a run step by step and tells it to a `Story`, as its ledgers would hold it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.state = start(run)
        self.story = Story(len(run.programs))
        self.broken = False
        self._entries: dict[tuple[int, int], Entry] = {}
        for name, members in run.groups.items():
            self.story.group(name, *members)

    def options(self) -> list[tuple[Step, State]]:
        return list(steps(self.run, self.state))

    def follow(self, path: Sequence[Step]) -> None:
        for step in path:
            self.take(step)

    def take(self, step: Step) -> None:
        before, (rank, what) = self.state, step
        self.state = dict(steps(self.run, before))[step]
        at, story = before[rank], self.story
        program = self.run.programs[rank]
        if what == "issue":
            self._issue(rank, at.done)
        elif what == "await":
            self._awaits(rank, at.done)
        elif what in ("return", "break"):
            assert at.waits_in is not None
            call, entry = _call(self.run, rank, at.waits_in), self._entries[rank, at.waits_in]
            if not call.native:
                story.come_back(entry, failed=what == "break")
            if what == "break":
                self.broken = True
                story.raises(rank, victim=True)
                story.ends_process(rank, 1)
        elif what == "over":
            story.ends_program(rank)
        elif what == "end":
            story.ends_process(rank)
        elif what == "fail":
            story.raises(rank)
            story.ends_process(rank, 1)
        else:
            story.exits(rank, 0)
            story.ends_process(rank)
        now = self.state[rank].waits_in
        native = now is not None and isinstance(one := program[now], Issue) and one.native
        (story.awake.discard if native else story.awake.add)(rank)

    def _issue(self, rank: int, index: int) -> None:
        call = _call(self.run, rank, index)
        flags = NATIVE if call.native else Flag.WAITED if call.waits else ASYNC
        if call.peer >= 0:
            peer = self.run.members(call.group).index(call.peer)
            entry = self.story.point(rank, call.op, peer, call.group, flags=flags)
        else:
            entry = self.story.call(rank, call.op, call.group, root=call.root, flags=flags)
        self._entries[rank, index] = entry

    def _awaits(self, rank: int, index: int) -> None:
        instruction = self.run.programs[rank][index]
        assert isinstance(instruction, Await)
        if not _call(self.run, rank, instruction.index).native:
            self.story.begin_wait(self._entries[rank, instruction.index])
