"""A few words in the job's store, for the moment when collectives no longer get through."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from torch._C._distributed_c10d import Store


class Board:
    """Keys of one agreement in the job's store. An operation is waited for up to `patience` seconds.

    A TCPStore lives in rank 0's process: with that process stopped, a plain call would wait for the store's
    own 300 s. So an operation that takes too long goes on by itself, those after it follow it in their order
    and are not waited for, until the store has caught up: one that is only slow, on a machine with too few
    processors, still learns what it was told.
    """

    def __init__(self, store: Store, patience: float = 0.1) -> None:
        self._store = store
        self.patience = patience
        self._asked: deque[_Question] = deque()  # not answered yet; the first is being asked
        self._lock = threading.Lock()
        self._gone = False
        self.unanswered = 0  # operations that returned without an answer

    def settle(self, key: str, value: str) -> str | None:
        """The value of `key`, which is `value` if no rank wrote one before; None from a silent store."""
        return self._bounded(lambda: self._store.compare_set(key, "", value).decode())

    def read(self, key: str) -> str | None:
        """The value of `key`, None when there is none or the store is silent."""
        return self._bounded(lambda: self._store.get(key).decode() if self._store.check([key]) else None)

    def _bounded(self, operation: Callable[[], str | None]) -> str | None:
        question = _Question(operation)
        self.unanswered += 1
        if self._gone:
            return None
        with self._lock:
            behind = bool(self._asked)
            self._asked.append(question)
        if behind:
            return None
        # A thread for each silence and none in between: a rank with a second live thread could still be woken
        # by it, which would turn a proved wait cycle into a suspected one.
        thread = threading.Thread(target=self._ask, name="esper-board", daemon=True)
        thread.start()
        thread.join(self.patience)
        self.unanswered -= question.answered
        return question.answer

    def _ask(self) -> None:
        while True:
            self._gone = not self._asked[0].ask()
            with self._lock:
                if self._gone:
                    self._asked.clear()
                    return
                self._asked.popleft()
                if not self._asked:
                    return


class _Question:
    def __init__(self, operation: Callable[[], str | None]) -> None:
        self._operation = operation
        self.answer: str | None = None
        self.answered = False

    def ask(self) -> bool:
        # The store of a rank that is gone raises; for the caller that is the same silence.
        try:
            self.answer = self._operation()
        except RuntimeError:
            return False
        self.answered = True
        return True
