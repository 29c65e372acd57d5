"""A small reference for what a run of N ranks can do: programs, interleavings, and what they come to.

A program is a list of instructions; a rank does them in order, and a second thread of the rank (`helpers`)
does its own list meanwhile, in groups that no other thread of any rank uses:

* `Issue(call)` enters a collective, send or receive. A synchronous one is then waited in; an asynchronous one
  is waited in by a later `Await`. A `native` one is marked as waited for from its issue, as C++ issuers are.
* `Await(index)` waits in the call that instruction `index` issued.
* `Fail()` lets an exception leave the program; `Leave()` ends the process, `Kill()` does so by a signal, and
  `Stop()` stops it: it lives and does nothing more. A program that has done all its instructions, in both
  threads, is over, and then its process ends.

Two members' n-th calls in a group must agree: op, reduce op, root, dtype, elements, and the name where both
have one. A wait ends when what its result depends on has been entered, and never if one of these entered
something else:

* all_reduce, all_gather, barrier: all members.
* broadcast, scatter: for a leaf the root. For the root nobody where the backend buffers (`eager`), else all.
* reduce, gather: for the root all members. For a leaf nobody where the backend buffers, else all.
  A group of two never buffers; gloo doesn't (measured).
* send and receive: a partner. A send meets a receive of the same group and tag at its target, which names the
  sender or any source; of one sender's sends, and of receives that name one source, the first comes first.
  Which receive from several that could have it gets a send is open: each is a step of its own.

A wait for a rank that is gone and has not entered the call may break: an exception that is marked as a
victim's leaves the program.

`standstills` explores what all interleavings come to. Every step but a meeting that has an alternative stays
possible until it is done and changes nothing for the others, so one order of those stands for all;
`test_one_order_stands_for_all` holds that against every order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

ANY = -2  # a receive's peer: whoever sends


@dataclass(frozen=True)
class Issue:
    op: str
    group: str = "default"
    root: int = -1  # counts in the group
    peer: int = -1  # global rank
    waits: bool = True
    native: bool = False
    tag: int = 0  # of a send or receive
    dtype: str = "float32"
    elements: int = 4
    reduce_op: str = ""
    name: str | None = None  # what `lockstep.tag` says it is for
    mark: int = 0  # which call of the schedule it is, the same on all members; its data come from it


@dataclass(frozen=True)
class Await:
    index: int


@dataclass(frozen=True)
class Fail:
    pass


@dataclass(frozen=True)
class Leave:
    pass


@dataclass(frozen=True)
class Kill:
    pass


@dataclass(frozen=True)
class Stop:
    pass


Instruction = Issue | Await | Fail | Leave | Kill | Stop
Program = tuple[Instruction, ...]
_ENDS: dict[type, str] = {Fail: "fail", Leave: "leave", Kill: "kill"}
_ROOT_NEEDS_ALL, _ALL_NEED_ROOT = ("reduce", "gather"), ("broadcast", "scatter", "broadcast_object")


@dataclass(frozen=True)
class Run:
    """Who does what: one program a rank, a second thread's for some, the members of each group beside
    `default`.
    """

    programs: tuple[Program, ...]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    eager: bool = True
    breaks: bool = False  # whether waits for the dead break
    helpers: Mapping[int, Program] = field(default_factory=dict)

    def members(self, group: str) -> tuple[int, ...]:
        return self.groups.get(group, tuple(range(len(self.programs))))

    def threads(self, rank: int) -> tuple[Program, ...]:
        return (self.programs[rank], *([self.helpers[rank]] if rank in self.helpers else []))

    def call(self, at: At) -> Issue:
        call = self.threads(at[0])[at[1]][at[2]]
        assert isinstance(call, Issue)
        return call


At = tuple[int, int, int]  # rank, thread, index of the instruction
Place = tuple[str, int]  # group and number
Step = tuple[str, At, At | None]


@dataclass(frozen=True)
class ThreadState:
    done: int = 0
    waits_in: int | None = None


@dataclass(frozen=True)
class RankState:
    threads: tuple[ThreadState, ...]
    over: bool = False
    gone: bool = False
    stopped: bool = False
    broken: bool = False  # a peer's end brought it down


@dataclass(frozen=True)
class State:
    ranks: tuple[RankState, ...]
    met: frozenset[At] = frozenset()  # sends and receives that have their partner


def start(run: Run) -> State:
    ranks = range(len(run.programs))
    return State(tuple(RankState(tuple(ThreadState() for _ in run.threads(rank))) for rank in ranks))


def steps(run: Run, state: State) -> list[tuple[Step, State]]:
    """Everything that can happen next, and where it leads."""
    found: list[tuple[Step, State]] = []
    for rank, at in enumerate(state.ranks):
        for what, place, then in _steps_of(run, state, rank, at):
            ranks = (*state.ranks[:rank], then, *state.ranks[rank + 1 :])
            found.append(((what, place, None), replace(state, ranks=ranks)))
    for sent, received in meetings(run, state):
        found.append((("meet", sent, received), replace(state, met=state.met | {sent, received})))
    return found


def _steps_of(run: Run, state: State, rank: int, at: RankState) -> Iterator[tuple[str, At, RankState]]:
    if at.gone or at.stopped:
        return
    idle = 0
    for thread, (program, seen) in enumerate(zip(run.threads(rank), at.threads, strict=True)):
        if seen.waits_in is not None:
            place = (rank, thread, seen.waits_in)
            if can_return(run, state, place):
                yield "return", place, _moved(at, thread, ThreadState(seen.done))
            elif run.breaks and _may_break(run, state, place):
                yield "break", place, replace(at, gone=True, broken=True)
            continue
        if seen.done == len(program):
            idle += 1
            continue
        place, following = (rank, thread, seen.done), seen.done + 1
        match instruction := program[seen.done]:
            case Issue(waits=waits):
                yield "issue", place, _moved(at, thread, ThreadState(following, seen.done if waits else None))
            case Await(index):
                yield "await", (rank, thread, index), _moved(at, thread, ThreadState(following, index))
            case Stop():
                yield "stop", place, replace(at, stopped=True)
            case _:
                yield _ENDS[type(instruction)], place, replace(at, gone=True)
    if idle == len(at.threads):
        place = (rank, 0, len(run.programs[rank]))
        yield ("end", place, replace(at, gone=True)) if at.over else ("over", place, replace(at, over=True))


def _may_break(run: Run, state: State, place: At) -> bool:
    """Whether its wait is for the dead: for one of them, or for nobody else where any source would do. What
    has been sent before arrives.
    """
    if any(place in pair for pair in meetings(run, state)):
        return False
    dead = [state.ranks[peer].gone for peer in awaited(run, state, place)]
    return all(dead) and bool(dead) if run.call(place).peer == ANY else any(dead)


def _moved(at: RankState, thread: int, now: ThreadState) -> RankState:
    return replace(at, threads=(*at.threads[:thread], now, *at.threads[thread + 1 :]))


def entered(run: Run, state: State) -> Iterator[At]:
    """Every call that a rank has entered."""
    for rank, at in enumerate(state.ranks):
        for thread, (program, seen) in enumerate(zip(run.threads(rank), at.threads, strict=True)):
            for index in range(seen.done):
                if isinstance(program[index], Issue):
                    yield rank, thread, index


def waits(state: State) -> list[At]:
    """The calls that living ranks wait in."""
    return [
        (rank, thread, seen.waits_in)
        for rank, at in enumerate(state.ranks)
        if not (at.gone or at.stopped)
        for thread, seen in enumerate(at.threads)
        if seen.waits_in is not None
    ]


def meetings(run: Run, state: State) -> list[tuple[At, At]]:
    """A send and a receive each that may meet now."""
    sends: dict[object, At] = {}
    receives: dict[object, At] = {}
    for place in entered(run, state):
        call = run.call(place)
        if call.peer != -1 and place not in state.met:
            first = sends if call.op == "send" else receives
            first.setdefault((call.group, call.tag, place[0], call.peer), place)
    found = []
    for sent in sends.values():
        call = run.call(sent)
        for source in (sent[0], ANY):
            received = receives.get((call.group, call.tag, call.peer, source))
            if received is not None:
                found.append((sent, received))
    return found


def can_return(run: Run, state: State, place: At) -> bool:
    """Whether the call's wait can end."""
    call = run.call(place)
    if call.peer != -1:
        return place in state.met
    where = place_of(run, place)
    for peer in needed(run, place[0], call):
        their = _find(run, state, peer, where)
        if their is None or not _agree(call, their):
            return False
    return True


def awaited(run: Run, state: State, place: At) -> list[int]:
    """Those without whom the call's wait can't end and who have not entered it."""
    call = run.call(place)
    if call.peer != -1:
        if place in state.met:
            return []
        return [call.peer] if call.peer >= 0 else [one for one in run.members(call.group) if one != place[0]]
    where = place_of(run, place)
    return [peer for peer in needed(run, place[0], call) if _find(run, state, peer, where) is None]


def needed(run: Run, rank: int, call: Issue) -> list[int]:
    members = run.members(call.group)
    others = [member for member in members if member != rank]
    if len(members) > 2 and call.op in (*_ROOT_NEEDS_ALL, *_ALL_NEED_ROOT):
        root = members[call.root]
        if rank != root and call.op in _ALL_NEED_ROOT:
            return [root]
        if (rank == root) == (call.op in _ALL_NEED_ROOT):
            return [] if run.eager else others
    return others


def place_of(run: Run, place: At) -> Place:
    """Which collective of its group it is."""
    rank, thread, index = place
    group = run.call(place).group
    return group, sum(_is_collective(one, group) for one in run.threads(rank)[thread][:index])


def _is_collective(one: Instruction, group: str) -> bool:
    return isinstance(one, Issue) and one.peer == -1 and one.group == group


def _find(run: Run, state: State, rank: int, where: Place) -> Issue | None:
    group, number = where
    for program, seen in zip(run.threads(rank), state.ranks[rank].threads, strict=True):
        calls = [one for one in program[: seen.done] if _is_collective(one, group)]
        if number < len(calls):
            call = calls[number]
            assert isinstance(call, Issue)
            return call
    return None


def _agree(one: Issue, other: Issue) -> bool:
    same = (one.op, one.root, one.reduce_op) == (other.op, other.root, other.reduce_op)
    sized = one.op == "barrier" or (one.dtype, one.elements) == (other.dtype, other.elements)
    return same and sized and (None in (one.name, other.name) or one.name == other.name)


def contradicted(run: Run, state: State) -> bool:
    """Whether two ranks have entered one place with different calls."""
    places: dict[Place, list[Issue]] = {}
    for place in entered(run, state):
        call = run.call(place)
        if call.peer == -1:
            others = places.setdefault(place_of(run, place), [])
            if not all(_agree(call, other) for other in others):
                return True
            others.append(call)
    return False


def abandoned(run: Run, state: State) -> bool:
    """Whether a rank waits in a collective, or is marked as waiting, that a member whose program is over
    never entered: it can't come to its end on all members, though this one may get past it.
    """
    for place in entered(run, state):
        rank, thread, index = place
        call = run.call(place)
        if call.peer == -1 and (call.native or state.ranks[rank].threads[thread].waits_in == index):
            where, members = place_of(run, place), run.members(call.group)
            ended = [one for one in members if state.ranks[one].over or state.ranks[one].gone]
            if any(_find(run, state, one, where) is None for one in ended):
                return True
    return False


def complete(state: State) -> bool:
    """Whether all ranks have come to their end with nobody waiting, or broken. One that is stopped holds
    nobody up by itself.
    """
    return all((at.gone or at.stopped) and not at.broken for at in state.ranks)


def standstills(run: Run, state: State | None = None) -> set[State]:
    """All states after which nothing can happen, over all interleavings from `state` on; no wait breaks."""
    run = replace(run, breaks=False)
    todo, ends = [state or start(run)], set()
    seen = set(todo)
    while todo:
        at = todo.pop()
        following = steps(run, at)
        certain = [then for step, then in following if not _has_alternative(run, step)]
        for then in certain[:1] or [then for _, then in following]:
            if then not in seen:
                seen.add(then)
                todo.append(then)
        if not following:
            ends.add(at)
    return ends


def _has_alternative(run: Run, step: Step) -> bool:
    """Whether it is a meeting at a rank that receives from any source, where others may exclude it, or a step
    of a rank one of whose threads ends the other.
    """
    what, place, received = step
    program = run.programs[place[0] if received is None else received[0]]
    if what == "meet":
        return any(isinstance(one, Issue) and one.peer == ANY for one in program)
    return place[0] in run.helpers and any(not isinstance(one, Issue | Await) for one in program)


def completes(run: Run, state: State | None = None) -> bool:
    """Whether the run can still come to its end."""
    return any(complete(end) for end in standstills(run, state))


def outcomes(run: Run) -> set[str]:
    """What the run can come to: `complete`, or `doomed` where it can't come to its end or its ranks
    contradict each other, though the backend may not mind.
    """
    return {
        "complete" if complete(end) and not contradicted(run, end) else "doomed" for end in standstills(run)
    }
