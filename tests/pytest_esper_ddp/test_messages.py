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
from pytest_esper_ddp.wire.channel import Closed, Inbox, Unreadable, receive, send
from pytest_esper_ddp.wire.messages import (
    AsksForTerminal,
    BecomeRank,
    Broken,
    Collect,
    Collected,
    Debugger,
    Early,
    EndWorld,
    Exited,
    Finalised,
    Forked,
    ForkWorld,
    Joined,
    Leave,
    LeavesTerminal,
    Measured,
    Outcome,
    Preload,
    RunTest,
    Terminal,
    Up,
    Warned,
)
from pytest_esper_ddp.wire.plain import packed
from tests.pytest_esper_ddp.plans import failure

WORLD = ForkWorld(
    number=1,
    world_size=2,
    run_dir=Path("run"),
    base_temp=Path("temp"),
    backend="gloo",
    init=True,
    lockstep=True,
    seed=0,
    lasting=True,
    store_port=1,
)
MESSAGES = (
    Preload("torch._dynamo"),
    Joined(1, 4711, {"test_it.py::test_it": "digest"}),
    Leave(None),
    Collect({"verbose": 1}, ("test_it.py",), "/"),
    WORLD,
    Collected({"test_it.py::test": "digest"}, unforkable="1 thread(s)", started={"f.py": "1 thread(s)"}),
    BecomeRank(1, WORLD),
    Forked((10, 11)),
    Exited(10, -9),
    Broken("no torch"),
    RunTest("test_it.py::test", None, "1 test", (Fault(kind="skip", rank=1),), judged=True),
    EndWorld(),
    Up(captured=2),
    Debugger(post_mortem=True, rank=1),
    AsksForTerminal(post_mortem=True),
    Terminal(granted=True),
    LeavesTerminal(),
    Measured({"branch": True}, Path("data"), {"COVERAGE_PROCESS_START": "rc"}),
    Finalised(failure(), {"outcome": "failed"}),
    Early({"outcome": "failed"}, failure()),
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
        stops=True,
        refused="target 'x:y': no module 'x'",
        warnings=(Warned("careful", "builtins", "UserWarning", "test_it.py", 3),),
        passed=((100.0, 101.0, 1.0),) * 3,
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


def whole_and_half(messages: list[object]) -> bytes:
    """All but the last byte of what sends these messages."""
    ours, theirs = pair()
    with ours, theirs:
        for message in messages:
            send(ours, message)
        return theirs.recv(1 << 20)[:-1]


def test_an_inbox_never_waits_for_the_rest_of_a_message() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox(theirs)
        assert inbox.take() == []
        sent = whole_and_half([Up(), EndWorld(), Broken("half")])
        ours.sendall(sent)
        assert inbox.take() == [Up(), EndWorld()]
        assert inbox.take() == []
        ours.sendall(pickle.dumps(Broken("half"), pickle.HIGHEST_PROTOCOL)[-1:])
        assert inbox.take() == [Broken("half")]


def test_an_inbox_gives_what_came_before_the_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            send(ours, Up())
            send(ours, Broken("x" * (1 << 17)))
            ours.sendall(b"\xff\x00\x00\x00half")
        inbox = Inbox(theirs)
        assert inbox.take(last=True) == [Up(), Broken("x" * (1 << 17))]
        for _ in range(2):
            with pytest.raises(Closed, match="the other end is gone"):
                inbox.take()


def test_an_inbox_says_what_can_not_be_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, _OfAnotherProcess())
        send(ours, Up())
        assert Inbox(theirs).take() == [Unreadable("LookupError: only there"), Up()]


class _OfAnotherProcess:
    def __reduce__(self) -> tuple[object, ...]:
        return _only_there, ()


def _only_there() -> None:
    raise LookupError("only there")


class _WithoutRepr:
    def __repr__(self) -> str:
        raise ValueError("no")

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("can't travel")


def test_values_travel_as_they_are_or_else_by_their_repr() -> None:
    plain = {"a": [1, 2.5, None, True], "b": ("x", b"y")}
    assert packed(plain) == plain
    path = Path("where")
    values = [path, int, len, _OfAnotherProcess(), _WithoutRepr()]
    arrived = pickle.loads(pickle.dumps(packed(values)))
    assert isinstance(arrived, list)
    assert arrived[:3] == [path, int, len]
    assert "_OfAnotherProcess object at 0x" in arrived[3]
    assert arrived[4] == "<_WithoutRepr without a repr: ValueError>"


@pytest.mark.parametrize("error", [HarnessError("a"), MarkerError("b"), Closed("c")])
def test_errors_pickle(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args) == (type(error), error.args)
