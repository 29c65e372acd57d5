"""A few words in the job's store, for the moment when collectives no longer get through."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch._C._distributed_c10d import Store


class Board:
    """Keys of one agreement in the job's store. An operation is given up after `patience` seconds.

    A TCPStore lives in rank 0's process: with that process stopped, a plain call would wait for the store's
    own 300 s. After the first silence the board stays silent and costs nothing.
    """

    def __init__(self, store: Store, patience: float = 0.1) -> None:
        self._store = store
        self._patience = patience
        self._silent = False

    def settle(self, key: str, value: str) -> str | None:
        """The value of `key`, which is `value` if no rank wrote one before; None from a silent store."""
        return self._bounded(lambda: self._store.compare_set(key, "", value).decode())

    def read(self, key: str) -> str | None:
        """The value of `key`, None when there is none or the store is silent."""
        return self._bounded(lambda: self._store.get(key).decode() if self._store.check([key]) else None)

    @property
    def silent(self) -> bool:
        """Whether the store failed to answer in time."""
        return self._silent

    def _bounded(self, operation: Callable[[], str | None]) -> str | None:
        answers: list[str | None] = []

        def ask() -> None:
            # The store of a rank that is gone raises; for the caller that is the same silence.
            try:
                answers.append(operation())
            except RuntimeError:
                return

        if self._silent:
            return None
        # A thread for each call and none in between: a rank with a second live thread could still be woken by
        # it, which would turn a proved wait cycle into a suspected one.
        thread = threading.Thread(target=ask, name="esper-board", daemon=True)
        thread.start()
        thread.join(self._patience)
        self._silent = not answers
        return answers[0] if answers else None
