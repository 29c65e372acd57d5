"""Random small programs for the reference and for real ranks: healthy ones, and such with one thing wrong.

A healthy one is drawn as one schedule for all ranks and dealt out, so that it can't deadlock; where a receive
takes any source, the reference has the last word (`always_completes`). Every choice is made by a
`random.Random`, which may be Hypothesis's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from tests.esper.lockstep.machine import (
    ANY,
    Await,
    Fail,
    Instruction,
    Issue,
    Kill,
    Leave,
    Program,
    Run,
    Stop,
    complete,
    outcomes,
    standstills,
)

MOST_CALLS = 6
HELPERS = "helpers"  # the group of the second threads
ROOTED = ("broadcast", "reduce", "gather", "scatter")
REDUCING = ("all_reduce", "reduce")
PLAIN = ("all_reduce", "all_gather", "barrier")
_SECOND = 20  # added to the mark of a second message
OBJECTS = ("all_gather_object", "broadcast_object")


@dataclass(frozen=True)
class Kinds:
    """What programs are made of."""

    native: bool = False
    objects: bool = False
    helpers: bool = True
    any_source: bool = True


@dataclass(frozen=True)
class Faulty:
    """A run that is healthy but for what was done to `rank`."""

    run: Run
    rank: int
    how: str

    @property
    def ends(self) -> bool:
        """Whether all that is wrong is that the rank goes no further."""
        return self.how in ("fail", "leave", "kill", "stop", "early")


class _Draft:
    """One thread's program under way."""

    def __init__(self, random: Random, kinds: Kinds) -> None:
        self.random, self.kinds = random, kinds
        self.instructions: list[Instruction] = []

    @property
    def calls(self) -> int:
        return sum(isinstance(one, Issue) for one in self.instructions)

    def pending(self) -> list[int]:
        """The asynchronous calls that are not waited in yet."""
        waited = {one.index for one in self.instructions if isinstance(one, Await)}
        return [
            index
            for index, one in enumerate(self.instructions)
            if isinstance(one, Issue) and not one.waits and index not in waited
        ]

    def enter(self, call: Issue) -> None:
        how = self.random.choice(["sync", "sync", "sync", "async", "native", "await first"])
        if call.op in OBJECTS:
            how = "sync"
        if how == "await first" and (pending := self.pending()):
            self.instructions.append(Await(self.random.choice(pending)))
        elif how == "async" or (how == "native" and not (self.kinds.native and call.peer == -1)):
            call = replace(call, waits=False)
        elif how == "native":
            call = replace(call, waits=False, native=True)
        self.instructions.append(call)

    def finished(self) -> Program:
        pending = self.pending()
        self.random.shuffle(pending)
        return (*self.instructions, *(Await(index) for index in pending))


def healthy(random: Random, kinds: Kinds | None = None, most_calls: int = MOST_CALLS, size: int = 0) -> Run:
    """2 to 4 ranks, 1 to 3 groups that may overlap, up to `most_calls` calls on each rank."""
    kinds, size = kinds or Kinds(), size or random.randint(2, 4)
    groups = _groups(random, size)
    drafts = [_Draft(random, kinds) for _ in range(size)]
    for mark in range(random.randint(1, most_calls + 2)):
        if random.randint(0, 3) == 0:
            _exchange(random, kinds, drafts, groups, mark, most_calls)
            continue
        group = random.choice(["default", *groups])
        call = _collective(random, kinds, group, len(groups.get(group, drafts)), mark)
        members = groups.get(group, tuple(range(size)))
        if all(drafts[rank].calls < most_calls for rank in members):
            for rank in members:
                drafts[rank].enter(_own(random, call))
    helpers: dict[int, Program] = {}
    if kinds.helpers and len(groups) < 2 and random.randint(0, 3) == 0:
        members = tuple(sorted(random.sample(range(size), random.randint(2, size))))
        groups[HELPERS] = members
        seconds = {rank: _Draft(random, replace(kinds, native=False)) for rank in members}
        for number in range(random.randint(1, 2)):
            call = _collective(random, kinds, HELPERS, len(members), 50 + number)
            for rank in members:
                seconds[rank].enter(_own(random, call))
        helpers = {rank: draft.finished() for rank, draft in seconds.items()}
    return Run(tuple(draft.finished() for draft in drafts), groups, helpers=helpers)


def always_completes(run: Run) -> bool:
    """Whether every interleaving comes to its end."""
    return all(complete(end) for end in standstills(run))


def _groups(random: Random, size: int) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(sorted(random.sample(range(size), random.randint(2, size))))
        for name in ("b", "c")[: random.randint(0, 2)]
    }


def _collective(random: Random, kinds: Kinds, group: str, size: int, mark: int) -> Issue:
    op = random.choice([*PLAIN, *PLAIN, *ROOTED, *(OBJECTS if kinds.objects else ())])
    named = random.choice([None, None, "vote", "gate"])
    if op == "barrier":
        return Issue(op, group, name=named, mark=mark)
    return Issue(
        op,
        group,
        root=random.randrange(size) if op in (*ROOTED, "broadcast_object") else -1,
        reduce_op=random.choice(["SUM", "SUM", "MAX"]) if op in REDUCING else "",
        dtype=random.choice(["float32", "float32", "int64"]),
        elements=random.choice([1, 4, 4]),
        name=named,
        mark=mark,
    )


def _own(random: Random, call: Issue) -> Issue:
    """The call as one rank makes it: it may leave the name out."""
    return replace(call, name=None) if call.name and random.randint(0, 5) == 0 else call


def _exchange(
    random: Random,
    kinds: Kinds,
    drafts: list[_Draft],
    groups: dict[str, tuple[int, ...]],
    mark: int,
    most_calls: int,
) -> None:
    """One or two senders, one receiver."""
    group = random.choice(["default", *groups])
    members = list(groups.get(group, range(len(drafts))))
    random.shuffle(members)
    target, *sources = members[: random.choice([2, 2, 3])]
    tag = random.choice([0, 0, 1])
    wild = kinds.any_source and random.randint(0, 2) == 0
    if any(drafts[rank].calls >= most_calls - 1 for rank in (target, *sources)):
        return
    if len(sources) == 1 and not wild and random.randint(0, 2) == 0:
        # Two messages under way at once, taken in the other order: the tags tell them apart.
        first = Issue("send", group, peer=target, tag=tag, waits=False, mark=mark)
        second = replace(first, tag=1 - tag, mark=mark + _SECOND)
        drafts[sources[0]].instructions += [first, second]
        for sent in (second, first):
            drafts[target].enter(replace(sent, op="recv", peer=sources[0], waits=True))
        return
    for source in sources:
        drafts[source].enter(Issue("send", group, peer=target, tag=tag, mark=mark))
    for source in sources:
        drafts[target].enter(Issue("recv", group, peer=ANY if wild else source, tag=tag, mark=mark))


# What may be wrong

_Item = tuple[int, Instruction]  # an instruction under a key that survives its being moved


def faulty(random: Random, run: Run, hows: tuple[str, ...] = ()) -> Faulty | None:
    """One thing done to one rank of a healthy run; None where this run has no place for it."""
    rank = random.randrange(len(run.programs))
    how = random.choice(hows or tuple(_FAULTS))
    program = _FAULTS[how](random, run, rank)
    if program is None or program == run.programs[rank]:
        return None
    return Faulty(
        replace(run, programs=(*run.programs[:rank], program, *run.programs[rank + 1 :])), rank, how
    )


def verdict(run: Run) -> str:
    """`complete` or `doomed`; `open` where that depends on the backend's buffers or on who comes first."""
    found = outcomes(replace(run, eager=True)) | outcomes(replace(run, eager=False))
    return found.pop() if len(found) == 1 else "open"


def _end(instruction: Instruction | None) -> Callable[[Random, Run, int], Program | None]:
    def end(random: Random, run: Run, rank: int) -> Program:
        program = run.programs[rank]
        kept = program[: random.randint(0, max(0, len(program) - 1))]
        return kept if instruction is None else (*kept, instruction)

    return end


def _drop(random: Random, run: Run, rank: int) -> Program | None:
    items = _items(run.programs[rank])
    calls = [key for key, one in items if isinstance(one, Issue)]
    if not calls:
        return None
    gone = random.choice(calls)
    return _assembled([item for item in items if item[0] != gone])


def _swap(random: Random, run: Run, rank: int) -> Program | None:
    items = _items(run.programs[rank])
    at = [index for index, (_, one) in enumerate(items) if isinstance(one, Issue)]
    if len(at) < 2:
        return None
    first = random.randrange(len(at) - 1)
    one, other = at[first], at[first + 1]
    items[one], items[other] = items[other], items[one]
    return _assembled(items)


def _unwaited(random: Random, run: Run, rank: int) -> Program | None:
    items = _items(run.programs[rank])
    waits = [index for index, (_, one) in enumerate(items) if isinstance(one, Await)]
    if not waits:
        return None
    del items[random.choice(waits)]
    return _assembled(items)


def _changed(random: Random, run: Run, rank: int) -> Program | None:
    program = run.programs[rank]
    calls = [(index, one) for index, one in enumerate(program) if isinstance(one, Issue)]
    if not calls:
        return None
    index, call = random.choice(calls)
    other = _other(random, run, rank, call)
    return None if other is None else (*program[:index], other, *program[index + 1 :])


def _other(random: Random, run: Run, rank: int, call: Issue) -> Issue | None:
    """The same call with one thing about it changed."""
    members = run.members(call.group)
    if call.peer != -1:
        peers = [one for one in members if one not in (rank, call.peer)]
        return replace(call, peer=random.choice(peers)) if peers and call.peer != ANY else None
    if call.op in OBJECTS:
        return None
    op = random.choice([one for one in PLAIN if one != call.op])
    others = [replace(call, op=op, root=-1, reduce_op="SUM" if op in REDUCING else "", native=False)]
    if call.op != "barrier":
        others += [replace(call, dtype="float64"), replace(call, elements=call.elements + 3)]
    if call.root >= 0:
        others += [replace(call, root=(call.root + 1) % len(members))] * 2
    else:
        groups = ("default", *run.groups)
        others += [
            replace(call, group=group)
            for group in groups
            if group not in (call.group, HELPERS) and rank in run.members(group)
        ]
    if call.reduce_op:
        others.append(replace(call, reduce_op="MIN"))
    if call.name:
        others.append(replace(call, name="other"))
    return random.choice(others)


_FAULTS: dict[str, Callable[[Random, Run, int], Program | None]] = {
    "fail": _end(Fail()),
    "leave": _end(Leave()),
    "kill": _end(Kill()),
    "stop": _end(Stop()),
    "early": _end(None),
    "drop": _drop,
    "swap": _swap,
    "unwaited": _unwaited,
    "change": _changed,
}


def _items(program: Program) -> list[_Item]:
    """Keyed by the call that it is about."""
    return [(one.index if isinstance(one, Await) else index, one) for index, one in enumerate(program)]


def _assembled(items: list[_Item]) -> Program:
    """A program again; a wait whose call is gone goes, too, and one that comes too early is in the call."""
    early: set[int] = set()
    known: set[int] = set()
    for key, one in items:
        if isinstance(one, Await) and key not in known:
            early.add(key)
        known |= {key} if isinstance(one, Issue) else set()
    at: dict[int, int] = {}
    program: list[Instruction] = []
    for key, one in items:
        if isinstance(one, Issue):
            at[key] = len(program)
            program.append(replace(one, waits=True, native=False) if key in early else one)
        elif isinstance(one, Await):
            if key in at and key not in early:
                program.append(Await(at[key]))
        else:
            program.append(one)
    return tuple(program)
