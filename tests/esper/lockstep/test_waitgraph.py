"""The wait-for graph against definitions written out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esper.lockstep.proof.waitgraph import Need, held, on_circles
from tests.esper.lockstep.story import Story

GRAPHS = st.integers(1, 7).flatmap(
    lambda size: st.dictionaries(
        st.integers(0, size - 1), st.frozensets(st.integers(0, size - 1)), max_size=size
    )
)
ENTRY = Story(1).call(0)


@given(GRAPHS)
def test_on_a_circle_is_who_is_reached_from_himself(edges: dict[int, frozenset[int]]) -> None:
    def reached(start: int) -> set[int]:
        seen: set[int] = set()
        todo = list(edges.get(start, ()))
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += edges.get(node, ())
        return seen

    assert on_circles(edges) == sorted(node for node in edges if node in reached(node))


@given(
    st.dictionaries(
        st.integers(0, 5),
        st.lists(
            st.builds(Need, st.just(ENTRY), st.frozensets(st.integers(0, 6)), st.booleans()),
            min_size=1,
            max_size=2,
        ),
    ),
    st.sets(st.integers(0, 6)),
    st.sets(st.integers(0, 5)),
)
def test_held_is_what_is_left_when_all_who_can_go_on_have(
    needs: dict[int, list[Need]], gone: set[int], awake: set[int]
) -> None:
    left = {rank: ones for rank, ones in needs.items() if rank not in awake}
    while free := [
        rank for rank, ones in left.items() if not all(one.held_by(left.keys(), gone) for one in ones)
    ]:
        del left[free[0]]
    by_needs = {id(ones): rank for rank, ones in needs.items()}
    assert held(needs, gone, lambda ones: by_needs[id(ones)] not in awake) == left


def test_a_long_chain_takes_no_longer_than_its_edges() -> None:
    """20,000 ranks, each waiting for the next: one look at all for each that goes on would take minutes."""
    needs = {rank: [Need(ENTRY, frozenset({rank + 1}))] for rank in range(20_000)}
    assert held(needs, (), lambda ones: True) == {}
    ring = {rank: {(rank + 1) % 20_000} for rank in range(20_000)}
    assert len(on_circles(ring)) == 20_000
