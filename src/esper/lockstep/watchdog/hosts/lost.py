"""Hosts whose only rank has gone: who is killed tells nobody, but its connections are closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from esper.lockstep.watchdog.hosts.board import Board
from esper.lockstep.watchdog.hosts.told import Told
from esper.lockstep.watchdog.sockets import Endpoint

# Of a host that says something once a second. A call that broke is not held back for much longer.
QUIET_AFTER = 1.5


class Lost:
    """As the host that leads sees them."""

    def __init__(self, board: Board, told: Told, peers: Callable[[], Iterable[Endpoint]]) -> None:
        """`peers`: the other ends of all connections that ranks of this host have now."""
        self._board, self._told, self._peers = board, told, peers
        self._known: list[frozenset[Endpoint]] = []  # those that they had, at the last two looks

    def remember(self) -> None:
        """Note who is connected to this host."""
        self._known = [*self._known[-1:], frozenset(self._peers())]

    def since(self, host: int, now: float) -> float | None:
        """When the host's only rank was last heard of, if its process is gone; None while it may be there. A
        call of another rank has failed, nothing is heard of the host, or that it is over, and all that was
        connected to it from here is closed. Raises RuntimeError where the store does not answer.
        """
        told = self._told
        alone = len(told.present(host)) == 1
        if host == self._board.host or not alone or not told.another_failed(host):
            return None
        heard = told.heard(host)
        if not told.over(host) and now - heard <= QUIET_AFTER:
            return None
        ends = {(bytes.fromhex(address), port) for address, port in self._board.ends(host)}
        if not any(ends & known for known in self._known) or ends & set(self._peers()):
            return None
        return heard
