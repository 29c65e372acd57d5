"""What may stand between a program and its collectives, and what it is told of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from esper.lockstep.rank.schemas import OpSchema

Proceed = Callable[..., Any]
# Works on whose completion something follows, by id; the work itself is kept, so that its id stays its own.
After = dict[int, tuple[Any, Callable[[], None]]]


@dataclass(frozen=True)
class Call:
    """A collective about to be issued; `args` are its operator's, whose places `schema` knows.

    `native`: it comes from C++, DDP's reducer for one, and nobody in Python waits for it.
    """

    schema: OpSchema
    group: str
    tag: str | None
    args: tuple[Any, ...]
    native: bool = False
    after: After = field(default_factory=dict)
    # The call that a function comes to, which is not issued.
    peek: Callable[[Callable[[], object]], Call] = field(default=lambda issue: _nowhere())

    @property
    def op(self) -> str:
        """Its name in the ledger."""
        return self.schema.op

    @property
    def tensors(self) -> Any:
        """What this rank puts in: a tensor or nested lists of them; None where there is nothing."""
        return None if self.schema.data is None else self.args[self.schema.data]

    @property
    def waits(self) -> bool:
        """Whether its caller goes on only when it is complete."""
        at = self.schema.async_op
        given_sync = at is not None and len(self.args) > at and not self.args[at]
        return self.native or self.schema.blocking or given_sync

    def left_out(self) -> Any:
        """What the caller of a collective gets that is not issued: its tensors as they were, and a work that
        is done.
        """
        if self.schema.blocking:
            return None
        tensors = self.args[0] if self.schema.tensors_returned else None
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result(tensors)
        work = torch._C._distributed_c10d._create_work_from_future(future).boxed()  # type: ignore[attr-defined]
        return work if tensors is None else (tensors, work)

    def wait(self, out: Any) -> None:
        """Wait for what `proceed` returned as `out`."""
        if not self.schema.blocking:
            self._work(out).wait()

    def then(self, out: Any, act: Callable[[], None]) -> None:
        """Have `act` run when the collective is complete on this rank, before its caller sees the result.

        It runs in the caller's own wait. What C++ waits for passes by no Python, so that is waited for here.
        """
        if self.native or self.schema.blocking:
            self.wait(out)
            act()
        else:
            work = self._work(out)
            self.after[id(work)] = (work, act)

    def _work(self, out: Any) -> Any:
        return torch._C._distributed_c10d.Work.unbox(out[1] if self.schema.tensors_returned else out)


def _nowhere() -> Call:
    raise RuntimeError("no interception sees this call")


class Interposer(Protocol):
    """Something between the program and its collectives."""

    def around(self, call: Call, proceed: Proceed) -> Any:
        """Issue `call` by `proceed(*args)`: with its own `args` or others, later, more than once, or not.

        Returns what the caller gets: what `proceed` returned, or `call.left_out()`.
        """
        ...


class Peek:
    """Leaves every call out, and keeps the last."""

    call: Call | None = None

    def around(self, call: Call, proceed: Proceed) -> Any:
        """Keep it."""
        self.call = call
        return call.left_out()
