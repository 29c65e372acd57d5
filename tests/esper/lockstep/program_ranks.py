"""Does a random program on one real rank, and checks what its collectives bring."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from typing import Any

import torch
import torch.distributed as dist

from esper import lockstep
from tests.esper.lockstep.machine import ANY, Await, Fail, Issue, Kill, Leave, Run, Stop

_LONGEST_SLEEP = 0.01
_OPS = {"": dist.ReduceOp.SUM, "SUM": dist.ReduceOp.SUM, "MAX": dist.ReduceOp.MAX, "MIN": dist.ReduceOp.MIN}
Check = Callable[[], None]


class Rank:
    """One rank of a run, which may be smaller than the world; every rank of the world makes one."""

    def __init__(self, run: Run, rank: int, seed: int, *, checks: bool) -> None:
        self.run, self.rank, self.seed, self.checks = run, rank, seed, checks
        self.takes_part = rank < len(run.programs)
        wanted = dict(run.groups)
        if len(run.programs) < dist.get_world_size():
            wanted["default"] = run.members("default")
        self._made = {name: dist.new_group(list(members)) for name, members in wanted.items()}
        self.groups: dict[str, Any] = {"default": dist.group.WORLD, **self._made}

    def go(self) -> None:
        """Both threads' programs, to their end."""
        if not self.takes_part:
            return
        errors: list[BaseException] = []
        helper = threading.Thread(target=self._second, args=(errors,))
        if self.rank in self.run.helpers:
            helper.start()
        self._do(0)
        if self.rank in self.run.helpers:
            helper.join()
        if errors:
            raise errors[0]

    def destroy_groups(self) -> None:
        for group in self._made.values():
            if group is not dist.GroupMember.NON_GROUP_MEMBER:
                dist.destroy_process_group(group)

    def _second(self, errors: list[BaseException]) -> None:
        try:
            self._do(1)
        except BaseException as error:  # noqa: BLE001  raised again in the main thread
            errors.append(error)

    def _do(self, thread: int) -> None:
        random = Random(f"{self.seed} {self.rank} {thread}")
        works: dict[int, tuple[Any, Check]] = {}
        for index, one in enumerate(self.run.threads(self.rank)[thread]):
            if random.random() < 0.2:
                time.sleep(_LONGEST_SLEEP * random.random())
            match one:
                case Issue():
                    with lockstep.tag(one.name) if one.name else nullcontext():
                        work, check = self._issue(one)
                    works[index] = work, check
                    if one.waits and self.checks:
                        check()
                case Await(called):
                    work, check = works[called]
                    work.wait()
                    if self.checks:
                        check()
                case Fail():
                    raise ValueError("bad sample")
                case Leave():
                    os._exit(0)
                case Kill():
                    os.kill(os.getpid(), signal.SIGKILL)
                case Stop():
                    os.kill(os.getpid(), signal.SIGSTOP)
                    time.sleep(60)

    def _issue(self, call: Issue) -> tuple[Any, Check]:
        if call.peer != -1:
            return self._exchange(call)
        members = self.run.members(call.group)
        own = self._tensor(call, self.rank)
        everybody = [self._tensor(call, one) for one in members]
        several = [torch.zeros_like(own) for _ in members]
        root = members[call.root]
        at_root = self.rank == root
        how: dict[str, Any] = {"group": self.groups[call.group], "async_op": not call.waits}
        reduced = {"SUM": sum(everybody), "MAX": everybody[-1], "MIN": everybody[0], "": own}[call.reduce_op]
        match call.op:
            case "barrier":
                return dist.barrier(**how), lambda: None
            case "all_reduce":
                return dist.all_reduce(own, _OPS[call.reduce_op], **how), lambda: _same([own], [reduced])
            case "all_gather":
                return dist.all_gather(several, own, **how), lambda: _same(several, everybody)
            case "broadcast":
                wanted = [self._tensor(call, root)]
                return dist.broadcast(own, src=root, **how), lambda: _same([own], wanted)
            case "reduce":
                work = dist.reduce(own, root, _OPS[call.reduce_op], **how)
                return work, lambda: _same([own] if at_root else [], [reduced] if at_root else [])
            case "gather":
                work = dist.gather(own, several if at_root else None, dst=root, **how)
                return work, lambda: _same(several if at_root else [], everybody if at_root else [])
            case "scatter":
                wanted = [own.clone()]
                return dist.scatter(own, everybody if at_root else None, src=root, **how), lambda: _same(
                    [own], wanted
                )
        return None, self._objects(call, members)

    def _objects(self, call: Issue, members: tuple[int, ...]) -> Check:
        group = self.groups[call.group]
        if call.op == "all_gather_object":
            found: list[Any] = [None] * len(members)
            dist.all_gather_object(found, (call.mark, self.rank), group=group)
            wanted = [(call.mark, one) for one in members]
        else:
            found = [(call.mark, self.rank)]
            dist.broadcast_object_list(found, src=members[call.root], group=group)
            wanted = [(call.mark, members[call.root])]
        return lambda: _equal(found, wanted)

    def _exchange(self, call: Issue) -> tuple[Any, Check]:
        group, own = self.groups[call.group], self._tensor(call, self.rank)
        if call.op == "send":
            if call.waits:
                return dist.send(own, call.peer, group=group, tag=call.tag), lambda: None
            return dist.isend(own, call.peer, group=group, tag=call.tag), lambda: None
        source = None if call.peer == ANY else call.peer
        if call.waits:
            dist.recv(own, source, group=group, tag=call.tag)
            return None, lambda: self._received(own, call)
        return dist.irecv(own, source, group=group, tag=call.tag), lambda: self._received(own, call)

    def _received(self, got: torch.Tensor, call: Issue) -> None:
        """What came is what was sent; beside receives from any source it may be another's."""
        wild = any(isinstance(one, Issue) and one.peer == ANY for one in self.run.programs[self.rank])
        wanted = [
            self._tensor(one, source)
            for source, program in enumerate(self.run.programs)
            for one in program
            if isinstance(one, Issue) and one.op == "send" and one.peer == self.rank
            if one.mark == call.mark or wild
        ]
        if not wild:
            wanted = [one for one in wanted if torch.equal(one, self._tensor(call, call.peer))]
        assert any(torch.equal(got, one) for one in wanted), (got, wanted)

    def _tensor(self, call: Issue, rank: int) -> torch.Tensor:
        """What the rank puts into the call: larger on higher ranks, and another for each call."""
        return torch.full((call.elements,), call.mark * 8 + rank, dtype=getattr(torch, call.dtype))


def _same(got: list[torch.Tensor], wanted: list[Any]) -> None:
    assert len(got) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True)), (got, wanted)


def _equal(got: list[Any], wanted: list[Any]) -> None:
    assert got == wanted
