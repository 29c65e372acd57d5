"""What a rank writes into its ledger: sequence numbers, digests, call sites and the events of its program."""

from __future__ import annotations

import _thread
import hashlib
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from esper.lockstep.frames import INTERNAL, in_stdlib
from esper.lockstep.record.entry import Kind, Site, State
from esper.lockstep.record.ledger import GROUP_TEXT, Ledger
from esper.lockstep.tags import current

# One for all: json.dumps makes one for each text that it is given `default` with.
_as_json = json.JSONEncoder(default=str).encode
_MASK = (1 << 64) - 1
# Odd, so that multiplying by it loses nothing; the fraction of the golden ratio, as in Fibonacci hashing.
_STEP = 0x9E3779B97F4A7C15

VICTIM = "_lockstep_victim"
# Distinct calls that are remembered; object collectives have a shape of their own each time.
_MOST_CALLS = 4096
# Distinct texts of exceptions that passed by while a collective was called, and how much is kept of each.
_MOST_ERRORS, _ERROR_TEXT = 1000, 300


class GroupRecord:
    """One process group's place in the ledger: its key, next sequence number and chained digest."""

    __slots__ = ("chain", "chain_before", "key", "key_id", "lock", "members", "next")

    def __init__(self, key: str, key_id: int, members: tuple[int, ...]) -> None:
        self.key, self.key_id, self.members = key, key_id, members
        self.next, self.chain = 0, 0
        self.chain_before = 0  # the last call, which the backend may refuse
        # Held over the redispatch: without it two threads on one group swap numbers and calls.
        self.lock = threading.RLock()


class Recorder:
    """The one writer of a rank's ledger."""

    def __init__(self, ledger: Ledger, internal: tuple[str, ...] = INTERNAL) -> None:
        """`internal`: source files and folders in which no call site lies."""
        self.ledger = ledger
        self._internal_files: dict[str, bool] = {}
        self._calls: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._sites: dict[tuple[CodeType, int], int] = {}
        self._native_thread = threading.local()
        self.internal = internal
        self._detached = False
        self._passing: set[str] = set()
        # Threads of C++ come to run Python, an RPC or what is chained to a future: nobody can count them.
        self.uncounted_threads = False
        # Told of what a collective raised, where a peer is to blame for it; may raise something better.
        self.on_victim: Callable[[Exception, bool], None] = lambda error, polled: None

    def open(self, run_dir: Path, rank: int, world_size: int, capacity: int) -> None:
        """In a child forked before its rank was known: open the ledger, and forget what was its parent's."""
        self.ledger.open(run_dir, rank, world_size, capacity)
        self._calls.clear()
        self._sites.clear()
        self._native_thread = threading.local()
        self.uncounted_threads = False

    def detach(self) -> None:
        """In a forked child: write nothing more; the ledger stays its parent's."""
        self._detached = True
        self.ledger.detach()

    def begin(self, name: str) -> None:
        """A new program starts on this rank: `name` is its script, or a test's id."""
        number = self.event(Kind.BEGIN, name=name)
        if number is not None:
            self.ledger.set_begun(number)
        self.ledger.set_main_thread(threading.get_native_id())
        self.ledger.set_state(State.RUNNING)

    def over(self) -> None:
        """The program will issue nothing more, teardown included."""
        self.event(Kind.OVER)
        if not self._detached:
            self.ledger.set_state(State.OVER)

    def raised(self, error: BaseException, *, leaves: bool = True) -> None:
        """`error` was raised and, if it `leaves`, has left the program, which then ends with its threads.

        Whether it only passes on what a peer's end did to a collective is recorded with it.
        """
        self.event(
            Kind.RAISED,
            site=_innermost(error.__traceback__, self),
            type=type(error).__name__,
            text=_text(error)[:2000],
            victim=is_victim(error),
            leaves=leaves and not _others(),
        )

    def leaving_by(self, end: SystemExit) -> None:
        """SystemExit left the program; its line is where it was raised.

        What is registered with `atexit` still runs, so this alone is not the end.
        """
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        site = _innermost(end.__traceback__, self)
        self.event(Kind.EXIT, site=site, code=code, victim=is_victim(end), leaves=False)

    def going(self) -> None:
        """The interpreter goes, with a status to be seen later: connections end before the process does."""
        self.event(Kind.EXIT, leaves=False)

    def leaving(self, code: int, site: int | None = None) -> None:
        """The process is about to end itself with `code`, with all its threads."""
        where = self.site(sys._getframe(1)) if site is None else site
        error = sys.exc_info()[1]
        victim = error is not None and is_victim(error)
        self.event(Kind.EXIT, site=where, code=code, victim=victim, leaves=True)

    def destroyed(self, group: str, site: int) -> None:
        """This rank has left `group`, and what exception it was handling then."""
        error = sys.exc_info()[1]
        if error is None:
            self.event(Kind.DESTROY, group=group, site=site)
            return
        self.event(
            Kind.DESTROY,
            group=group,
            site=_innermost(error.__traceback__, self) or site,
            error=f"{type(error).__name__}: {_text(error)}"[:2000],
            victim=is_victim(error),
        )

    def audited(
        self,
        group: str,
        position: int,
        source: str,
        what: str,
        detail: str,
        count: int,
        number: int,
        digest: int,
        site: int,
    ) -> None:
        """Write the total of an audit of `what`; `position` and `count` say where in the program it was."""
        if self._detached:
            return
        string = self.ledger.string
        self.ledger.append(
            Kind.AUDIT,
            group=string(group),
            sequence=position,
            op=string(source),
            tag=string(what),
            site=site,
            detail=string(detail),
            peer=count,
            elements=number,
            digest=digest & ((1 << 64) - 1),
            thread=self.thread(),
        )

    def event(self, kind: Kind, *, group: str | None = None, site: int = 0, **detail: object) -> int | None:
        """Write an event and return its record's number, None in a detached child; `detail` is JSON."""
        if self._detached:
            return None
        string = self.ledger.string
        text = _as_json(detail) if detail else None
        if kind is Kind.GROUP:  # the ring overwrites the record, and who is in it must be known after that
            string((GROUP_TEXT, group, text))
        return self.ledger.append(
            kind,
            group=string(group),
            site=site,
            detail=string(text),
            thread=self.thread(),
        )

    def victim(self, error: BaseException, *, polled: bool = False) -> None:
        """A collective raised `error`: what a peer did, not this program. Its traceback may end here with a
        better one, but for a wait with a time-out of its own: a program expects that to fail.
        """
        if isinstance(error, Exception):
            setattr(error, VICTIM, True)
            self.on_victim(error, polled)

    def passing(self, error: BaseException) -> str:
        """The exception that is being handled while a call is made, as a detail."""
        text = f"{type(error).__name__}: {_text(error)[:_ERROR_TEXT]}"
        if text not in self._passing and len(self._passing) >= _MOST_ERRORS:
            text = type(error).__name__  # a program that lives by its exceptions must not fill the disk
        self._passing.add(text)
        return json.dumps({"error": text})

    def thread(self) -> int:
        """The calling thread's kernel id (a system call the first time in each thread)."""
        known: int | None = getattr(self._native_thread, "id", None)
        if known is None:
            known = self._native_thread.id = threading.get_native_id()
        return known

    def threads(self) -> int:
        """How many threads may issue something. `threading.active_count()` leaves out those that were
        started without it.
        """
        return _thread._count() + 1 + self.uncounted_threads

    def site(self, frame: FrameType | None) -> int:
        """String id of the first frame outside torch, contextlib and typing, from `frame` outwards."""
        internal = self._internal_files
        while frame is not None:
            code = frame.f_code
            plumbing = internal.get(code.co_filename)
            if plumbing is None:
                plumbing = self.is_internal(code.co_filename)
            if not plumbing:
                known = self._sites.get((code, frame.f_lineno))
                if known is None:
                    site = Site(code.co_filename, frame.f_lineno, code.co_qualname)
                    known = self._sites[code, frame.f_lineno] = self.ledger.string(site)
                return known
            frame = frame.f_back
        return 0

    def is_internal(self, filename: str) -> bool:
        """Whether code of this file is plumbing, in which no call site lies."""
        known = self._internal_files.get(filename)
        if known is None:
            known = self._internal_files[filename] = filename.startswith(self.internal)
        return known

    def _intern(self, key: tuple[Any, ...], same: str | None) -> tuple[int, ...]:
        """String ids of a call's parts and its signature: 64 bits of what must be equal on all members, the
        same in every process.
        """
        op, reduce_op, dtype, shape, elements, root, tag, detail = key
        text = repr((op, reduce_op, str(dtype), elements, root, tag, same)).encode()
        signature = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        string = self.ledger.string
        known = (
            string(op),
            string(reduce_op),
            string(dtype),
            string(shape),
            string(tag),
            string(detail),
            signature,
        )
        if len(self._calls) >= _MOST_CALLS:
            self._calls.clear()
        self._calls[key] = known
        return known

    def identify(
        self,
        op: str,
        reduce_op: str | None,
        dtype: object,
        shape: object,
        elements: int,
        root: int,
        detail: str | None,
    ) -> tuple[int, ...]:
        """String ids of op, reduce operation, dtype, shape, tag and detail of a call under the current tag,
        and its signature.
        """
        key = (op, reduce_op, dtype, shape, elements, root, current.tag, detail)
        return self._calls.get(key) or self._intern(key, None)

    def collective(
        self,
        group: GroupRecord,
        op: str,
        reduce_op: str | None,
        dtype: object,
        shape: object,
        elements: int,
        root: int,
        peer: int,
        site: int,
        flags: int,
        detail: str | None = None,
        same: str | None = None,
        thread: int | None = None,
    ) -> int:
        """Write a collective about to be issued in `group` and return its record's number. The caller holds
        its lock. `thread`: the kernel's id of the one that waits, where that is not the calling thread.
        """
        ledger = self.ledger
        tag = current.tag
        sequence = group.next
        group.next = sequence + 1
        # One look-up for all that calls have in common: each of its own cost 2 us a collective together.
        key = (op, reduce_op, dtype, shape, elements, root, tag, detail)
        known = self._calls.get(key)
        if known is None:
            known = self._intern(key, same)
        op_id, reduce_id, dtype_id, shape_id, tag_id, detail_id, signature = known
        group.chain_before = group.chain
        group.chain = (group.chain * _STEP + signature) & _MASK
        if flags & 1:  # Flag.WAITED; enum arithmetic costs a microsecond here
            ledger.set_threads(self.threads())
        return ledger.append(
            0,
            group.key_id,
            sequence,
            op_id,
            reduce_id,
            dtype_id,
            shape_id,
            site,
            tag_id,
            detail_id,
            root,
            peer,
            elements,
            group.chain,
            0.0,
            self.thread() if thread is None else thread,
            flags,
        )


def is_victim(error: BaseException) -> bool:
    """Whether `error` was raised by a c10d call, or because of one that was: what a peer did, not this
    program.
    """
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, VICTIM, False):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _text(error: BaseException) -> str:
    """What an exception says. One whose own text raises must not do so in a collective of the program."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  it is the user's code
        return f"(no text: {type(broken).__name__})"


def _innermost(trace: TracebackType | None, recorder: Recorder) -> int:
    """Where the exception was raised: the last frame of the traceback that is not torch's or ours."""
    own = library = 0
    while trace is not None:
        code = trace.tb_frame.f_code
        if not recorder.is_internal(code.co_filename):
            site = recorder.ledger.string(Site(code.co_filename, trace.tb_lineno, code.co_qualname))
            if in_stdlib(code.co_filename):
                library = site
            else:
                own = site
        trace = trace.tb_next
    return own or library


def _others() -> int:
    """How many threads besides this one keep the process alive."""
    here = threading.current_thread()
    return sum(not thread.daemon for thread in threading.enumerate() if thread is not here)
