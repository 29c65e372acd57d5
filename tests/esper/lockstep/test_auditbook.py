"""Which audits of replicas are held against each other, and when a difference counts."""

from __future__ import annotations

from esper.lockstep.proof.auditbook import AuditBook
from esper.lockstep.record.entry import Entry, Kind, Times
from tests.esper.lockstep.story import Story


def _audit(rank: int, digest: int, *, position: int = 3, group: str = "default", **detail: object) -> Entry:
    return Entry(
        rank=rank,
        number=position,
        kind=Kind.AUDIT,
        group=group,
        sequence=position,
        op="forward",
        reduce_op=None,
        dtype=None,
        shape=None,
        site=None,
        tag="DistributedDataParallel #0",
        detail=detail,
        root=-1,
        peer=0,
        elements=1,
        digest=digest,
        times=Times(1.0, 0.0, 0.0, 0.0, 1, 0),
    )


def _differing(*entries: Entry) -> list[tuple[str, int]]:
    book = AuditBook()
    for entry in entries:
        book.add(entry, (0, 1))
    return [(audit.key.group, audit.key.position) for audit in book.differing()]


def test_two_digests_at_one_place_differ() -> None:
    assert _differing(_audit(0, 1), _audit(1, 2)) == [("default", 3)]
    assert _differing(_audit(0, 1), _audit(1, 1)) == []


def test_other_places_and_other_groups_are_not_compared() -> None:
    assert _differing(_audit(0, 1), _audit(1, 2, position=4)) == []
    assert _differing(_audit(0, 1), _audit(1, 2, group="group 1")) == []


def test_only_the_same_trained_parameters_are_compared() -> None:
    assert _differing(_audit(0, 1, subset=5), _audit(1, 2, subset=6)) == []
    assert _differing(_audit(0, 1, subset=5), _audit(1, 2, subset=5)) == [("default", 3)]


def test_after_local_steps_replicas_count_once_they_have_been_alike() -> None:
    apart = [_audit(0, 1, phase=1), _audit(1, 2, phase=1)]
    assert _differing(*apart) == []
    alike = [_audit(rank, 7, position=5, phase=1) for rank in (0, 1)]
    later = [_audit(0, 1, position=9, phase=1), _audit(1, 2, position=9, phase=1)]
    assert _differing(*apart, *alike, *later) == [("default", 9)]
    again = [_audit(0, 1, position=12, phase=2), _audit(1, 2, position=12, phase=2)]
    assert _differing(*apart, *alike, *again) == []


def test_a_difference_is_proved_while_nobody_waits() -> None:
    story = Story(3)
    for rank, digest in enumerate((7, 7, 8)):
        story.write(rank, Kind.AUDIT, group="default", op="forward", tag="alpha", digest=digest)
    assert story.found() == ("drift", [2])
