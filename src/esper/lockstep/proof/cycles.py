"""Ranks that wait for each other: proved only where no thread of theirs can go on."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from esper.lockstep.proof.finding import Finding, Patience, in_collective, joined
from esper.lockstep.proof.gone import terminals
from esper.lockstep.proof.mailbox import Wait
from esper.lockstep.proof.needs import certain
from esper.lockstep.proof.order import Place, charges, place
from esper.lockstep.proof.view import View
from esper.lockstep.proof.waitgraph import Need, held, on_circles
from esper.lockstep.record.entry import Entry

ANY = -1  # peer of a receive from any source


def needs_of(view: View, waits: Sequence[Wait]) -> list[Need]:
    """What each thread of one rank waits in; empty unless every Python thread is in a wait: one that only
    might issue something is no proof.
    """
    blocked = [wait for wait in waits if wait.entry.blocks()]
    threads = {wait.entry.thread for wait in blocked}
    if not threads or view.live.threads(waits[0].entry.rank) > len(threads):
        return []
    # An op from C++ counts from its issue, though its thread may have gone on to a wait that is seen.
    seen = {wait.entry.thread for wait in blocked if not wait.entry.native}
    return [
        Need(wait.entry, _shared(certain(wait, _members(view, wait.entry))), wait.any_of)
        for wait in blocked
        if not wait.entry.native or wait.entry.thread not in seen
    ]


@functools.lru_cache(maxsize=64)
def _shared(ranks: tuple[int, ...]) -> frozenset[int]:
    """One set for all who wait in one collective: made for each of 1,000 ranks they are most of a proof."""
    return frozenset(ranks)


def asleep(view: View, needs: list[Need]) -> bool:
    """Whether those waits that can't be seen to begin have begun.

    A thread that sleeps in C++ sleeps in one of the calls that it issued there, and which is not to be seen:
    if it is in another than these, it goes on when that one's data have come. What the compiled kernel
    records tells that the backend is done with the others. The kernel in Python records nothing of that, nor
    can either of a send, a receive, or data on a GPU: where such a call came before, patience decides.
    """
    unseen = [one.entry for one in needs if one.entry.native]
    numbers = {entry.number for entry in unseen}
    return not any(view.live.under_way(entry, numbers) for entry in unseen) and all(
        view.live.asleep(entry) for entry in unseen
    )


def cycles(view: View, waits: dict[int, list[Wait]], now: float, patience: Patience) -> list[Finding]:
    """Ranks that wait for each other in different groups."""
    needs: dict[int, list[Need]] = {}
    for rank, ones in waits.items():
        if not view.ranks[rank].left and (need := needs_of(view, ones)):
            needs[rank] = need
    left = {seen.rank for seen in view.ranks if seen.left}
    needs = held(needs, left, lambda ones: asleep(view, ones))
    edges = {
        rank: ones[0].peers if len(ones) == 1 else frozenset().union(*(one.peers for one in ones))
        for rank, ones in needs.items()
    }
    circle = on_circles(edges)
    if not circle:
        return []
    if ended := _ended_senders(view, waits, [one for rank in circle for one in needs[rank]]):
        return ended
    current = {
        rank: max((one.entry for one in needs[rank]), key=lambda entry: entry.issued) for rank in circle
    }
    since = max(current[rank].issued for rank in circle)
    alone = {rank: entry for rank, entry in current.items() if len(needs[rank]) == 1}
    if bad := _misled(view, alone):
        # Who wants the misled ones comes first: that pair is the contradiction.
        good = sorted(current.keys() - set(bad), key=lambda rank: not _wants(view, current[rank], bad))
    else:
        held_against = charges(view, needs, circle)
        bad = sorted(held_against.outvoted or held_against.tied) or circle
        good = _most([rank for rank in circle if rank not in bad], current)
        asked = held_against.to_come
        if not held_against.outvoted and len(good) * 2 <= len(view.ranks):
            # Another call of theirs than that in which one of these waits would tell, too.
            asked = asked.union(*(_members(view, current[rank]) for rank in bad))
        on_their_way = any(rank not in needs and not view.ranks[rank].left for rank in asked)
        if on_their_way and now - since < patience.running:
            return []  # doomed already, but who is guilty is for those to tell who are still to come
    waiting = tuple(current[rank] for rank in (good or bad))
    return [
        Finding(
            "peer" if all(current[rank].group.startswith("p2p:") for rank in bad) else "wait_cycle",
            since,
            waiting[0].group,
            waiting[0].sequence,
            waiting,
            {rank: in_collective(current[rank]) for rank in bad},
        )
    ]


def _ended_senders(view: View, waits: dict[int, list[Wait]], needs: list[Need]) -> list[Finding]:
    """The ranks that left without what a receive from any source on the circle would have taken: the others
    of whom one would do are held up themselves.
    """
    found = []
    for one in (need for need in needs if need.any_of):
        entry, group = one.entry, _group(one.entry)
        left = terminals(view, waits, one.peers, group, excuse=False)
        guilty = terminals(view, waits, one.peers, group, excuse=True) or left
        # Any of them would have been enough: it is no circle before the last of them has left.
        since = max(
            at for at in (*(need.entry.issued for need in needs), *(at for _, at, _ in left.values()))
        )
        found += [
            Finding(kind, since, entry.group, entry.sequence, (entry,), {peer: where})
            for peer, (kind, _, where) in guilty.items()
        ]
    return joined(found)


def _most(ranks: list[int], current: dict[int, Entry]) -> list[int]:
    """Those of the ranks that wait at one place, where most do."""
    places: dict[Place, list[int]] = {}
    for rank in ranks:
        places.setdefault(place(current[rank]), []).append(rank)
    return max(places.values(), key=len, default=[])


def _misled(view: View, current: dict[int, Entry]) -> list[int]:
    """Of ranks with one wait each those whose send or receive would meet another's if they named that one,
    and is not met by whom they name.
    """
    calls = {rank: entry for rank, entry in current.items() if entry.group.startswith("p2p:")}
    named = {rank: _peer(view, entry) for rank, entry in calls.items()}
    fits = {
        named[rank]
        for rank, entry in calls.items()
        if (other := calls.get(named[rank])) is not None
        and (other.group, other.detail.get("tag")) == (entry.group, entry.detail.get("tag"))
        and {other.op, entry.op} == {"send", "recv"}
    }
    # Who takes any source names nobody, and is whose peer anybody may be.
    return [
        rank
        for rank, peer in sorted(named.items())
        if rank in fits and peer != ANY and named.get(peer) not in (rank, ANY)
    ]


def _wants(view: View, entry: Entry, ranks: list[int]) -> bool:
    return entry.group.startswith("p2p:") and _peer(view, entry) in ranks


def _peer(view: View, entry: Entry) -> int:
    """The global rank of a send's or receive's peer, or ANY."""
    return ANY if entry.peer < 0 else _members(view, entry)[entry.peer]


def _members(view: View, entry: Entry) -> tuple[int, ...]:
    return view.matching.members(_group(entry))


def _group(entry: Entry) -> str:
    return entry.group.removeprefix("p2p:")
