"""What a test changes or leaves does not reach the next one, and is told; what wider fixtures make stays."""

from __future__ import annotations

import re

from tests.pytest_esper_ddp.inner import Inner, warned

LEAKS = """
import concurrent.futures, random, socket
import numpy

STATE = []

def draw():
    return torch.rand(1).item(), random.random(), numpy.random.rand(), numpy.random.normal()

def state():
    return (
        os.environ.get("LEAKED"), os.getcwd(), torch.get_default_dtype(), torch.get_default_device(),
        torch.get_num_threads(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
    )

@ddp2
def test_first(ddp):
    STATE.append((os.getpid(), state(), draw()))

@ddp2
def test_change_all(ddp, tmp_path):
    os.environ["LEAKED"] = "x"
    del os.environ["WORLD_SIZE"]
    os.chdir(tmp_path)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(5)
    numpy.random.set_bit_generator(numpy.random.PCG64(3))

@ddp2
def test_all_is_as_it_was(ddp):
    assert STATE == [(os.getpid(), state(), draw())]
    assert os.environ["WORLD_SIZE"] == "2"
    dist.barrier()

@pytest.mark.ddp(2, lockstep="observe")  # or the watchdog would leave the judging to the test
def test_leave_what_ends_by_itself(ddp):
    executor = concurrent.futures.ThreadPoolExecutor(2)
    executor.submit(time.sleep, 0.1)
    executor.shutdown(wait=False)
    group = dist.new_group([0, 1])
    dist.all_reduce(torch.ones(1), group=group)
    dist.destroy_process_group(group)
    with pytest.raises(ValueError):
        held_by_the_traceback = socket.socket()
        raise ValueError
    class Node: ...
    node = Node()
    node.itself, node.socket = node, socket.socket()
    STATE.append(open(os.devnull))
    from esper import lockstep
    assert lockstep.start().running

@ddp2
def test_those_are_no_leaks(ddp):
    assert len(STATE) == 2

@ddp2
def test_leave_a_group(ddp):
    dist.new_group([0, 1])
    STATE.append("group")

@ddp2
def test_new_after_a_group(ddp):
    assert STATE == []
    dist.barrier()

@ddp2
def test_leave_a_thread(ddp):
    if ddp.rank == 1:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    STATE.append("thread")

@ddp2
def test_new_after_a_thread(ddp):
    assert STATE == []
    dist.barrier()

@ddp2
def test_leave_50_threads(ddp):
    for number in range(50):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True, name=f"t{number}").start()
    STATE.append("threads")

@ddp2
def test_new_after_50_threads(ddp):
    assert STATE == []

@ddp2
def test_leave_sockets(ddp):
    if ddp.rank == 0:
        STATE.append(socket.create_server(("127.0.0.1", 0)))
    STATE.append(socket.socketpair())

@ddp2
def test_new_after_sockets(ddp):
    assert STATE == []

@ddp2
def test_leave_something_and_fail(ddp):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True, name="of a failure").start()
    assert not "so"

@ddp2
def test_destroy_the_group(ddp):
    dist.destroy_process_group()

@ddp2
def test_new_after_the_group_was_destroyed(ddp):
    dist.barrier()

@ddp2
def test_fill(ddp):
    STATE.append("filled")

@pytest.mark.ddp(isolation="fresh")
def test_fresh(ddp):
    assert STATE == []
    STATE.append("fresh")
    dist.barrier()

@ddp2
def test_pooled_again(ddp):
    assert STATE == ["filled"]
    dist.barrier()

@pytest.mark.ddp(isolation="fresh")
def test_leave_something_where_ranks_end(ddp):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

@ddp2
def test_leave_a_process(ddp):
    import subprocess
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=False)

@ddp2
@pytest.mark.parametrize("value", list({"one", "two", "three", "four", "five", "six"}), ids=range(6))
def test_unordered(value): ...

@ddp2
@pytest.mark.parametrize("value", [id(object())])
def test_renamed(value): ...
"""


def test_what_a_test_leaves_does_not_reach_the_next(inner: Inner) -> None:
    inner.file(LEAKS)
    # Every process of the session draws the order of a set anew; two seeds that surely differ.
    result = inner.run(env={"PYTHONHASHSEED": "random"})
    wrong = {name: end for name, end in result.ends.items() if end != "PASSED"}
    renamed = {name for name in wrong if name.startswith("test_renamed")}
    unordered = {name for name in wrong if name.startswith("test_unordered")}
    failing = "test_leave_something_and_fail"
    assert set(wrong) == renamed | unordered | {failing}, result.text
    assert wrong.pop(failing) == "FAILED"
    assert set(wrong.values()) == {"ERROR"}
    (name,) = renamed
    assert (
        "was collected here, but not by the process that ranks are forked from, which found: "
        in (result.messages[name])
    )
    # All six in the same place has a chance of 1 in 720.
    for name in unordered:
        assert (
            "but other values in the process that ranks are forked from: parameters must come out"
            in (result.messages[name])
        )
    assert "Traceback" not in result.text + result.errors
    both = "on ranks 0, 1; the next test gets new ranks"
    threads = "50 threads (t0, t1, t2, t3, t4, ...)"
    leaks = warned(result)
    sockets = leaks.pop("test_leave_sockets")
    assert re.sub(r":\d+", "", sockets) == (
        "left behind: 3 open sockets (listening at 127.0.0.1, to its own pair, to its own pair) on rank 0; "
        "2 open sockets (to its own pair, to its own pair) on rank 1; the next test gets new ranks"
    )
    assert leaks == {
        "test_leave_a_group": f"left behind: 1 process group {both}",
        "test_leave_a_thread": "left behind: thread Thread-1 (sleep) on rank 1; the next test gets new ranks",
        "test_leave_50_threads": f"left behind: {threads} {both}",
        "test_leave_something_and_fail": f"left behind: thread of a failure {both}",
        "test_destroy_the_group": f"left behind: the default process group destroyed or replaced {both}",
    }


WIDE = """
import socket

@pytest.fixture(scope="session", autouse=True)
def server():
    if not dist.is_initialized():
        yield
        return
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=server.accept, daemon=True).start()
    os.environ["SERVER"] = str(server.getsockname()[1])
    group = dist.new_group([0, 1])
    yield group
    dist.destroy_process_group(group)

@pytest.fixture(scope="class")
def of_class(tmp_path_factory):
    before = os.getcwd(), os.environ["PATH"]
    os.chdir(tmp_path_factory.mktemp("of_class"))
    del os.environ["PATH"]
    os.environ["OF_CLASS"] = "x"
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    yield
    os.chdir(before[0])
    os.environ["PATH"] = before[1]
    del os.environ["OF_CLASS"]
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)

PIDS = set()

@pytest.fixture(autouse=True)
def on_one_world(server):
    PIDS.add(os.getpid())
    assert len(PIDS) == 1
    if dist.is_initialized():
        assert int(os.environ["SERVER"])
        dist.barrier(group=server)

def state():
    return "PATH" in os.environ, "OF_CLASS" in os.environ, torch.get_default_dtype(), torch.is_grad_enabled()

@ddp2
def test_before(ddp):
    assert state() == (True, False, torch.float32, True)

@ddp2
@pytest.mark.usefixtures("of_class")
class TestWide:
    @pytest.mark.parametrize("number", range(3))
    def test_stays(self, ddp, number, monkeypatch):
        assert state() == (False, True, torch.float64, False)
        assert Path.cwd().name.startswith("of_class")
        os.environ["OF_CLASS"] = "changed"
        os.environ["NEW"] = "x"
        os.chdir("/")
        torch.set_default_dtype(torch.float16)

    def test_of_a_test_does_not(self, ddp):
        assert os.environ["OF_CLASS"] == "x" and "NEW" not in os.environ

@ddp2
def test_after(ddp):
    assert state() == (True, False, torch.float32, True)
    assert not Path.cwd().name.startswith("of_class")

@ddp2
def test_destroys_what_is_of_the_session(ddp, server):
    dist.destroy_process_group(server)
"""


def test_what_wider_fixtures_make_and_change_stays_as_long_as_they(inner: Inner) -> None:
    inner.file(WIDE)
    result = inner.run()
    last = "test_destroys_what_is_of_the_session"
    assert result.ends.pop(last) == "PASSED+ERROR"  # the fixture's own end
    assert set(result.ends.values()) == {"PASSED"}, result.text
    assert warned(result) == {
        last: "left behind: a fixture's process group destroyed on ranks 0, 1; the next test gets new ranks"
    }
