"""How the ranks of this host are, for those who can't see their processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esper.lockstep.rank.stacks import stack_path
from esper.lockstep.record.entry import Site
from esper.lockstep.run.evidence import StackRequests, current_line, last_words, sleeps_in_torch
from esper.lockstep.run.process import SleepWatch, context_switches, kept_waiting, state
from esper.lockstep.watchdog.hosts.following import Following
from esper.lockstep.watchdog.localranks import LocalRanks
from esper.lockstep.watchdog.sockets import Endpoint, endpoints, peers

_ASLEEP_AFTER = 0.02


@dataclass(frozen=True)
class Facts:
    """One rank's; times by its host's CLOCK_MONOTONIC."""

    state: str  # the kernel's letter
    # When it ended, and how, as waitpid has it; None and None while it lives, and the second where nobody
    # was told.
    ended: float | None
    code: int | None
    stopped: bool  # its program goes on, and nobody records it
    stopped_since: float | None
    asleep: tuple[int, ...]  # its threads that sleep in a call from C++
    line: tuple[str, tuple[str, int, str] | None] | None  # state and place, where that was asked for
    endpoints: tuple[tuple[str, int], ...]  # its connections' own ends

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @staticmethod
    def of(document: dict[str, Any]) -> Facts:
        """Raises KeyError, TypeError or ValueError for what is none."""
        line = document.pop("line")
        if line is not None:
            name, site = line
            line = str(name), None if site is None else (str(site[0]), int(site[1]), str(site[2]))
        ends = tuple((str(address), int(port)) for address, port in document.pop("endpoints"))
        asleep = tuple(int(thread) for thread in document.pop("asleep"))
        return Facts(line=line, endpoints=ends, asleep=asleep, **document)

    @property
    def site(self) -> Site | None:
        """The place of `line`."""
        return None if self.line is None or self.line[1] is None else Site(*self.line[1])


class FactFinder:
    """Looks at the processes of this host's ranks."""

    def __init__(
        self, ledgers: Path, local: LocalRanks, following: Following, internal: tuple[str, ...],
        requests: StackRequests,
    ) -> None:  # fmt: skip
        """`ledgers`: where the ranks write their stacks, too."""
        self._ledgers, self._pids, self._readers = ledgers, local.pids, local.readers
        self._following = following
        self._internal, self._requests = internal, requests
        self._ended: dict[int, tuple[float, int | None]] = {}
        self._stopped: dict[int, float] = {}
        self._sleep = SleepWatch(_ASLEEP_AFTER)
        self._in_torch: dict[tuple[int, int], tuple[int | None, bool]] = {}

    def ended(self, rank: int, code: int | None) -> None:
        """A rank's process is gone."""
        self._ended[rank] = time.monotonic(), code

    def kept_waiting(self, rank: int) -> float:
        """Seconds in all that it had no processor though it could have run."""
        return 0.0 if rank in self._ended else kept_waiting(self._pids[rank])

    def gone(self, rank: int) -> bool:
        """Whether the rank's process is."""
        return rank in self._ended

    def look(self, now: float) -> None:
        """Note which ranks are stopped."""
        for rank, pid in self._pids.items():
            if rank in self._ended or state(pid) not in "Tt":
                self._stopped.pop(rank, None)
            else:
                self._stopped.setdefault(rank, now)

    def facts(self, lines: Collection[int], unrecorded: Callable[[int], bool]) -> dict[int, Facts]:
        """Of all ranks. `lines`: the ranks whose line is wanted, which takes a moment each."""
        ends = self.ends()
        return {
            rank: Facts(
                state="X" if rank in self._ended else state(pid),
                ended=self._ended[rank][0] if rank in self._ended else None,
                code=self._ended[rank][1] if rank in self._ended else None,
                stopped=unrecorded(rank),
                stopped_since=self._stopped.get(rank),
                asleep=tuple(self._asleep(rank, pid)),
                line=self._line(rank, pid) if rank in lines else None,
                endpoints=ends[rank],
            )
            for rank, pid in self._pids.items()
        }

    def ends(self) -> dict[int, tuple[tuple[str, int], ...]]:
        """Of all ranks' connections their own ends: address in hexadecimal digits, and port."""
        return {
            rank: tuple((address.hex(), port) for address, port in endpoints(pid))
            for rank, pid in self._pids.items()
        }

    def peers(self) -> set[Endpoint]:
        """The other ends of all ranks' connections."""
        return {end for rank, pid in self._pids.items() if rank not in self._ended for end in peers(pid)}

    def _asleep(self, rank: int, pid: int) -> list[int]:
        """The threads that wait in what they have issued from C++."""
        threads = {entry.thread for entry in self._following.open(rank) if entry.native}
        return [thread for thread in sorted(threads) if self._sleeps(rank, pid, thread)]

    def _sleeps(self, rank: int, pid: int, thread: int) -> bool:
        if not self._sleep.asleep(pid, thread):
            return False
        # Asking wakes it, so the answer holds for as long as it has not run since.
        asked = self._in_torch.get((rank, thread))
        if asked is None or asked[0] != context_switches(pid, thread):
            answer = sleeps_in_torch(pid, thread, stack_path(self._ledgers, rank), self._requests)
            asked = self._in_torch[rank, thread] = context_switches(pid, thread), answer
            self._sleep.asleep(pid, thread)
        return asked[1]

    def _line(self, rank: int, pid: int) -> tuple[str, tuple[str, int, str] | None]:
        path = stack_path(self._ledgers, rank)
        if rank in self._ended:
            name, site = "killed", last_words(path, self._internal)
        else:
            compiles = self._readers[rank].compiled(time.monotonic())[1] is not None
            name, site = current_line(
                pid,
                path,
                self._internal,
                self._requests.within,
                wake=False,
                ask=not compiles,
                requests=self._requests,
            )
        return name, None if site is None else (os.fspath(site.file), site.line, site.function)
