"""Sees waits for a collective through its work's future, as communication hooks and some libraries do."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from esper.lockstep.rank.groups import patch
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Flag, Time

_FAILED = int(Flag.FAILED)


class Futures:
    """Which records a future belongs to, for as long as somebody holds it."""

    def __init__(self, recorder: Recorder, number_of: Callable[[Any], int | None]) -> None:
        """`number_of`: the record of a work; None where it is not known."""
        self._recorder, self._number_of = recorder, number_of
        self._numbers: weakref.WeakKeyDictionary[Any, tuple[int, ...]] = weakref.WeakKeyDictionary()
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Follow get_future, then, collect_all (wait_all, too) and wait."""
        numbers, recorder, ledger = self._numbers, self._recorder, self._recorder.ledger
        get_future, then, wait = dist.Work.get_future, torch._C.Future.then, torch._C.Future.wait
        collect = torch._C._collect_all

        def follow_work(work: Any) -> Any:
            future, number = get_future(work), self._number_of(work)
            if number is not None:
                numbers[future] = (number,)
            return future

        def follow_future(future: Any, *args: Any, **kwargs: Any) -> Any:
            following, awaited = then(future, *args, **kwargs), numbers.get(future)
            if awaited is not None:
                numbers[following] = awaited
            return following

        def follow_all(futures: Any) -> Any:
            together = collect(futures)
            awaited = tuple(number for one in futures for number in numbers.get(one, ()))
            if awaited:
                numbers[together] = awaited
            return together

        def seen_wait(future: Any) -> Any:
            awaited = numbers.get(future)
            if awaited is None:
                return wait(future)
            ledger.set_threads(recorder.threads())
            for number in awaited:
                ledger.stamp(number, Time.WAIT_BEGUN)
            try:
                result = wait(future)
            except BaseException as error:
                for number in awaited:
                    ledger.stamp(number, Time.WAIT_ENDED, _FAILED)
                if error.__traceback__ is None or error.__traceback__.tb_next is None:  # from C++
                    recorder.victim(error)
                raise
            for number in awaited:
                ledger.stamp(number, Time.WAIT_ENDED, 0, _FAILED)
            return result

        for holder, name, patched in (
            (dist.Work, "get_future", follow_work),
            (torch._C.Future, "then", follow_future),
            (torch._C.Future, "wait", seen_wait),
            (torch._C, "_collect_all", follow_all),
        ):
            self._undo.append(patch(holder, name, patched))

    def uninstall(self) -> None:
        """Put the patched methods back."""
        while self._undo:
            self._undo.pop()()
        self._numbers.clear()
