"""A collective's arguments as they should not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from esper.lockstep.rank.interposer import Call


def _shape(call: Call) -> tuple[Any, ...]:
    """One element fewer in the smallest tensor, twice as many where it has only one; the others in step."""
    unit = min((one.numel() for one in _leaves(call.args[: call.schema.group])), default=0)

    def other(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.reshape(-1)
        return flat[: flat.numel() - flat.numel() // unit] if unit > 1 else torch.cat([flat, flat])

    return _mapped(call, other) if unit else call.args


def _dtype(call: Call) -> tuple[Any, ...]:
    """Doubles in place of floats, floats in place of anything else."""
    return _mapped(call, lambda one: one.to(torch.float64 if one.dtype == torch.float32 else torch.float32))


def _reduce_op(call: Call) -> tuple[Any, ...]:
    """The maximum in place of a sum, a sum in place of anything else."""
    at = call.schema.reduce_op
    assert at is not None
    summed = torch.classes.c10d.ReduceOp()
    other = _boxed_maximum(call) if call.args[at].op() == summed.op() else summed
    return _replaced(call.args, at, other)


def _root(call: Call) -> tuple[Any, ...]:
    """The next rank of the group; not this one if there is another, since it would need lists to fill."""
    at = call.schema.root
    assert at is not None
    group = dist.ProcessGroup.unbox(call.args[call.schema.group])
    root = (call.args[at] + 1) % group.size()
    if root == group.rank() and group.size() > 2:
        root = (root + 1) % group.size()
    args = _replaced(call.args, at, root)
    lists = {"gather": 0, "scatter": 1}.get(call.op)
    if lists is None:
        return args
    one = first_tensor(call.args[1 - lists])
    theirs = [[torch.empty_like(one) for _ in range(group.size())]] if root == group.rank() else []
    return _replaced(args, lists, theirs)


CHANGES: dict[str, Callable[[Call], tuple[Any, ...]]] = {
    "shape": _shape,
    "dtype": _dtype,
    "reduce_op": _reduce_op,
    "root": _root,
}


def flip(tensor: torch.Tensor | None) -> None:
    """Flip a bit of the first element: the highest of a float's fraction or near it, an integer's lowest."""
    if tensor is None or not tensor.numel():
        return
    # Through .data, since autograd would see a change of a tensor that it has saved.
    first = tensor.data[(0,) * tensor.dim()].reshape(1).view(torch.uint8)
    if tensor.is_floating_point() or tensor.is_complex():
        first[max(0, first.numel() - 2)] ^= 0x40
    else:
        first[0] ^= 1


def first_tensor(given: Any) -> Any:
    """The first tensor of nested lists of them; None where there is none."""
    return next(_leaves(given), None)


def _leaves(given: Any) -> Iterator[torch.Tensor]:
    if isinstance(given, list | tuple):
        for one in given:
            yield from _leaves(one)
    elif given is not None:
        yield given


def _mapped(call: Call, change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, ...]:
    """The arguments with every tensor changed; of all operators, tensors come before the group."""

    def deep(given: Any) -> Any:
        return [deep(one) for one in given] if isinstance(given, list) else change(given)

    at = call.schema.group
    return (*map(deep, call.args[:at]), *call.args[at:])


def _replaced(args: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*args[:at], value, *args[at + 1 :])


def _boxed_maximum(call: Call) -> Any:
    """MAX as an operator takes it: Python can box the default only, so an all_reduce by it is looked at."""
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp(dist.ReduceOp.MAX)
    group = dist.ProcessGroup.unbox(call.args[call.schema.group])
    seen = call.peek(lambda: group.allreduce([torch.zeros(1)], options))
    assert seen.schema.reduce_op is not None
    return seen.args[seen.schema.reduce_op]
