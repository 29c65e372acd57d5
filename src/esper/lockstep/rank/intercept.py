"""Sees every collective of this process: kernels for all `c10d::*` operators, above torch's own.

A kernel at dispatch key BackendSelect is reached by Python calls, functional collectives, DDP's constructor
and C++ reducer, FSDP2 and DTensor alike; it records and redispatches below itself, so the group's type and
backend stay what they were.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from esper.lockstep import asking, tags, waiting
from esper.lockstep.rank.compiling import CompileWatch
from esper.lockstep.rank.groups import Groups, patch
from esper.lockstep.rank.hooks import check_hooks
from esper.lockstep.rank.interposer import After, Interposer
from esper.lockstep.rank.kernel import Kernels
from esper.lockstep.rank.questions import asker_of
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.rank.replicas import Replicas
from esper.lockstep.rank.works import Works


class _Installed:
    """The one of this process: torch is patched for all of it."""

    interception: Interception | None = None


def installed() -> Interception | None:
    """What records this process; None while nothing does."""
    found = _Installed.interception
    return found if found is not None and found.recorder.ledger.is_open else None


class Interception:
    """Installed once per process and removed again; what it does while installed is one `Recorder`'s
    business.

    With a ledger that is not open yet it may be installed in a process that ranks are forked from: it passes
    every call on until a rank attaches it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        # Whether somebody outside ends the job at a verdict: a watchdog in it would find the same once more.
        self.judged = False
        self.groups = Groups(recorder)
        self.replicas = Replicas(recorder, self.groups)
        self._after: After = {}
        self.works = Works(recorder, self._after)
        self.kernels = Kernels(recorder, self.groups, self.replicas, self.works, self._after)
        self.compiling = CompileWatch(recorder.ledger)
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Start to see collectives. Raises InterceptionUnavailable where this torch lacks a hook, naming
        it.
        """
        check_hooks()
        try:
            self._install()
        except BaseException:  # half of it would see a program's collectives and miss their waits
            self.uninstall()
            raise

    def _install(self) -> None:
        _Installed.interception = self
        self.kernels.install()
        self.works.install()
        for holder, name in (
            (dist.Work, "get_future"),
            (dist.rpc, "init_rpc"),
            # A thread counts itself, so it is not counted yet when its starter goes on to wait; `threading`
            # waits for that.
            (_thread, "start_new_thread"),
        ):
            # A build without RPC lacks the second.
            if hasattr(holder, name):
                self._undo.append(patch(holder, name, self._brings_threads(getattr(holder, name))))
        self.groups.install(lambda default, frame: self.replicas.audit("destroy", default, frame))
        self.replicas.install()
        self.compiling.install()
        if self.recorder.ledger.is_open:
            self.attach()

    def attach(self) -> None:
        """The ledger is open: record from now on."""
        self.kernels.attach()
        self.replicas.attach()
        asking.set_asker(asker_of(self.recorder))
        tags.set_recording(True)

    def uninstall(self) -> None:
        """Put everything back as it was."""
        if _Installed.interception is self:
            _Installed.interception = None
        tags.set_recording(False)
        asking.set_asker(None)
        self.compiling.uninstall()
        self.replicas.uninstall()
        self.groups.uninstall()
        while self._undo:
            self._undo.pop()()
        self.works.uninstall()
        self.kernels.uninstall()

    @property
    def interposer(self) -> Interposer | None:
        """What stands between the program and its collectives."""
        return self.kernels.interposer

    @interposer.setter
    def interposer(self, interposer: Interposer | None) -> None:
        self.kernels.interposer = interposer

    def begin(self, name: str) -> None:
        """A new program starts on this rank: everything is counted from 0 again."""
        self.recorder.begin(name)
        self._after.clear()
        self.groups.begin()
        self.replicas.begin()

    def summary(self) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        """Per group: collectives so far, their chained digest, and the members; the audits under `audits`.

        Ranks whose summaries are equal have nothing to compare.
        """
        summary = self.groups.summary()
        default = summary.get("default")
        if default is not None:
            summary["audits"] = (0, self.replicas.chain, default[2])
        return summary

    def detach(self) -> None:
        """In a forked child: stop recording, or a loader's worker that ends would be its parent's end."""
        self.kernels.detach()
        self.recorder.detach()
        self.compiling.forget()
        self.works.known.clear()
        tags.set_recording(False)
        asking.set_asker(None)
        waiting.set_observer(None)

    def _brings_threads(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, after which threads that nobody counts may come to run Python."""

        def bringing(*args: Any, **kwargs: Any) -> Any:
            self.recorder.uncounted_threads = True
            return original(*args, **kwargs)

        return bringing
