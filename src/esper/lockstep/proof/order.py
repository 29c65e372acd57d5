"""Which of two calls comes first: who waits in one of them is held against what the others have entered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from esper.lockstep.proof.view import View
from esper.lockstep.proof.waitgraph import Need
from esper.lockstep.record.entry import Entry

Place = tuple[str, int, int]


def place(entry: Entry) -> Place:
    """The same for all who are in one collective; nobody else is in one's send or receive."""
    return entry.group, entry.sequence, entry.rank if entry.group.startswith("p2p:") else -1


@dataclass(frozen=True)
class Vote:
    """Of the members of two calls' groups: how many have entered the one first, and how many the other."""

    first: int
    other: int
    voters: int

    @property
    def sure(self) -> bool:
        """Whether those who have still to come can't change it."""
        return self.first * 2 > self.voters


@dataclass
class Charges:
    """What is held against the ranks of a circle."""

    outvoted: dict[int, Vote] = field(default_factory=dict)  # more have entered what they lack in first
    tied: set[int] = field(default_factory=set)  # as many have


def charges(view: View, needs: Mapping[int, Sequence[Need]], current: Mapping[int, Entry]) -> Charges:
    """Of each rank that waits in `current` while another call lacks it: which of the two comes first by what
    the members of both calls' groups have entered.
    """
    members: dict[str, frozenset[int]] = {}
    entered: dict[Place, Mapping[int, Entry]] = {}
    votes: dict[tuple[Place, Place], Vote] = {}
    seen: set[tuple[Place, frozenset[int]]] = set()
    found = Charges()

    def called(entry: Entry) -> tuple[Mapping[int, Entry], frozenset[int]]:
        group, at = entry.group.removeprefix("p2p:"), place(entry)
        if group not in members:
            members[group] = frozenset(view.matching.members(group))
        if at[2] >= 0:  # nobody but the two of them knows whether it is due; of any source's, nobody at all
            peers = view.matching.members(group)[entry.peer : entry.peer + 1] if entry.peer >= 0 else ()
            return {entry.rank: entry}, frozenset({entry.rank, *peers} if peers else ())
        if at not in entered:
            slot = view.matching.slot(entry.group, entry.sequence)
            entered[at] = {entry.rank: entry} if slot is None else slot.entries
        return entered[at], members[group]

    for one in (one for rank in current for one in needs[rank]):
        if (place(one.entry), one.peers) in seen:
            continue
        seen.add((place(one.entry), one.peers))
        for peer in one.peers & current.keys():
            pair = place(one.entry), place(current[peer])
            if pair not in votes:
                votes[pair] = _vote(*called(one.entry), *called(current[peer]))
            vote = votes[pair]
            if vote.first > vote.other:
                found.outvoted.setdefault(peer, vote)
            elif vote.first == vote.other:
                found.tied.add(peer)
    return found


def _vote(
    one: Mapping[int, Entry], of_one: frozenset[int], other: Mapping[int, Entry], of_other: frozenset[int]
) -> Vote:
    both = of_one & of_other
    voters = both & (one.keys() | other.keys())
    first = sum(_earlier(one.get(rank), other.get(rank)) for rank in voters)
    # Who waits is one at least, though it be no member of the other group, as with a send's two.
    return Vote(max(first, 1), len(voters) - first, len(both))


def _earlier(one: Entry | None, other: Entry | None) -> bool:
    return one is not None and (other is None or one.number < other.number)
