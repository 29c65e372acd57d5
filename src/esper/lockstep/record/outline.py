"""What records say without their strings, a column at a time: a healthy program writes thousands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from esper.lockstep.record.ledger import RECORD, RECORD_SIZE

# Where the columns are in a record, in words of 4 bytes; the digest is one of 8.
_KIND, _GROUP, _SEQUENCE, _DIGEST, _THREAD = 0, 1, 2, 7, 24
_WORDS, _LONGS = RECORD_SIZE // 4, RECORD_SIZE // 8
assert RECORD.format == "<10I2i2Q4d2I"
assert RECORD_SIZE % 8 == 0


class Outline(NamedTuple):
    """Records that follow each other; `number` is the first's. Whoever wants one value of a column takes it
    from there: a list of all would be made for nothing.
    """

    number: int
    kinds: list[int]
    groups: list[int]  # the ids of their names
    sequences: Sequence[int]
    digests: Sequence[int]
    threads: Sequence[int]

    @classmethod
    def of(cls, number: int, records: bytes) -> Self:
        """The outline of whole records as the ring has them."""
        words, longs = memoryview(records).cast("I"), memoryview(records).cast("Q")
        kinds, groups = (words[column::_WORDS].tolist() for column in (_KIND, _GROUP))
        return cls(
            number,
            kinds,
            groups,
            words[_SEQUENCE::_WORDS],
            longs[_DIGEST::_LONGS],
            words[_THREAD::_WORDS],
        )
