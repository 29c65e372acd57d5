"""The kernels for torch's `c10d::*` operators: what a collective passes on its way to its backend.

This one is in Python and takes every call. Where kernel.cpp has been built that one is in its place for the
collectives that programs issue all the time, and hands on to this one what is unusual about a call.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from esper.lockstep import tags
from esper.lockstep.rank import backward, compiled
from esper.lockstep.rank.groups import Groups
from esper.lockstep.rank.interposer import After, Call, Interposer, Peek
from esper.lockstep.rank.recorder import GroupRecord, Recorder
from esper.lockstep.rank.replicas import Replicas
from esper.lockstep.rank.schemas import NOT_COLLECTIVE, OpSchema
from esper.lockstep.rank.works import Works
from esper.lockstep.record.entry import Flag, Time

_WAITED, _NATIVE, _UNWINDING = int(Flag.WAITED), int(Flag.NATIVE), int(Flag.UNWINDING)
_POLLED, _OFFERED = int(Flag.POLLED), int(Flag.OFFERED)
_STRIDED, _RED_OP = torch.strided, dist.ReduceOp.RedOpType
_REDUCE_NAMES: dict[Any, str] = {value: name for name, value in _RED_OP.__members__.items()}
_unbox_work: Any = torch._C._distributed_c10d.Work.unbox
_BY_NUMBER = {value.value: name for value, name in _REDUCE_NAMES.items()}


@functools.cache
def operators() -> tuple[tuple[Any, OpSchema], ...]:
    """Each operator that communicates, and what its arguments mean: found among all of torch's, in 20 ms."""
    found = []
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace == "c10d" and name not in NOT_COLLECTIVE:
            overload = getattr(getattr(torch.ops.c10d, name), schema.overload_name or "default")
            found.append((overload, OpSchema.of(schema)))
    return tuple(found)


class Kernels:
    """Those of one interception, and what stands between them and the program."""

    def __init__(
        self, recorder: Recorder, groups: Groups, replicas: Replicas, works: Works, after: After
    ) -> None:
        self.recorder, self.groups, self.works = recorder, groups, works
        self._replicas, self._after = replicas, after
        self._library: Any = None
        self._compiled: Any = None
        self._interposer: Interposer | None = None
        self._detached = True  # until the ledger is open
        groups.forgetting = self._forget_groups

    def install(self) -> None:
        """Put a kernel above each operator that communicates."""
        self._library = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
        self._compiled = compiled.kernels_of(self)
        for overload, meaning in operators():
            kernel = self._kernel(overload, meaning)
            if self._compiled is None or not meaning.plain:
                self._library.impl(overload, kernel, "BackendSelect", with_keyset=True)
            else:
                compiled.add(self._compiled, meaning, kernel)

    def uninstall(self) -> None:
        """Take them away again."""
        if self._compiled is not None:
            self._compiled.close()
            self._compiled = None
        if self._library is not None:
            self._library._destroy()
            self._library = None

    @property
    def installed(self) -> bool:
        """Whether they stand above torch's operators."""
        return self._library is not None

    def attach(self) -> None:
        """The ledger is open: record."""
        if self._compiled is not None:
            self._compiled.open_ledger(str(self.recorder.ledger.path), self.recorder.ledger.capacity)
        self._detached = False
        self._tell()

    def detach(self) -> None:
        """In a forked child: pass every call on."""
        self._detached = True
        self._tell()

    @property
    def interposer(self) -> Interposer | None:
        """What stands between the program and its collectives."""
        return self._interposer

    @interposer.setter
    def interposer(self, interposer: Interposer | None) -> None:
        self._interposer = interposer
        self._tell()

    def _tell(self) -> None:
        """Tell the compiled kernel whether calls are its own to take."""
        if self._compiled is not None:
            self._compiled.usual = self._interposer is None and not self._detached

    def _forget_groups(self) -> None:
        if self._compiled is not None:
            self._compiled.forget_groups()

    def peek(self, issue: Callable[[], object]) -> Call:
        """The call that `issue` comes to, which is not issued."""
        outer, self.interposer = self.interposer, (seen := Peek())
        try:
            issue()
        finally:
            self.interposer = outer
        assert seen.call is not None
        return seen.call

    def _kernel(self, overload: Any, schema: OpSchema) -> Callable[..., Any]:
        """The kernel of one operator. One closure, since every attribute look-up in it is paid per
        collective.
        """
        below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
        unbox_group, unbox_work = dist.ProcessGroup.unbox, _unbox_work
        python_api = c10d.__file__
        recorder, groups, works, known_works = self.recorder, self.groups, self.works, self.works.known
        redispatch, set_flags = overload.redispatch, recorder.ledger.set_flags
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
            if self._detached or groups.foreign:
                return redispatch(keyset & below, *args)
            group = groups.of(unbox_group(args[at_group]))
            frame, thread = _caller() if caller is None else caller  # an interposer issues it for its caller
            native = frame is None or frame.f_code.co_filename != python_api
            if self._interposer is not None and caller is None:
                call = Call(schema, group.key, tags.current.tag, args, native, self._after, self.peek)
                return self._interposer.around(
                    call, functools.partial(kernel, keyset, caller=(frame, thread))
                )
            flags = (base | _NATIVE | _WAITED) if native else base
            if at_async is not None and len(args) > at_async and not args[at_async]:
                flags |= _WAITED
            if (passing := handled()) is not None:
                flags |= _UNWINDING
            dtype, shape, elements = (None, None, 0) if at_data is None else _describe(args[at_data])
            if is_barrier and not native:
                self._replicas.audit("barrier", group, frame)
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
                return _blocking(redispatch, keyset & below, args, recorder, number)
            boxed = out[1] if schema.tensors_returned else out
            if native:
                self._follow_native(boxed, None if at_data is None else args[at_data], number)
                return out
            work: Any = unbox_work(boxed)
            if work is None:  # NCCL's of a synchronous call: its stream waits, and the program goes on
                set_flags(number, flags & ~_OFFERED | _WAITED | _POLLED)
                return out
            if len(known_works) >= works.most:
                works.forget_done()
            known_works[id(work)] = (work, number, bool(flags & _WAITED))
            return out

        return kernel

    def _follow_native(self, boxed: Any, data: Any, number: int) -> None:
        """Have C++, where there is any of ours, record when the backend is done with a call whose wait nobody
        sees. Not Python: a thread of the backend that asks for the GIL may find the interpreter gone.
        """
        if self._compiled is None or not _on_cpu(data):
            return
        work = _unbox_work(boxed)
        if work is not None:
            self._compiled.follow_native(work, number)

    def identify(
        self, op: str, reduce_op: int, data: Any, elements: int, root: int, detail: str | None
    ) -> tuple[int, ...]:
        """For the compiled kernel, of a call that it has not met: what `Recorder.identify` returns."""
        name = None if reduce_op < 0 else _BY_NUMBER.get(reduce_op, "?")
        return self.recorder.identify(op, name, data.dtype, data.shape, elements, root, detail)

    def not_taken(self, error: BaseException, number: int, record: GroupRecord) -> None:
        """A call raised before the backend took it. The next one has its number; a send's or a receive's is
        what a peer's end did.
        """
        if _refused(error) and not record.key.startswith("p2p:"):
            record.next, record.chain = record.next - 1, record.chain_before
            self.recorder.ledger.stamp(number, Time.WAIT_ENDED, Flag.FAILED | Flag.REFUSED, _OFFERED)
            return
        self.recorder.ledger.stamp(number, Time.WAIT_ENDED, Flag.FAILED, _OFFERED)
        self.recorder.victim(error)


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
    recorder: Recorder,
    number: int,
) -> Any:
    try:
        out = redispatch(keyset, *args)
    except BaseException as error:
        recorder.ledger.stamp(number, Time.WAIT_ENDED, Flag.FAILED)
        recorder.victim(error, polled=True)
        raise
    recorder.ledger.stamp(number, Time.WAIT_ENDED)
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


def _on_cpu(data: Any) -> bool:
    """Whether a tensor, or the first of nested lists of them, is in the processor's own memory."""
    while type(data) is list and data:
        data = data[0]
    return isinstance(data, torch.Tensor) and data.is_cpu


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
