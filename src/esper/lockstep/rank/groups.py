"""Which process group a collective belongs to, under a name that every rank gives it."""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed import device_mesh
from torch.distributed import distributed_c10d as c10d

from esper.lockstep.rank.recorder import GroupRecord, Recorder
from esper.lockstep.record.entry import Flag, Kind, Time

# What goes on around a call of init_process_group: its arguments, and the caller's frame.
Joining = Callable[[tuple[Any, ...], dict[str, Any], FrameType], AbstractContextManager[None]]


class Groups:
    """The groups that this process has met, and the patches that record when they end."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._known: dict[str, GroupRecord] = {}
        self._channels: dict[str, GroupRecord] = {}
        self._together: dict[str, GroupRecord] = {}
        self._texts: dict[str, str] = {}  # what is recorded of calls made together, by what must be the same
        self._generation: dict[str, int] = {}
        self._undo: list[Callable[[], None]] = []
        self.joining: Joining = lambda args, kwargs, frame: nullcontext()
        self.forgetting: Callable[[], None] = lambda: None  # called when a group has been left
        # The process is in a job whose peers are only simulated: nothing is recorded.
        self.foreign = False
        # The process is in a job in which it is not the rank that it was started as: one of several jobs in
        # one launch, a world that shrank, ranks numbered anew. Who its peers are can't be told, so what it
        # does there is recorded as if it were alone, under names that no other process uses.
        self._apart: tuple[int, int] | None = None  # its rank there, and how many there are
        self._jobs_apart = 0
        # Two threads that meet a group at once must not both number its calls from 0.
        self._meeting = threading.RLock()

    @property
    def known(self) -> dict[str, GroupRecord]:
        """Those that have been met, by torch's name; one dictionary for all time."""
        return self._known

    def of(self, group: Any) -> GroupRecord:
        """The record of `group`, written with its members when it is met for the first time."""
        name = group.group_name
        known = self._known.get(name)
        return known if known is not None else self._meet(name, group)

    def channel(self, group: GroupRecord) -> GroupRecord:
        """Where the point-to-point calls of `group` are numbered."""
        if self._apart is not None:
            return group  # its peers are not known, so nothing is to be paired
        known = self._channels.get(group.key)
        if known is None:
            key = f"p2p:{group.key}"
            record = GroupRecord(key, self._recorder.ledger.string(key), group.members)
            known = self._channels.setdefault(group.key, record)
        return known

    def together(
        self,
        key: str,
        members: tuple[int, ...],
        op: str,
        *,
        same: str,
        detail: dict[str, object],
        site: int,
        waits: bool = False,
    ) -> int:
        """Record a call that all `members` make in step though it is no collective of torch's.

        `same` must be equal on all of them; `waits`: it does not return without them. Returns the record's
        number.
        """
        with self._meeting:
            record = self._together.get(key)
            if record is None:
                record = self._together[key] = GroupRecord(key, self._recorder.ledger.string(key), members)
                self._announce(record)
        text = self._texts.get(same)
        if text is None:
            text = self._texts[same] = json.dumps({"same": same, **detail})
        flags = int(Flag.WAITED) if waits else 0
        with record.lock:
            return self._recorder.collective(
                record, op, None, None, None, 0, -1, -1, site, flags, text, same=same
            )

    def default(self) -> GroupRecord | None:
        """The default group's record; None while there is none."""
        world = dist.group.WORLD
        return None if world is None else self.of(world)

    def begin(self) -> None:
        """A new program starts in this process: number every group's collectives from 0 again."""
        self._together.clear()
        for record in (*self._known.values(), *self._channels.values()):
            record.next, record.chain = 0, 0
        for record in self._known.values():
            self._announce(record)

    def summary(self) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        """Per group: collectives so far, their chained digest, and the members."""
        records = (*self._known.values(), *self._together.values())
        return {record.key: (record.next, record.chain, record.members) for record in records}

    def _meet(self, name: str, group: Any) -> GroupRecord:
        with self._meeting:
            record = self._known.get(name)
            if record is not None:
                return record
            key = self._key(name, world=group is dist.group.WORLD)
            record = GroupRecord(key, self._recorder.ledger.string(key), self._members(group))
            self._announce(record)
            self._known[name] = record
            return record

    def _members(self, group: Any) -> tuple[int, ...]:
        if self._apart is not None:
            return (self._recorder.ledger.rank,)
        try:
            return tuple(dist.get_process_group_ranks(group))
        except (KeyError, ValueError):  # not registered yet: a call from inside the group's own creation
            return tuple(range(group.size()))

    def _key(self, name: str, *, world: bool) -> str:
        """The name of the next group that torch calls `name`. It gives the same names again after a destroy,
        and number 3 of the new group is not number 3 of the old.
        """
        label = "default" if world else f"group {name}"
        if self._apart is not None:
            label = f"{label} of rank {self._recorder.ledger.rank}'s job {self._jobs_apart}"
        generation = self._generation[label] = self._generation.get(label, 0) + 1
        return label if generation == 1 else f"{label} ({generation})"

    def _announce(self, record: GroupRecord) -> None:
        detail: dict[str, Any] = {"ranks": record.members}
        if self._apart is not None and self._apart[1] > 1:
            detail["apart"] = "rank {} of {}".format(*self._apart)
        self._recorder.event(Kind.GROUP, group=record.key, **detail)

    def _forget(self, group: Any, site: int) -> None:
        name = group.group_name
        record = self._known.pop(name, None)
        key = self._key(name, world=group is dist.group.WORLD) if record is None else record.key
        self._channels.pop(key, None)
        self.forgetting()
        self._recorder.destroyed(key, site)

    def install(self, before_end: Callable[[GroupRecord | None, FrameType], None]) -> None:
        """Follow init_process_group, and record new_group, destroy_process_group and os._exit with their
        call sites.

        `before_end` is called with the default group and the caller's frame while the group still stands.
        """
        recorder = self._recorder
        destroy, leave, new_group = c10d.destroy_process_group, os._exit, c10d._new_group_with_tag
        init = c10d.init_process_group

        def init_process_group(*args: Any, **kwargs: Any) -> None:
            with self.joining(args, kwargs, sys._getframe(1)):
                init(*args, **kwargs)
            self._joined(dist.get_rank(), dist.get_world_size())

        def destroy_process_group(group: Any = None) -> None:
            ends_all = group is None or group is dist.group.WORLD
            if dist.is_initialized() and not self.foreign:
                site = recorder.site(sys._getframe(1))
                if ends_all:
                    before_end(self.default(), sys._getframe(1))
                # A group that it is not in, or one destroyed before: torch's to judge.
                for one in [one for one in c10d._world.pg_map if ends_all or one is group]:
                    self._forget(one, site)
            destroy(group)
            if ends_all:
                self.foreign, self._apart = False, None

        def _exit(status: int) -> Any:
            recorder.leaving(status, recorder.site(sys._getframe(1)))
            leave(status)

        def _new_group_with_tag(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
            # One that only its members create need not be the same call everywhere.
            if self.foreign or kwargs.get("use_local_synchronization"):
                return new_group(ranks, *args, **kwargs)
            number = self._creating(ranks, sys._getframe(1))
            try:
                created = new_group(ranks, *args, **kwargs)
            except BaseException:
                recorder.ledger.stamp(number, Time.WAIT_ENDED, Flag.FAILED)
                raise
            recorder.ledger.stamp(number, Time.WAIT_ENDED)
            return created

        for holder, name, patched in (
            (c10d, "init_process_group", init_process_group),
            (dist, "init_process_group", init_process_group),
            (device_mesh, "init_process_group", init_process_group),
            (c10d, "_new_group_with_tag", _new_group_with_tag),
            (c10d, "destroy_process_group", destroy_process_group),
            (dist, "destroy_process_group", destroy_process_group),
            (os, "_exit", _exit),
        ):
            self._undo.append(patch(holder, name, patched))

    def _joined(self, rank: int, world_size: int) -> None:
        ledger = self._recorder.ledger
        self.foreign = dist.get_backend() == "fake"
        if not self.foreign and (rank, world_size) != (ledger.rank, ledger.world_size):
            self._jobs_apart += 1
            self._apart = rank, world_size

    def _creating(self, ranks: Any, frame: FrameType) -> int:
        world = dist.group.WORLD
        members = self.of(world).members
        wanted = sorted(ranks if ranks is not None else range(dist.get_world_size()))
        return self.together(
            f"groups of {self.of(world).key}",
            members,
            "new_group",
            same=str(wanted),
            detail={"ranks": wanted},
            site=self._recorder.site(frame),
            waits=True,
        )

    def uninstall(self) -> None:
        """Put the patched functions back."""
        while self._undo:
            self._undo.pop()()


def patch(holder: Any, name: str, value: Any) -> Callable[[], None]:
    """Replace a function by one that looks like it; returns what puts the former back.

    Programs ask torch's functions for their parameters, as ours do for those that one version has renamed.
    """
    original = getattr(holder, name)
    functools.update_wrapper(value, original)
    setattr(holder, name, value)
    return lambda: setattr(holder, name, original)


def patch_below(holder: Any, name: str, value: Any) -> Callable[[], None]:
    """As `patch`; what somebody else has put on top by then is left there, with ours below it."""
    put_back = patch(holder, name, value)

    def put_back_unless_covered() -> None:
        if getattr(holder, name) is value:
            put_back()

    return put_back_unless_covered
