"""Ranks that end, hang or diverge in the middle of a test: it fails, says how, and the next one passes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pytest_esper_ddp.inner import HEAD, Inner, Result

DEATHS = """
import ctypes

@ddp2
def test_raise(ddp):
    dist.barrier()
    if ddp.rank == 1:
        raise ValueError("rank 1 alone")
    dist.all_reduce(torch.ones(1))

class Slow:
    def __repr__(self):
        time.sleep(1.5)
        return "a model of many lines"

@pytest.fixture
def slow():
    return Slow()

@pytest.mark.ddp(patience=0.3)
def test_raise_that_is_slow_to_show(ddp, slow):
    if ddp.rank == 1:
        raise ValueError("rank 1 alone")
    dist.barrier()

@ddp2
def test_exit_0(ddp):
    dist.barrier()
    if ddp.rank == 1:
        os._exit(0)

@ddp2
def test_exit_1_after_the_last_collective(ddp):
    dist.barrier()
    if ddp.rank == 1:
        os._exit(1)

@ddp2
def test_exit_before_a_collective(ddp):
    if ddp.rank == 1:
        os._exit(3)
    dist.barrier()

@ddp2
def test_sys_exit(ddp):
    if ddp.rank == 1:
        sys.exit(4)
    dist.barrier()

@pytest.fixture
def talks(ddp):
    print("set up on", ddp.rank)
    yield
    if ddp.rank == 1:
        print("torn down on 1")
        os._exit(6)

@ddp2
def test_exit_in_a_finaliser(talks):
    print("said by all")

@ddp2
def test_exit_in_a_finaliser_after_a_failure(talks, ddp):
    assert ddp.rank == 0

@ddp2
def test_output_of_a_rank_that_died(ddp):
    print("printed by", ddp.rank)
    os.write(2, b"written by %d\\n" % ddp.rank)
    if ddp.rank == 0:
        ctypes.memset(0, 0, 1)

@pytest.mark.ddp(timeout=1.5)
def test_stopped_in_the_middle_of_its_outcome(ddp):
    if ddp.rank == 1:
        import socket
        sendall = socket.socket.sendall
        def half(self, data):
            sendall(self, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGSTOP)
        socket.socket.sendall = half

@ddp2
def test_kill(ddp):
    dist.barrier()
    if ddp.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()

@ddp2
def test_kill_alone(ddp):
    if ddp.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)

@ddp2
def test_segfault(ddp):
    dist.barrier()
    if ddp.rank == 1:
        ctypes.memset(0, 0, 1)

@ddp2
def test_segfault_while_another_waits(ddp):
    if ddp.rank == 1:
        ctypes.memset(0, 0, 1)  # here
    dist.barrier()

@ddp2
def test_skip_while_another_waits(ddp):
    if ddp.rank == 1:
        pytest.skip("no GPU")
    dist.barrier()

@ddp2
def test_all_die(ddp):
    os._exit(5)

@ddp2
def test_interrupted(ddp):
    raise KeyboardInterrupt

@ddp2
def test_state_that_cannot_be_put_back(ddp):
    os.environ["NEW"] = "x"
    os.environ.clear = None

@ddp4
def test_missing(ddp):
    dist.barrier()
    if ddp.rank != 2:
        dist.all_reduce(torch.ones(3))

@ddp2
def test_mismatch(ddp):
    dist.all_reduce(torch.ones(3 + ddp.rank))

@ddp2
def test_uneven_where_nobody_waits(ddp):
    dist.all_reduce(torch.ones(3), async_op=True)
    if ddp.rank == 0:
        dist.all_reduce(torch.ones(3), async_op=True)

@ddp2
def test_the_next_one(ddp):
    dist.barrier()

@pytest.mark.ddp(timeout=1, lockstep="off")
def test_asleep(ddp):
    if ddp.rank == 1:
        time.sleep(1000)
    dist.barrier()

@pytest.mark.ddp(timeout=1, lockstep="off")
def test_asleep_alone(ddp):
    if ddp.rank == 1:
        time.sleep(1000)

@pytest.mark.ddp(lockstep="off")
def test_off(ddp):
    dist.barrier()

@pytest.mark.ddp(lockstep="observe", timeout=1.5)
def test_observed(ddp):
    if ddp.rank == 0:
        dist.barrier()

@pytest.mark.ddp(lockstep="observe")
def test_observed_and_healthy(ddp):
    dist.barrier()

@pytest.mark.ddp(lockstep="observe", patience=0.3)
def test_observed_late_and_healthy(ddp):
    if ddp.rank == 0:
        time.sleep(1.0)
    dist.barrier()

@pytest.mark.ddp(init=False)
def test_group_of_its_own(ddp):
    assert not dist.is_initialized()
    dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()

@pytest.mark.ddp(init=False)
def test_group_of_its_own_left_standing(ddp):
    dist.init_process_group("gloo")
    x = torch.ones(1)
    dist.all_reduce(x)
    assert x == 2

@ddp2
def test_the_last_one(ddp):
    dist.barrier()
"""


@pytest.fixture(scope="module")
def result(inner_of_module: Inner) -> Result:
    inner_of_module.file(DEATHS)
    return inner_of_module.run()


def test_what_passes(result: Result) -> None:
    assert result.passed == {
        "test_uneven_where_nobody_waits",
        "test_the_next_one",
        "test_off",
        "test_observed_and_healthy",
        "test_observed_late_and_healthy",
        "test_group_of_its_own",
        "test_group_of_its_own_left_standing",
        "test_the_last_one",
    }, result.text


def test_everything_else_fails(result: Result) -> None:
    others = {end for name, end in result.ends.items() if name not in result.passed}
    assert others == {"FAILED"}
    assert len(result.ends) == 31


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("test_raise", "rank 1: ValueError: rank 1 alone"),
        ("test_raise_that_is_slow_to_show", "rank 1 raised before barrier #0"),
        ("test_exit_0", "rank 1 exited with status 0"),
        ("test_exit_1_after_the_last_collective", "rank 1 exited with status 1"),
        ("test_exit_before_a_collective", "rank 1 exited before barrier #0"),
        ("test_sys_exit", "rank 1: SystemExit: 4"),
        ("test_kill", "rank 0 died before barrier #1"),
        ("test_kill_alone", "rank 0 was ended by signal 9"),
        ("test_segfault", "rank 1 was ended by signal 11"),
        ("test_segfault_while_another_waits", "rank 1 died before barrier #0"),
        ("test_skip_while_another_waits", "rank 1 never entered barrier #0"),
        ("test_exit_in_a_finaliser", "rank 1 exited with status 6"),
        ("test_exit_in_a_finaliser_after_a_failure", "rank 1: assert 1 == 0"),
        ("test_output_of_a_rank_that_died", "rank 0 was ended by signal 11"),
        ("test_all_die", "rank 0 exited with status 5"),
        ("test_interrupted", "rank 0: KeyboardInterrupt: "),
        (
            "test_state_that_cannot_be_put_back",
            "rank 0: the harness failed: TypeError: 'NoneType' object is not callable",
        ),
        ("test_missing", "rank 2 never entered all_reduce #1 (float32 [3])"),
    ],
)
def test_how_it_ended_is_the_first_line(result: Result, test: str, said: str) -> None:
    assert result.messages[test].strip() == said.strip()


def test_the_diagnosis_shows_both_sides(result: Result) -> None:
    told = result.told("test_missing")
    # One rank that waits proves it; who else has come by then is a matter of speed.
    assert re.search(r"ranks? [\d, ]+ waits? in all_reduce #1", told)
    assert "last in common: barrier #0" in told
    assert "test_inner.py:" in told
    told = result.told("test_raise")
    assert 'raise ValueError("rank 1 alone")' in told  # the culprit's own traceback
    assert "--- lockstep ---" in told
    assert "rank 0 waits in all_reduce #1" in told


def test_a_raise_is_known_before_it_is_shown(result: Result) -> None:
    """To show it took this one longer than the patience of the others, who were waiting for its rank."""
    told = result.told("test_raise_that_is_slow_to_show")
    assert "<- ValueError: rank 1 alone; its process goes on" in told


def test_all_that_died_are_listed(result: Result) -> None:
    assert result.told("test_all_die").splitlines()[:2] == [
        "rank 0 exited with status 5",
        "rank 1 exited with status 5",
    ]


def test_what_a_rank_printed_outlives_it(result: Result) -> None:
    told = result.told("test_output_of_a_rank_that_died")
    assert "--- Captured stdout until the end (rank 0) ---" in told
    assert "--- Captured stderr until the end (rank 0) ---" in told
    assert "--- Captured stdout call (rank 1) ---" in told
    for rank in (0, 1):
        assert told.count(f"printed by {rank}\n") == told.count(f"written by {rank}") == 1
    for name in ("test_exit_in_a_finaliser", "test_exit_in_a_finaliser_after_a_failure"):
        told = result.told(name)
        assert "set up on 0" in told
        assert "set up on 1" in told
        assert "torn down on 1" in told
        assert "rank 1 exited with status 6" in told


def test_of_a_crash_the_line_is_known_and_every_threads_stack(result: Result) -> None:
    told = result.told("test_segfault_while_another_waits")
    (line,) = [at for at, text in enumerate((HEAD + DEATHS).splitlines(), 1) if text.endswith("# here")]
    assert re.search(rf"rank 1 was killed +test_inner.py:{line} +test_segfault_while_another_waits", told)
    for name in ("test_segfault_while_another_waits", "test_segfault"):
        _, _, stacks = result.told(name).partition("--- Stacks at the end (rank 1) ---")
        assert "Fatal Python error: Segmentation fault" in stacks
        frames = re.findall(r'File "(.*?)", line \d+ in (\w+)', stacks)
        assert [(Path(file).name, function) for file, function in frames] == [("test_inner.py", name)]
    before, _, _ = result.text.partition("= FAILURES =")
    assert "Fatal" not in before + result.errors  # among the dots nobody would know whose it is


def test_why_a_rank_did_not_come_is_said_where_it_was_skipped(result: Result) -> None:
    assert "rank 1: skipped (no GPU)" in result.told("test_skip_while_another_waits").splitlines()


def test_a_rank_that_stops_in_the_middle_of_its_outcome_holds_nobody_up(result: Result) -> None:
    assert result.messages["test_stopped_in_the_middle_of_its_outcome"].startswith("rank 1 was stopped at ")
    assert result.messages["test_stopped_in_the_middle_of_its_outcome"].endswith(" at the test's time-out")


def test_each_side_of_a_mismatch_is_shown(result: Result) -> None:
    told = result.told("test_mismatch")
    assert "float32 [3]" in told
    assert "float32 [4]" in told


def test_at_the_time_out_each_rank_is_said_to_be_where_it_was(result: Result) -> None:
    lines = (HEAD + DEATHS).splitlines()
    first, second = (at for at, line in enumerate(lines, 1) if "time.sleep(1000)" in line)
    told = result.told("test_asleep").splitlines()
    assert [line for line in told if line.startswith("rank ")] == [
        f"rank 0 was sleeping at test_inner.py:{first + 1}  test_asleep at the test's time-out",
        f"rank 1 was sleeping at test_inner.py:{first}  test_asleep at the test's time-out",
    ]
    assert result.messages["test_asleep_alone"] == (
        f"rank 1 was sleeping at test_inner.py:{second}  test_asleep_alone at the test's time-out"
    )


def test_an_observed_divergence_runs_to_its_end_and_fails(result: Result) -> None:
    told = result.told("test_observed")
    assert told.startswith("rank 1 never entered barrier #0")


def test_nothing_of_ours_is_printed(result: Result) -> None:
    assert "Traceback" not in result.text + result.errors
    assert "pytest_esper_ddp" not in result.text + result.errors


SYS = """
import logging
handler = logging.StreamHandler(sys.stderr)  # as of any library that is imported while pytest captures

@ddp2
@pytest.mark.parametrize("number", range(2))
def test_captures(ddp, capsys, number):
    print("taken")
    assert capsys.readouterr().out == "taken\\n"
    print("left")

@ddp2
def test_output(ddp):
    print(f"printed by {ddp.rank}")
    handler.handle(logging.makeLogRecord({"msg": f"logged by {ddp.rank}"}))
    dist.barrier()
    if ddp.rank == 0:
        os._exit(3)
    dist.barrier()
"""


def test_what_it_printed_outlives_it_where_only_python_is_captured(inner: Inner) -> None:
    inner.file(SYS)
    result = inner.run("--capture=sys", "-p", "no:randomly")
    assert len(result.passed) == 2, result.text
    told = result.told("test_output")
    for rank, until in ((0, "until the end"), (1, "call")):
        for stream, text in (("stdout", "printed"), ("stderr", "logged")):
            assert re.search(
                rf"-- Captured {stream} {until} \(rank {rank}\) -+\n{text} by {rank}$", told, re.M
            )
    assert "left" not in told
