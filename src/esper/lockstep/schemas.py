"""What the arguments of torch's `c10d::*` operators mean: where the group is, what must be equal, who is the
peer.
"""

from __future__ import annotations

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
        )
