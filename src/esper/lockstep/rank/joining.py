"""In a rank of `run`: records who joins the job."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch.distributed
from torch.distributed import is_initialized

from esper.lockstep.rank.groups import Groups
from esper.lockstep.rank.recorder import VICTIM, GroupRecord, Recorder
from esper.lockstep.record.entry import Flag, Kind, Time

_STORE_IS_SERVED = "TORCHELASTIC_USE_AGENT_STORE"


def see_who_joins(recorder: Recorder, groups: Groups) -> None:
    """Record init_process_group as a call that all ranks make in step: who waits in it for a rank that has
    ended would do so for half an hour, and nothing else in the ledgers would tell.
    """
    ledger = recorder.ledger
    job = GroupRecord("the job", ledger.string("the job"), tuple(range(ledger.world_size)))
    recorder.event(Kind.GROUP, group=job.key, ranks=job.members)
    # A group of this process only: that it waits to join is seen, not for whom.
    key = f"the job of rank {ledger.rank}"
    alone = GroupRecord(key, ledger.string(key), (ledger.rank,))
    signature, port = inspect.signature(torch.distributed.init_process_group), os.environ.get("MASTER_PORT")

    @contextlib.contextmanager
    def joining(args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Iterator[None]:
        call = _Joining.of(signature, args, kwargs)
        # Ranks numbered otherwise than they were started: who waits there for whom is not known, but at one
        # address all must want a world of one size.
        numbered_alike = (call.rank, call.world_size) == (ledger.rank, ledger.world_size)
        followed = numbered_alike or (call.world_size > 0 and call.is_at(port))
        with call.own_store(), contextlib.ExitStack() as seen:
            if not is_initialized():
                site = recorder.site(frame)
                if followed:
                    waits = Flag.WAITED if numbered_alike else Flag(0)
                    seen.enter_context(_entered(recorder, job, call, site, waits))
                if not numbered_alike and call.world_size != 1:
                    recorder.event(Kind.GROUP, group=key, ranks=alone.members, apart=call.place())
                    seen.enter_context(_entered(recorder, alone, call, site, Flag.WAITED))
            yield

    groups.joining = joining


@contextlib.contextmanager
def _entered(recorder: Recorder, job: GroupRecord, call: _Joining, site: int, flags: Flag) -> Iterator[None]:
    size = f"a world of {call.world_size}"
    with job.lock:
        number = recorder.collective(
            job,
            "init_process_group",
            None,
            None,
            None,
            0,
            -1,
            -1,
            site,
            flags,
            json.dumps({"same": size}),
            same=size,
        )
    try:
        yield
    except BaseException as error:
        job.next -= 1  # it may try again
        recorder.ledger.stamp(number, Time.WAIT_ENDED, Flag.FAILED | Flag.REFUSED)
        # A backend that none of them has fails them one after the other: that is no divergence, so the first
        # is not blamed for the next one's short wait.
        if isinstance(error, Exception):
            setattr(error, VICTIM, True)
        raise
    recorder.ledger.stamp(number, Time.WAIT_ENDED)


@dataclass(frozen=True)
class _Joining:
    """What a call of init_process_group asks for; -1 where that can't be told."""

    rank: int
    world_size: int
    method: str

    @classmethod
    def of(cls, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Joining:
        known: dict[str, Any] = {"rank": -1, "world_size": -1}
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # torch's to refuse
            return cls(-1, -1, "")
        method = "" if given.get("store") is not None else given.get("init_method") or "env://"
        if method.startswith("env://"):
            known |= {name: os.environ.get(name.upper()) for name in known}
        known |= {name: values[0] for name, values in parse_qs(urlsplit(method).query).items()}
        known |= {name: given[name] for name in ("rank", "world_size") if given.get(name, -1) != -1}
        try:
            return cls(int(known["rank"]), int(known["world_size"]), method)
        except (TypeError, ValueError):
            return cls(-1, -1, method)

    def place(self) -> str:
        """Which rank of which world it wants to be, for people."""
        return f"rank {self.rank} of {self.world_size}" if self.world_size > 0 else "a rank of another job"

    def is_at(self, port: str | None) -> bool:
        """Whether it meets the others where the launcher said."""
        return self.method.startswith("env://") and os.environ.get("MASTER_PORT") == port

    @contextlib.contextmanager
    def own_store(self) -> Iterator[None]:
        """With `tcp://` rank 0 serves the store. Told that there is one already, as `env://` must be, all
        ranks would look for it at an address where nobody listens, until the group's time-out.
        """
        told, port = os.environ.get(_STORE_IS_SERVED), os.environ.get("MASTER_PORT")
        elsewhere = urlsplit(self.method).netloc.rpartition(":")[2] != port
        if told is None or not (self.method.startswith("tcp://") and elsewhere):
            yield
            return
        del os.environ[_STORE_IS_SERVED]
        try:
            yield
        finally:
            os.environ[_STORE_IS_SERVED] = told
