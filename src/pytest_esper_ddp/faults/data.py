"""Faults of what a rank is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pytest_esper_ddp.faults.patching import Undo, wrap_target
from pytest_esper_ddp.scenario import Fault

DEFAULT_LOADER = "torch.utils.data:DataLoader.__iter__"


def arm(fault: Fault, fire: Callable[[], None]) -> Undo:
    """`uneven_loader`: the last batch of one pass over the data is lost.

    `target` is what makes an iterator of a pass (DataLoader's `__iter__` unless given); `epoch` counts from 1
    its calls, the first unless given.
    """
    passes = 0

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def one_pass(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            passes += 1
            batches = original(*args, **kwargs)
            return _without_last(batches, fire) if passes == (fault.epoch or 1) else batches

        return one_pass

    return wrap_target(fault.target or DEFAULT_LOADER, wrapper)


def _without_last(batches: Iterable[Any], fire: Callable[[], None]) -> Iterator[Any]:
    held: list[Any] = []
    for batch in batches:
        if held:
            yield held.pop()
        held.append(batch)
    fire()  # where the others take the batch that this rank no longer has
