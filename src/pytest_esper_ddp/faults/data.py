"""Faults of what a rank is fed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pytest_esper_ddp.faults.patching import Undo, wrap_target
from pytest_esper_ddp.scenario import Fault

DEFAULT_LOADER = "torch.utils.data:DataLoader.__iter__"
Fire = Callable[[], None]


def arm(fault: Fault, fire: Fire) -> Undo:
    """Something is wrong with one pass over the data.

    `target` is what makes an iterator of a pass (DataLoader's `__iter__` unless given); `epoch` counts from 1
    its calls, the first unless given.
    """
    passes = 0

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def one_pass(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            passes += 1
            batches = original(*args, **kwargs)
            return KINDS[fault.kind](batches, fire) if passes == (fault.epoch or 1) else batches

        return one_pass

    return wrap_target(fault.target or DEFAULT_LOADER, wrapper)


def _without_last(batches: Iterable[Any], fire: Fire) -> Iterator[Any]:
    held: list[Any] = []
    for batch in batches:
        if held:
            yield held.pop()
        held.append(batch)
    fire()  # where the others take the batch that this rank no longer has


def _first_is_nan(batches: Iterable[Any], fire: Fire) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        if number == 0:
            fire()
            yield _nan(batch)
        else:
            yield batch


def _nan(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _nan(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(map(_nan, part)) if type(part) in (list, tuple) else part
    # No import of torch: whatever brought the batch has it.
    return part * float("nan") if getattr(part, "is_floating_point", bool)() else part


def _from_the_last(batches: Iterable[Any], fire: Fire) -> Iterator[Any]:
    every = list(batches)
    fire()
    yield from reversed(every)


def _dead_worker(batches: Iterable[Any], fire: Fire) -> Iterator[Any]:
    """A worker of DataLoader is killed, and torch says so; without any, its words are said in its place."""
    iterator = iter(batches)
    workers = getattr(iterator, "_workers", [])
    fire()
    if not workers:
        raise RuntimeError("DataLoader worker (pid(s) 0) exited unexpectedly")
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].join()
    yield from iterator


KINDS: dict[str, Callable[[Iterable[Any], Fire], Iterator[Any]]] = {
    "uneven_loader": _without_last,
    "nan_batch": _first_is_nan,
    "other_order": _from_the_last,
    "worker_death": _dead_worker,
}
