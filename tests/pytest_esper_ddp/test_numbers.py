"""Process numbers come again: how their last holder ended says nothing of a living rank."""

from __future__ import annotations

import socket

import pytest

from pytest_esper_ddp.controller import zygote
from pytest_esper_ddp.controller.zygote import ZygoteClient
from pytest_esper_ddp.wire.channel import send
from pytest_esper_ddp.wire.messages import Exited, Forked


def test_a_new_rank_with_an_old_number_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(zygote.ZygoteClient, "__init__", lambda self: None)
        client = ZygoteClient()  # type: ignore[call-arg]
        client.channel, client._exits = ours, {}
        send(theirs, Exited(7, 0))
        send(theirs, Exited(8, -9))
        client.pump()
        assert (client.exit_code(7), client.exit_code(8)) == (0, -9)
        send(theirs, Forked((6, 7)))
        send(theirs, Exited(6, 1))
        client.pump()
        assert [client.exit_code(pid) for pid in (6, 7, 8)] == [1, None, -9]
