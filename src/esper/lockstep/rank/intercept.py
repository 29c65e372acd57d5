"""Sees every collective of this process: Python kernels for all `c10d::*` operators, above torch's own.

A kernel at dispatch key BackendSelect is reached by Python calls, functional collectives, DDP's constructor
and C++ reducer, FSDP2 and DTensor alike; it records and redispatches below itself, so the group's type and
backend stay what they were. Measured: about 14 us a call at one rank, half of it the bounce through Python.
"""

from __future__ import annotations

import _thread
import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from esper.lockstep import tags, waiting
from esper.lockstep.rank import backward, compiled
from esper.lockstep.rank.groups import Groups, patch
from esper.lockstep.rank.hooks import check_hooks
from esper.lockstep.rank.interposer import After, Call, Interposer, Peek
from esper.lockstep.rank.recorder import GroupRecord, Recorder
from esper.lockstep.rank.replicas import Replicas
from esper.lockstep.rank.schemas import NOT_COLLECTIVE, OpSchema
from esper.lockstep.rank.works import Works, mark_victim
from esper.lockstep.record.entry import Flag, Time

_WAITED, _NATIVE, _UNWINDING = int(Flag.WAITED), int(Flag.NATIVE), int(Flag.UNWINDING)
_POLLED, _OFFERED = int(Flag.POLLED), int(Flag.OFFERED)
_STRIDED, _RED_OP = torch.strided, dist.ReduceOp.RedOpType
_REDUCE_NAMES: dict[Any, str] = {value: name for name, value in _RED_OP.__members__.items()}
_BY_NUMBER = {value.value: name for value, name in _REDUCE_NAMES.items()}


class Interception:
    """Installed once per process and removed again; what it does while installed is one `Recorder`'s
    business.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.groups = Groups(recorder)
        self.replicas = Replicas(recorder, self.groups)
        self.interposer: Interposer | None = None
        self.detached = False
        self._after: After = {}
        self._library: Any = None
        self._compiled: Any = None
        self.works = Works(recorder, self._after)
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Start to see collectives. Raises InterceptionUnavailable where this torch lacks a hook, naming
        it.
        """
        check_hooks()
        self._library = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
        self._compiled = compiled.kernels_of(self)
        for schema in torch._C._jit_get_all_schemas():
            if not schema.name.startswith("c10d::") or schema.name.removeprefix("c10d::") in NOT_COLLECTIVE:
                continue
            packet = getattr(torch.ops.c10d, schema.name.removeprefix("c10d::"))
            overload = getattr(packet, schema.overload_name or "default")
            meaning = OpSchema.of(schema)
            kernel = self._kernel(overload, meaning)
            if self._compiled is None or not meaning.plain:
                self._library.impl(overload, kernel, "BackendSelect", with_keyset=True)
            else:
                compiled.add(self._compiled, meaning, kernel)
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
        tags.set_recording(True)

    def uninstall(self) -> None:
        """Put everything back as it was."""
        tags.set_recording(False)
        self.replicas.uninstall()
        self.groups.uninstall()
        while self._undo:
            self._undo.pop()()
        self.works.uninstall()
        if self._compiled is not None:
            self._compiled.close()
            self._compiled = None
        if self._library is not None:
            self._library._destroy()
            self._library = None

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
        self.detached = True
        self.recorder.detach()
        self.works.known.clear()
        tags.set_recording(False)
        waiting.set_observer(None)

    def _kernel(self, overload: Any, schema: OpSchema) -> Callable[..., Any]:
        """The kernel of one operator. One closure, since every attribute look-up in it is paid per
        collective.
        """
        below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
        unbox_group, unbox_work = dist.ProcessGroup.unbox, torch._C._distributed_c10d.Work.unbox
        python_api = c10d.__file__
        recorder, groups, works, known_works = self.recorder, self.groups, self.works, self.works.known
        redispatch, stamp, set_flags = overload.redispatch, recorder.ledger.stamp, recorder.ledger.set_flags
        handled = sys.exception
        op, at_group, at_reduce, at_async, at_root, at_peer, at_data = (
            schema.op,
            schema.group,
            schema.reduce_op,
            schema.async_op,
            schema.root,
            schema.peer,
            schema.data,
        )

        # A blocking operator raises after a time of its own, and the program may come back.
        base = _WAITED | _POLLED if schema.blocking else _OFFERED
        is_barrier = op == "barrier"
        detail_of, name_of = schema.detail_of(), schema.name_of()

        def kernel(keyset: Any, *args: Any, caller: Any = None) -> Any:
            if self.detached or groups.foreign:
                return redispatch(keyset & below, *args)
            group = groups.of(unbox_group(args[at_group]))
            frame, thread = _caller() if caller is None else caller  # an interposer issues it for its caller
            native = frame is None or frame.f_code.co_filename != python_api
            if self.interposer is not None and caller is None:
                call = Call(schema, group.key, tags.current.tag, args, native, self._after, self.peek)
                return self.interposer.around(call, functools.partial(kernel, keyset, caller=(frame, thread)))
            flags = (base | _NATIVE | _WAITED) if native else base
            if at_async is not None and len(args) > at_async and not args[at_async]:
                flags |= _WAITED
            if (passing := handled()) is not None:
                flags |= _UNWINDING
            dtype, shape, elements = (None, None, 0) if at_data is None else _describe(args[at_data])
            if is_barrier and not native:
                self.replicas.audit("barrier", group, frame)
            # What an interposer has changed, the caller does not have.
            given = frame if caller is None else None
            reduce_op = None if at_reduce is None else _reduce_op(args[at_reduce], given, native)
            record_in = groups.channel(group) if schema.point_to_point else group
            with record_in.lock:
                number = recorder.collective(
                    record_in,
                    op if name_of is None else name_of(args),
                    reduce_op,
                    dtype,
                    shape,
                    elements if schema.sized else 0,
                    -1 if at_root is None else args[at_root],
                    -1 if at_peer is None else args[at_peer],
                    recorder.site(frame),
                    flags,
                    detail_of(args, len(group.members))
                    if detail_of is not None
                    else None
                    if passing is None
                    else recorder.passing(passing),
                    thread=thread,
                )
                if not schema.blocking:
                    try:
                        out = redispatch(keyset & below, *args)
                    except BaseException as error:
                        self.not_taken(error, number, record_in)
                        raise
                    set_flags(number, flags & ~_OFFERED)
            if schema.blocking:
                # It sends and receives inside: under the lock a second thread of the group would wait with
                # it.
                return _blocking(redispatch, keyset & below, args, stamp, number)
            if not native:
                work: Any = unbox_work(out[1] if schema.tensors_returned else out)
                if work is None:  # NCCL's of a synchronous call: its stream waits, and the program goes on
                    set_flags(number, flags & ~_OFFERED | _WAITED | _POLLED)
                    return out
                if len(known_works) >= works.most:
                    works.forget_done()
                known_works[id(work)] = (work, number, bool(flags & _WAITED))
            return out

        return kernel

    def peek(self, issue: Callable[[], object]) -> Call:
        """The call that `issue` comes to, which is not issued."""
        outer, self.interposer = self.interposer, (seen := Peek())
        try:
            issue()
        finally:
            self.interposer = outer
        assert seen.call is not None
        return seen.call

    def identify(self, op: str, reduce_op: int, data: Any, elements: int, root: int) -> tuple[int, ...]:
        """For the compiled kernel, of a call that it has not met: what `Recorder.identify` returns."""
        name = None if reduce_op < 0 else _BY_NUMBER.get(reduce_op, "?")
        return self.recorder.identify(op, name, data.dtype, data.shape, elements, root)

    def not_taken(self, error: BaseException, number: int, record: GroupRecord) -> None:
        """A call raised before the backend took it. The next one has its number; a send's or a receive's is
        what a peer's end did.
        """
        flags = Flag.FAILED
        if _refused(error) and not record.key.startswith("p2p:"):
            flags |= Flag.REFUSED
            record.next, record.chain = record.next - 1, record.chain_before
        else:
            mark_victim(error)
        self.recorder.ledger.stamp(number, Time.WAIT_ENDED, flags, _OFFERED)

    def _brings_threads(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, after which threads that nobody counts may come to run Python."""

        @functools.wraps(original)
        def bringing(*args: Any, **kwargs: Any) -> Any:
            self.recorder.uncounted_threads = True
            return original(*args, **kwargs)

        return bringing


def _caller() -> tuple[FrameType | None, int | None]:
    """The frame that called a kernel, and the kernel's id of its thread where that is not the calling one."""
    try:
        return sys._getframe(2), None
    except ValueError:  # a thread of C++
        return backward.waiting_thread()


def _blocking(
    redispatch: Callable[..., Any],
    keyset: Any,
    args: tuple[Any, ...],
    stamp: Callable[..., None],
    number: int,
) -> Any:
    try:
        out = redispatch(keyset, *args)
    except BaseException as error:
        stamp(number, Time.WAIT_ENDED, Flag.FAILED)
        mark_victim(error)
        raise
    stamp(number, Time.WAIT_ENDED)
    return out


def _reduce_op(boxed: Any, caller: FrameType | None, native: bool) -> str:
    """The name of a call's reduce operation.

    Python's `caller` still has it by name, and what C++ issues in a backward is the reducer's sum. Asking the
    boxed one costs 6 us, and several times that where the processor has forgotten the way since.
    """
    if caller is not None and native:
        if caller.f_code is backward.ENGINE:
            return "SUM"
    elif caller is not None and type(given := caller.f_locals.get("op")) is _RED_OP:
        return _REDUCE_NAMES[given]
    return _BY_NUMBER.get(boxed.op(), "?")


def _describe(data: Any) -> tuple[Any, Any, int]:
    """dtype (and what else keeps it from meeting a dense tensor) and shape of a tensor, or of the first of
    nested lists of them, and the elements of all.
    """
    if type(data) is list and len(data) == 1 and type(data[0]) is not list:  # nearly all, so first
        data = data[0]
    if type(data) is not list:
        dtype = data.dtype
        if data.is_meta:  # has no data: its call returns and nothing is exchanged
            dtype = f"{dtype} on meta"
        elif data.layout is not _STRIDED:  # goes another way through the backend than a dense one
            dtype = f"{dtype} {str(data.layout).removeprefix('torch.')}"
        return dtype, data.shape, data.numel()
    if not data:
        return None, None, 0
    dtype, shape, elements = _describe(data[0])
    return dtype, shape, elements + sum(_describe(one)[2] for one in data[1:])


def _refused(error: BaseException) -> bool:
    """Whether the backend did not take a call: the error comes from C++, below torch's own dispatch (a signal
    handler's has frames of its own), and is not about a peer.
    """
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    # The compiled kernel has no frame.
    file = __file__ if innermost is None else innermost.tb_frame.f_code.co_filename
    native = isinstance(error, Exception) and file in (__file__, torch._ops.__file__)
    return native and not isinstance(error, dist.DistError)
