"""What the controller is told about an exception that a test has raised on a rank."""

from __future__ import annotations

import re

from esper.lockstep.errors import DivergenceError
from esper.lockstep.rank.recorder import is_victim
from pytest_esper_ddp.wire.messages import Failure


def failure_of(error: BaseException, phase: str, at: float) -> Failure:
    """What the controller is told about an exception."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    named = next((one for one in chain if isinstance(one, DivergenceError)), None)
    return Failure(
        phase=phase,
        at=at,
        type=type(error).__name__,
        text="\n".join(f"{type(one).__name__}: {one}" for one in chain),
        victim=is_victim(error) and named is None,
        bases=tuple(f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__),
        kind=named.kind if named else None,
        guilty=named.guilty if named else barrier_guilty(chain),
        fields=tuple(field.field for field in named.fields) if named else (),
        divergence=str(named) if named else None,
    )


_BARRIER = re.compile(r"Ranks? ([\d, ]+) failed to pass monitoredBarrier")


def barrier_guilty(chain: list[BaseException]) -> tuple[int, ...]:
    """The ranks that monitored_barrier's text names, if it is in one of the exceptions."""
    for error in chain:
        if (found := _BARRIER.search(str(error))) is not None:
            return tuple(int(rank) for rank in found[1].replace(" ", "").split(",") if rank)
    return ()
