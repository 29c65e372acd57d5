"""What may befall ranks, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Callable

from tests.esper.lockstep.fleet import Fleet

Story = Callable[[Fleet], None]


def all_but_rank_2_wait(ranks: Fleet) -> None:
    ranks.together(3)
    for rank in (0, 1, 3):
        ranks.call(rank, line=7)


def elsewhere(ranks: Fleet) -> None:
    all_but_rank_2_wait(ranks)
    ranks.call(2, "broadcast", root=0, line=9)


def swapped(ranks: Fleet) -> None:
    ranks.together(3)
    for rank in range(4):
        for tag in "ba" if rank == 2 else "ab":
            ranks.call(rank, tag=tag)


def in_a_circle(ranks: Fleet) -> None:
    ranks.group("pair", 0, 1)
    ranks.together(3)
    ranks.call(0, group="pair")
    ranks.call(1)


def program_over(ranks: Fleet) -> None:
    all_but_rank_2_wait(ranks)
    ranks.over(2)


def raised(ranks: Fleet) -> None:
    all_but_rank_2_wait(ranks)
    ranks.raises(2, ValueError("corrupt sample"))


def drifted(ranks: Fleet) -> None:
    ranks.together()
    for rank in range(4):
        ranks.audit(rank, digest=5 + (rank == 1))
    ranks.over()


def late_and_there(ranks: Fleet) -> None:
    all_but_rank_2_wait(ranks)
    ranks.live_on(62)


def late_and_silent(ranks: Fleet) -> None:
    all_but_rank_2_wait(ranks)
    ranks.live_on(62, 0, 1, 3)


def crossed_receives(ranks: Fleet) -> None:
    ranks.together(3)
    ranks.call(0, "recv", peer=1)
    ranks.call(1, "recv", peer=0)


DIVERGED: dict[Story, tuple[str, tuple[int, ...]]] = {
    elsewhere: ("mismatch", (2,)),
    swapped: ("order", (2,)),
    in_a_circle: ("wait_cycle", (0, 1)),
    program_over: ("missing", (2,)),
    raised: ("raised", (2,)),
    drifted: ("drift", (1,)),
    late_and_there: ("stalled", (2,)),
    late_and_silent: ("frozen", (2,)),
    crossed_receives: ("peer", (0, 1)),
}
SIZE: dict[Story, int] = {in_a_circle: 2, crossed_receives: 2}
