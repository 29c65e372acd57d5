"""What crosses between processes arrives as it was."""

from __future__ import annotations

import pickle
import socket
import threading
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from pytest_esper_ddp.errors import HarnessError, MarkerError
from pytest_esper_ddp.scenario import Fault
from pytest_esper_ddp.wire import messages
from pytest_esper_ddp.wire.channel import Closed, receive, send
from pytest_esper_ddp.wire.messages import (
    Broken,
    Collect,
    Collected,
    EndWorld,
    Exited,
    Forked,
    ForkWorld,
    Outcome,
    Preload,
    RunTest,
    Up,
    Warned,
)
from tests.pytest_esper_ddp.plans import failure

MESSAGES = (
    Preload("torch._dynamo"),
    Collect({"verbose": 1}, ("test_it.py",), "/"),
    ForkWorld(
        number=1,
        world_size=2,
        run_dir=Path("run"),
        base_temp=Path("temp"),
        backend="gloo",
        init=True,
        lockstep=True,
        seed=0,
        store_port=1,
    ),
    Collected({"test_it.py::test": "digest"}, threads=1, errors=""),
    Forked((10, 11)),
    Exited(10, -9),
    Broken("no torch"),
    RunTest("test_it.py::test", None, "1 test", (Fault(kind="skip", rank=1),), Path("shared")),
    EndWorld(),
    Up(),
    failure(kind="lifecycle", guilty=(1,), fields=("alpha",)),
    Warned("careful", "builtins", "UserWarning", "test_it.py", 3),
    Outcome(
        reports=({"outcome": "passed"},),
        failure=failure(),
        groups={"default": (3, 7, (0, 1))},
        fired=((0, 1.5),),
        leaks=("thread x",),
        notes=("note",),
        error="Exit: enough",
        refused="target 'x:y': no module 'x'",
        warnings=(Warned("careful", "builtins", "UserWarning", "test_it.py", 3),),
    ),
)


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)
    return ours, theirs


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was(message: object) -> None:
    ours, theirs = pair()
    with ours, theirs:
        send(ours, message)
        assert receive(theirs) == message


def test_no_message_is_left_out_above() -> None:
    known = {name for name, value in vars(messages).items() if is_dataclass(value) and name != "Fault"}
    assert known == {type(message).__name__ for message in MESSAGES}


def test_messages_keep_their_order_and_may_be_large() -> None:
    ours, theirs = pair()
    large = Broken("x" * (8 << 20))  # many times what a socket holds
    with ours, theirs:

        def send_all() -> None:
            for message in (large, Up(), large):
                send(ours, message)

        sender = threading.Thread(target=send_all)
        sender.start()
        assert [receive(theirs) for _ in range(3)] == [large, Up(), large]
        sender.join()


def test_an_end_that_is_gone() -> None:
    ours, theirs = pair()
    with ours:
        theirs.close()
        with pytest.raises(Closed, match="the other end is gone"):
            receive(ours)
        with pytest.raises(Closed, match="the other end is gone"):
            send(ours, Up())


def test_an_end_that_goes_in_the_middle_of_a_message() -> None:
    ours, theirs = pair()
    with ours:
        theirs.sendall(b"\xff\x00\x00\x00half")
        theirs.close()
        with pytest.raises(Closed, match="the other end is gone"):
            receive(ours)


@pytest.mark.parametrize("error", [HarnessError("a"), MarkerError("b"), Closed("c")])
def test_errors_pickle(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args) == (type(error), error.args)
