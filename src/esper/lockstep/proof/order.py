"""Which of two calls comes first: who waits in one of them is held against what the others have entered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from esper.lockstep.proof.view import View
from esper.lockstep.proof.waitgraph import Need
from esper.lockstep.record.entry import Entry

Place = tuple[str, int, int]


def place(entry: Entry) -> Place:
    """The same for all who are in one collective; nobody else is in one's send or receive."""
    return entry.group, entry.sequence, entry.rank if entry.group.startswith("p2p:") else -1


class Call(NamedTuple):
    """Who has entered it, whose part it is to know when it is due, and of whom it is not known what they
    entered.
    """

    entered: Mapping[int, Entry]
    members: frozenset[int]
    unread: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Vote:
    """Of the members of two calls: how many have entered the one first, and how many the other."""

    first: int
    other: int
    to_come: frozenset[int]  # who have entered neither

    @property
    def sure(self) -> bool:
        """Whether those who have still to come can't make another of it."""
        if self.first > self.other:
            return self.first > self.other + len(self.to_come)
        return self.first + len(self.to_come) <= self.other


@dataclass
class Charges:
    """What is held against the ranks of a circle."""

    outvoted: set[int] = field(default_factory=set)  # more have entered what they lack in first
    tied: set[int] = field(default_factory=set)  # as many have
    to_come: set[int] = field(default_factory=set)  # who may still change that


def charges(view: View, needs: Mapping[int, Sequence[Need]], circle: Sequence[int]) -> Charges:
    """Of each rank of the circle that waits while another call on it lacks it: which of the two comes first
    by what the members of both have entered. Of a rank that waits in several threads, by the one that speaks
    for it most.
    """
    calls: dict[Place, Call] = {}
    votes: dict[tuple[Place, Place], Vote] = {}
    seen: set[tuple[Place, frozenset[int]]] = set()
    against: dict[int, list[Vote]] = {}

    def vote(one: Entry, other: Entry) -> Vote:
        pair = place(one), place(other)
        if pair not in votes:
            for entry in (one, other):
                if place(entry) not in calls:
                    calls[place(entry)] = _call(view, entry)
            votes[pair] = _vote(calls[pair[0]], calls[pair[1]])
        return votes[pair]

    for one in (one for rank in circle for one in needs[rank]):
        if (place(one.entry), one.peers) in seen:
            continue
        seen.add((place(one.entry), one.peers))
        for peer in one.peers.intersection(circle):
            own = [vote(one.entry, other.entry) for other in needs[peer]]
            against.setdefault(peer, []).append(min(own, key=lambda each: each.first - each.other))
    found = Charges()
    for rank, ones in against.items():
        most = max(ones, key=lambda each: (each.first > each.other, each.sure, each.first - each.other))
        if most.first > most.other:
            found.outvoted.add(rank)
        elif any(each.first == each.other for each in ones):
            found.tied.add(rank)
        if not (most.first > most.other and most.sure):
            found.to_come.update(*(each.to_come for each in ones if not each.sure))
    return found


def _call(view: View, entry: Entry) -> Call:
    group = entry.group.removeprefix("p2p:")
    members = view.matching.members(group)
    if entry.group != group:  # nobody but the two of them knows whether it is due; of any source's, nobody
        peers = members[entry.peer : entry.peer + 1] if entry.peer >= 0 else ()
        return Call({entry.rank: entry}, frozenset({entry.rank, *peers} if peers else ()))
    slot = view.matching.slot(entry.group, entry.sequence)
    if slot is None:
        return Call({entry.rank: entry}, frozenset(members))
    return Call(slot.entries, frozenset(members), frozenset(slot.unread))


def _vote(one: Call, other: Call) -> Vote:
    if not (one.members and other.members):
        return Vote(1, 1, frozenset())
    both = (one.members & other.members) - one.unread - other.unread
    voters = both & (one.entered.keys() | other.entered.keys())
    first = sum(_earlier(one.entered.get(rank), other.entered.get(rank)) for rank in voters)
    # Who waits is one at least, though it be no member of the other group, as with a send's two.
    return Vote(max(first, 1), len(voters) - first, both - voters)


def _earlier(one: Entry | None, other: Entry | None) -> bool:
    return one is not None and (other is None or one.number < other.number)
