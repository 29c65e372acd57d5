"""What the arguments of torch's `c10d::*` operators mean: where the group is, what must be equal, who is the
peer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce_coalesced",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_coalesced_": "all_gather_coalesced",
    "allgather_into_tensor_coalesced_": "all_gather_coalesced",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter_coalesced",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "send": "send",
    "recv_": "recv",
    "recv_any_source_": "recv",
    "barrier": "barrier",
    "monitored_barrier_": "monitored_barrier",
}
NOT_COLLECTIVE = {"check_for_nan"}
_DATA = ("input", "input_tensor", "input_tensors", "input_list", "inputs", "tensors")
_UNSIZED = {"all_to_all", "send", "recv", "barrier", "monitored_barrier"}
_MOST_SPLITS = 1000  # texts in a rank's string table
_VARIADIC = {"scatter_": "output_tensors"}


@dataclass(frozen=True)
class OpSchema:
    """Positions in one operator's argument list; None where it has no such argument.

    Trailing arguments that equal their default are not passed to a kernel, so every position needs a length
    check.
    """

    operator: str
    op: str
    group: int
    data: int | None
    reduce_op: int | None
    async_op: int | None
    root: int | None
    peer: int | None
    tag: int | None
    point_to_point: bool
    blocking: bool
    sized: bool  # whether the element count must be equal on all members
    tensors_returned: bool  # (tensors, work) rather than work alone
    # Of an exchange of one tensor's rows: its output, and how it and the input are cut.
    rows: tuple[int, int, int] | None

    @classmethod
    def of(cls, schema: Any) -> OpSchema:
        """Read one entry of torch's schema registry."""
        at = {argument.name: index for index, argument in enumerate(schema.arguments)}
        operator = schema.name.removeprefix("c10d::")
        op = NAMES.get(operator, operator.strip("_"))
        data_name = _VARIADIC.get(operator) or next((name for name in _DATA if name in at), None)
        return cls(
            operator=operator,
            op=op,
            group=at["process_group"],
            data=None if op in ("barrier", "monitored_barrier") or data_name is None else at[data_name],
            reduce_op=at.get("reduce_op"),
            async_op=at.get("async_op"),
            root=at.get("root_rank"),
            peer=at.get("dst", at.get("src")),
            tag=at.get("tag"),
            point_to_point=op in ("send", "recv"),
            blocking=operator == "monitored_barrier_",
            sized=op not in _UNSIZED,
            tensors_returned=len(schema.returns) == 2,
            rows=(at["output"], at["output_split_sizes"], at["input_split_sizes"])
            if operator == "alltoall_base_"
            else None,
        )

    @property
    def plain(self) -> bool:
        """Whether a call is told by its first tensor, its elements, reduce operation and root alone, or is an
        exchange of rows.
        """
        if self.point_to_point or self.blocking or self.data is None or self.name_of() is not None:
            return False
        return self.rows is not None or self.detail_of() is None

    def name_of(self) -> Callable[[Sequence[Any]], str] | None:
        """What names a call by its arguments, where the operator alone does not: a functional collective of
        one tensor goes through the coalesced operator.
        """
        single, at = self.op.removesuffix("_coalesced"), self.data
        if single == self.op or at is None:
            return None
        return lambda args: single if len(args[at]) == 1 else self.op

    def detail_of(self) -> Callable[[Sequence[Any], int], str | None] | None:
        """What gives a call's detail as JSON, from its arguments and the number of members; None where there
        is none.
        """
        if self.op == "all_to_all":
            return _Splits()
        at = self.tag
        if at is None:
            return None
        # Calls of one pair with different tags don't match each other.
        return lambda args, members: f'{{"tag": {args[at]}}}' if args[at] else None


class _Splits:
    """How many elements an all_to_all sends to each member and wants from each."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, args: Sequence[Any], members: int) -> str | None:
        """As JSON; None once there were too many different ones, which a program may go on to have."""
        outputs, inputs = args[0], args[1]
        to, wanted = _elements(inputs, args, 4, members), _elements(outputs, args, 3, members)
        text = f'{{"to": {to}, "from": {wanted}}}'
        if text not in self._told:
            if len(self._told) >= _MOST_SPLITS:
                return None
            self._told.add(text)
        return text


def _elements(data: Any, args: Sequence[Any], at: int, members: int) -> list[int]:
    """Elements for each member: of a list of tensors, or of one tensor cut into the rows that `args[at]`
    says, alike where it says nothing.
    """
    if type(data) is list:
        return [one.numel() for one in data]
    rows = args[at] if len(args) > at and args[at] else [1] * members
    return [each * (data.numel() // max(1, sum(rows))) for each in rows]
