"""How ranks ended that no test was running on: their exits count as well."""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from pytest_esper_ddp.wire.messages import Failure, Finalised

_TOLD_WITHIN = 1.0  # the exit of a rank that has closed its connection


class Ends(Protocol):
    """What hears how processes end."""

    def wait_exit(self, pid: int, within: float) -> int | None:
        """The status as waitpid has it, None while it lives, after waiting up to `within` seconds for it."""


def left_by_themselves(source: Ends, pids: Sequence[int], ends: dict[int, Finalised], within: float) -> bool:
    """Whether ranks that were told to leave did so in time. One that failed at it is noted in `ends`."""
    end = time.monotonic() + within
    codes = [source.wait_exit(pid, max(0.0, end - time.monotonic())) for pid in pids]
    for rank, code in enumerate(codes):
        # torch aborts in healthy programs when they end, long after all that a test has done.
        if code not in (None, 0, -signal.SIGABRT) and (rank not in ends or ends[rank].failure is None):
            ends[rank] = cut_off(f"{_told(code)} after its last test")
    return None not in codes


def lost_ranks(
    source: Ends, pids: Sequence[int], channels: Sequence[socket.socket]
) -> Mapping[int, Finalised]:
    """The ranks that have ended although nobody told them to: between two tests they have nothing to say."""
    poll = select.poll()
    for channel in channels:
        poll.register(channel, select.POLLIN)
    heard = {fd for fd, _ in poll.poll(0)}
    return {
        rank: cut_off(f"{_told(source.wait_exit(pid, _TOLD_WITHIN))} after its last test")
        for rank, (pid, channel) in enumerate(zip(pids, channels, strict=True))
        if channel.fileno() in heard
    }


def cut_off(text: str) -> Finalised:
    """The end of a rank that could not report it."""
    return Finalised(Failure("teardown", time.monotonic(), "HarnessError", text, victim=False))


def _told(code: int | None) -> str:
    if code is None:
        return "closed its connection"
    return f"was ended by signal {-code}" if code < 0 else f"exited with status {code}"
