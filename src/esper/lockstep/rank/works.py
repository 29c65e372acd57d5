"""The works of this process: which record each belongs to, and when it is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from esper.lockstep import waiting
from esper.lockstep.rank.futures import Futures
from esper.lockstep.rank.groups import patch
from esper.lockstep.rank.interposer import After
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Flag, Time

# Works that nobody waits on are looked through when there are this many.
_MANY_UNWAITED = 32
_FAILED, _POLLED = int(Flag.FAILED), int(Flag.POLLED)


class Works:
    """Follows waits for works: by `wait`, by asking whether they are done, and through their futures."""

    def __init__(self, recorder: Recorder, after: After) -> None:
        self._recorder, self._after = recorder, after
        # By id: the work, kept so that its id stays its own, its record, whether its call waits itself.
        self.known: dict[int, tuple[Any, int, bool]] = {}
        self.most = _MANY_UNWAITED
        self._original_poll: Any = dist.Work.is_completed
        self._futures = Futures(recorder, lambda work: self.known.get(id(work), (None, None))[1])
        self._failed: set[int] = set()  # records whose wait has raised, or was found not done
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Patch torch's works and futures."""
        self._patch_wait()
        self._patch_poll()
        self._futures.install()

    def uninstall(self) -> None:
        """Put them back."""
        waiting.set_observer(None)
        self._futures.uninstall()
        while self._undo:
            self._undo.pop()()
        self.known.clear()

    def forget_done(self) -> None:
        """Let go of works that are done and were not waited for: a work keeps its tensors alive, and a
        communication hook waits for a future instead. A later wait for one returns at once.
        """
        for key, (work, _, _) in list(self.known.items()):
            if self._original_poll(work) and key not in self._after:
                self.known.pop(key, None)
        self.most = max(_MANY_UNWAITED, 2 * len(self.known))

    def _patch_wait(self) -> None:
        original: Callable[..., Any] = dist.Work.wait
        poll = self._original_poll
        works, after, recorder, ledger = self.known, self._after, self._recorder, self._recorder.ledger
        failed = self._failed

        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            known = works.get(id(work))
            if known is None:
                return original(work, *args, **kwargs)
            _, number, synchronous = known
            if synchronous and not args and not kwargs:
                # Waited for since its issue: the record says so already, and this wait is its first.
                pass
            elif waiting.current.work is not work:
                ledger.set_threads(recorder.threads())
                polled = _POLLED if args or kwargs else 0
                ledger.stamp(number, Time.WAIT_BEGUN, polled, _POLLED - polled)
            try:
                result = original(work, *args, **kwargs)
            except BaseException as error:
                if waiting.current.work is not work:
                    ledger.stamp(number, Time.WAIT_ENDED, _FAILED)
                    failed.add(number)  # a later wait for it may still succeed
                # From C++ the traceback ends here; a signal handler's exception has frames of its own.
                trace = error.__traceback__
                if trace is not None and trace.tb_next is None:
                    recorder.victim(error, polled=bool(args or kwargs))
                raise
            if after:
                _follow(after, work)
            if poll(work):
                ledger.stamp(number, Time.WAIT_ENDED, 0, _FAILED if number in failed else 0)
            else:  # NCCL's: only its stream waits, and the program goes on
                ledger.stamp(number, Time.WAIT_BEGUN, _POLLED)
            works.pop(id(work), None)
            failed.discard(number)
            return result

        self._undo.append(patch(dist.Work, "wait", wait))

        def begun(work: Any) -> None:
            known = works.get(id(work))
            if known is not None:
                ledger.set_threads(recorder.threads())
                ledger.stamp(known[1], Time.WAIT_BEGUN)

        def ended(work: Any, failed: bool) -> None:
            known = works.get(id(work))
            if known is not None:
                if after and not failed:
                    _follow(after, work)
                ledger.stamp(known[1], Time.WAIT_ENDED, *((_FAILED, 0) if failed else (0, _FAILED)))
                works.pop(id(work), None)

        waiting.set_observer((begun, ended))

    def _patch_poll(self) -> None:
        """A program that asks again and again whether a work is done waits for it."""
        original = self._original_poll = dist.Work.is_completed
        works, ledger, failed = self.known, self._recorder.ledger, self._failed

        def is_completed(work: Any) -> bool:
            done: bool = original(work)
            known = works.get(id(work))
            if known is None or known[2] or waiting.current.work is work:
                return done
            number = known[1]
            ledger.stamp(number, Time.WAIT_BEGUN)
            if done and not _has_error(work):
                ledger.stamp(number, Time.WAIT_ENDED, 0, _FAILED | _POLLED)
                failed.discard(number)
            else:
                ledger.stamp(number, Time.WAIT_ENDED, _FAILED | _POLLED)
                failed.add(number)
            return done

        self._undo.append(patch(dist.Work, "is_completed", is_completed))


def _has_error(work: Any) -> bool:
    """Whether a work that is done has failed. Asking the work itself prints a deprecation in C++."""
    try:
        future = work.get_future()
    except RuntimeError:  # its backend has none
        return False
    try:
        future.value()
    except RuntimeError:
        return True
    return False


def _follow(after: After, work: Any) -> None:
    """Do what is to be done on a work's completion."""
    known = after.pop(id(work), None)
    if known is not None:
        known[1]()
