"""The wait-for graph: who can't go on for as long as the others can't, and who is on a circle of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from esper.lockstep.record.entry import Entry


@dataclass(frozen=True)
class Need:
    """One wait that a rank's thread is in: it can't end without all of `peers`, or one where `any_of`."""

    entry: Entry
    peers: frozenset[int]
    any_of: bool = False

    def held_by(self, ranks: Collection[int], gone: Collection[int] = ()) -> bool:
        """Whether it can't end for as long as those `ranks` can't go on."""
        if not self.any_of:
            return any(peer in ranks for peer in self.peers)
        return bool(self.peers) and all(peer in ranks or peer in gone for peer in self.peers)


def held(
    needs: Mapping[int, list[Need]], gone: Collection[int], blocked: Callable[[list[Need]], bool]
) -> dict[int, list[Need]]:
    """The largest set of ranks that can only go on after another of them has; O(edges).

    `blocked`: whether a rank is in its waits at all, asked last, since the answer may cost a signal.
    """
    left = dict(needs)
    awaited_by: dict[int, list[int]] = {}

    def freed(rank: int) -> list[int]:
        """Take a rank out; those that may be free now."""
        del left[rank]
        if not awaited_by:
            for waiting, ones in needs.items():
                for peer in frozenset().union(*(one.peers for one in ones)):
                    awaited_by.setdefault(peer, []).append(waiting)
        return awaited_by.get(rank, [])

    def free(rank: int) -> bool:
        # A rank one of whose threads waits for somebody who may yet come is free again then.
        return not all(one.held_by(left, gone) for one in left[rank])

    todo = list(needs)
    while True:
        while todo:
            rank = todo.pop()
            if rank in left and free(rank):
                todo += freed(rank)
        awake = [rank for rank, ones in left.items() if not blocked(ones)]
        if not awake:
            return left
        for rank in awake:
            todo += freed(rank)


def on_circles(edges: Mapping[int, Collection[int]]) -> list[int]:
    """The nodes from which there is a way back to themselves, in order; O(edges).

    Tarjan, "Depth-First Search and Linear Graph Algorithms", SIAM J. Comput. 1 (1972), without recursion.
    """
    index: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    found: list[int] = []

    def enter(node: int) -> tuple[int, Iterator[int]]:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        open_nodes.add(node)
        return node, iter(edges.get(node, ()))

    open_nodes: set[int] = set()
    for start in edges:
        path = [] if start in index else [enter(start)]
        while path:
            node, following = path[-1]
            peer = next(following, None)
            if peer is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == index[node]:
                    component = [stack.pop()]
                    while component[-1] != node:
                        component.append(stack.pop())
                    open_nodes.difference_update(component)
                    if len(component) > 1 or node in edges.get(node, ()):
                        found += component
            elif peer not in index:
                path.append(enter(peer))
            elif peer in open_nodes:
                lowest[node] = min(lowest[node], index[peer])
    return sorted(found)
