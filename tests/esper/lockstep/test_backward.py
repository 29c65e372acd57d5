"""Whose backward it is that C++ issues a collective for."""

from __future__ import annotations

import os
import threading

import pytest

from esper.lockstep.rank import backward


def test_a_forked_rank_names_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(lock: threading.Lock) -> None:
        lock.acquire()

    monkeypatch.setattr(backward, "ENGINE", waits.__code__)  # as autograd leaves Python
    theirs, ours = os.pipe()
    if (child := os.fork()) == 0:
        lock = threading.Lock()
        lock.acquire()

        def tell() -> None:
            frame, thread = backward.waiting_thread()
            while frame is None:
                frame, thread = backward.waiting_thread()
            os.write(ours, str(thread).encode())
            lock.release()

        threading.Thread(target=tell).start()
        waits(lock)
        os._exit(0)
    os.close(ours)
    with open(theirs) as told:
        assert told.read() == str(child)
    assert os.waitpid(child, 0)[1] == 0
