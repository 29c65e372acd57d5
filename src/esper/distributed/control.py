"""The agreement's own process groups, and what is said there: rows of one size, and means."""

from __future__ import annotations

import secrets
from datetime import timedelta
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from esper.distributed.board import Board
from esper.distributed.deadline import DIAGNOSIS, Deadline
from esper.distributed.oneround import SHORT, mean_of
from esper.errors import UnknownBackend
from esper.lockstep import tag
from esper.scheduling import yielding_threads

# Ranks leave an exchange that was called off with their operation still pending, and gloo does not let a
# process end before the operation's own time-out: this is how much longer than the deadline that is.
_LINGER = 1.0
BACKENDS = ("gloo", "nccl")


class Control:
    """Gloo groups beside the one that trains. Group None: one process, which speaks with itself."""

    def __init__(self, group: dist.ProcessGroup | None, *, deadline: float, debug: bool) -> None:
        """Collective: every rank, same order. Raises UnknownBackend for a group of neither gloo nor nccl."""
        self.ranks: tuple[int, ...] = (0,)
        self.rank = 0
        self.debug = debug
        self._group: dist.ProcessGroup | None = None
        self._groups: list[dist.ProcessGroup] = []
        if group is None:
            return
        check_backend(group)
        self.ranks = tuple(dist.get_process_group_ranks(group))
        self.rank = dist.get_rank()
        self._group = self._new_group(deadline + _LINGER)
        # A store may outlive the job, as torchrun's outlives a restart, and groups have the same names again:
        # the verdicts of an earlier attempt must not be taken for this one's.
        name = self._new_name(self._group)
        # Together until here: from its birth on the diagnostic group has no more than its short time-out.
        diagnostic = self._new_group(DIAGNOSIS)
        store = PrefixStore(f"esper/{name}", _job_store())
        self._deadline = Deadline(self.ranks, self.rank, diagnostic, Board(store), seconds=deadline)

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return len(self.ranks)

    def rows(self, mine: bytes, purpose: str, where: str) -> dict[int, bytes]:
        """Collective: every rank, same order. Each rank's row, by global rank in group order; all rows are of
        one size. `purpose` is the operation's tag, `where` names it in an error.

        Raises AgreementDeadline when a rank is late.
        """
        if self._group is None:
            return {self.rank: mine}
        if self.debug:
            self._deadline.muster(dist.barrier(self._group, async_op=True), where)
        copies = torch.frombuffer(bytearray(mine * self.world_size), dtype=torch.uint8)
        data = self._from_all(copies, purpose, where).numpy().tobytes()
        size = len(mine)
        return {rank: data[at * size : (at + 1) * size] for at, rank in enumerate(self.ranks)}

    def mean_(self, values: Tensor, purpose: str) -> None:
        """Collective: every rank, same order. Replaces `values` (N,) by their mean over ranks; `purpose` is
        its tag.

        Raises AgreementDeadline when a rank is late.
        """
        if self._group is None:
            return
        shared = values.cpu()  # the control group is gloo, whatever the model runs on
        where = f"the mean of {purpose}"
        if shared.numel() <= SHORT:
            copies = shared.repeat(self.world_size)
            mean = mean_of(self._from_all(copies, purpose, where), self.world_size)
        else:
            with tag(purpose):
                work = dist.all_reduce(shared, group=self._group, async_op=True)
            assert work is not None
            self._deadline.wait(work, where)
            mean = shared.div_(self.world_size)
        values.copy_(mean)

    def close(self) -> None:
        """Destroy the groups. Not a collective. Threads close their sockets, and end soon after.

        After an exchange was called off they are left to the end of the process: gloo's destructor waits for
        the operation that is still under way, which would hold the error up for another second.
        """
        if self._group is None:
            return
        called_off = self._deadline.called_off
        self._group = None
        del self._deadline
        while self._groups:
            ending = [self._groups.pop()]
            if not called_off:
                dist.destroy_process_group(ending[0])
                # gloo sleeps for up to 10 ms to close a connection, and has one to each other rank.
                Thread(target=ending.clear, name="end of a control group").start()

    def _from_all(self, copies: Tensor, purpose: str, where: str) -> Tensor:
        """What each rank has `copies` of, one a rank, in group order; `copies` (ranks * N,).

        One round, where gloo gathers in as many steps, one after the other, as there are other ranks: with
        four on two cores 2.8 ms against 4.5, for as many bytes.
        """
        gathered = torch.empty_like(copies)
        with tag(purpose):
            work = dist.all_to_all_single(gathered, copies, group=self._group, async_op=True)
        assert work is not None
        self._deadline.wait(work, where)
        return gathered

    def _new_name(self, group: dist.ProcessGroup) -> str:
        """Collective: every rank, same order. A random word, the first rank's on every rank."""
        copies = torch.frombuffer(bytearray(secrets.token_bytes(8) * self.world_size), dtype=torch.uint8)
        words = torch.empty_like(copies)
        dist.all_to_all_single(words, copies, group=group)
        return bytes(words[:8].tolist()).hex()

    def _new_group(self, timeout: float) -> dist.ProcessGroup:
        with yielding_threads():
            group = dist.new_group(
                list(self.ranks),
                backend="gloo",
                timeout=timedelta(seconds=timeout),
                # A part of the job makes its groups without the rest of it.
                use_local_synchronization=self.world_size < dist.get_world_size(),
            )
        assert isinstance(group, dist.ProcessGroup)
        self._groups.append(group)
        return group


def check_backend(group: dist.ProcessGroup) -> None:
    """Raises UnknownBackend unless all that `group` runs on is gloo or nccl: `cpu:gloo,cuda:nccl` is both."""
    backend = dist.get_backend(group)
    if not all(part.rpartition(":")[2] in BACKENDS for part in backend.split(",")):
        raise UnknownBackend(backend, BACKENDS)


def _job_store() -> Store:
    # torch has no public way to the store that the job already has, and a second one would need a port.
    store = dist.distributed_c10d._get_default_store()
    assert isinstance(store, Store)
    return store
