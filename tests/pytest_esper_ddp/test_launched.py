"""Under torchrun: the launched processes are the ranks, one of them reports, and all of it ends."""

from __future__ import annotations

import re
import signal

import pytest

from pytest_esper_ddp.launch import Place, place_of
from tests.pytest_esper_ddp.inner import PYTEST, Inner, Result, eventually

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=3", *PYTEST)
TESTS = """
@pytest.fixture(scope="session")
def of_session():
    yield
    Path(f"finalised{os.environ['RANK']}").touch()

def test_plain():
    assert not dist.is_initialized()
    with Path("plain").open("a") as file:
        file.write("x")

@pytest.mark.ddp
def test_launched_processes_are_the_ranks(ddp):
    Path(f"process{ddp.rank}").write_text(f"{os.getpid()} {os.getppid()}")
    ones = torch.ones(1)
    dist.all_reduce(ones)
    assert ones == ddp.world_size == 3

@ddp4
def test_of_another_size(ddp): ...

@pytest.mark.ddp
@pytest.mark.parametrize("value", [1, 2])
def test_parameters(ddp, value, tmp_path, of_session):
    (ddp.shared_path / str(ddp.rank)).write_text(str(tmp_path))
    dist.barrier()
    assert len({path.read_text() for path in ddp.shared_path.iterdir()}) == 3

@pytest.mark.ddp
def test_fails(ddp):
    print("printed by", ddp.rank)
    assert ddp.rank != 2

@pytest.mark.ddp
def test_hangs(ddp):
    if ddp.rank != 1:
        dist.all_reduce(torch.ones(2))

@pytest.mark.ddp
def test_is_not_lost(ddp):
    Path(f"again{ddp.rank}").write_text(f"{os.getpid()} {os.getppid()}")
    dist.barrier()

@pytest.mark.ddp(timeout=2, lockstep="off")
def test_sleeps(ddp):
    if ddp.rank == 0:
        os._exit(3)
    time.sleep(1000) if ddp.rank == 1 else dist.barrier()

@pytest.mark.ddp(init=False)
def test_of_its_own(of_session):
    dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()

@pytest.mark.ddp
def test_last(ddp, of_session):
    dist.barrier()
"""


@pytest.fixture(scope="module")
def result(inner_of_module: Inner) -> Result:
    inner_of_module.file(TESTS)
    return inner_of_module.run(command=TORCHRUN)


def process(inner: Inner, name: str) -> tuple[str, str]:
    own, parent = (inner.folder / name).read_text().split()
    return own, parent


def test_there_is_one_report(result: Result, inner_of_module: Inner) -> None:
    assert result.text.count("test session starts") == 1
    assert result.passed == {
        "test_plain",
        "test_launched_processes_are_the_ranks",
        "test_parameters[1]",
        "test_parameters[2]",
        "test_is_not_lost",
        "test_of_its_own",
        "test_last",
    }, result.text + result.errors
    assert {name for name, end in result.ends.items() if end == "FAILED"} == {
        "test_fails",
        "test_hangs",
        "test_sleeps",
    }
    assert result.skipped == ["needs 4 ranks, and torchrun has launched 3"]
    assert (inner_of_module.folder / "plain").read_text() == "x"
    assert result.messages["test_fails"].startswith("rank 2: assert 2 != 2")
    assert "printed by 1" in result.told("test_fails")


def test_a_hang_is_diagnosed(result: Result) -> None:
    assert result.messages["test_hangs"] == "rank 1 never entered all_reduce #0 (float32 [2])"


def test_a_rank_begins_anew_as_the_same_process(result: Result, inner_of_module: Inner) -> None:
    assert "test_is_not_lost" in result.passed
    for rank in (1, 2):
        assert process(inner_of_module, f"process{rank}") == process(inner_of_module, f"again{rank}")
    (launcher,) = {process(inner_of_module, f"process{rank}")[1] for rank in (1, 2)}
    assert f" {launcher} torch/distributed" in result.errors
    assert process(inner_of_module, "process0") != process(inner_of_module, "again0")
    assert sorted(path.name for path in inner_of_module.folder.glob("finalised*")) == [
        "finalised0",
        "finalised1",
        "finalised2",
    ]


def test_all_end_with_the_status_of_the_session(result: Result) -> None:
    assert result.status == 1
    assert re.findall(r"exitcode  : (\S+)", result.errors) == ["1", "1", "1"]


BODY = """
def work(rank):
    if rank == 0:
        return "first"
    if rank == 1:
        return "second"
    return "third"
"""
GREEN = """
import body

@pytest.mark.ddp
def test_one(ddp):
    dist.barrier()
    assert body.work(ddp.rank)

def test_two(): ...
"""


def test_what_passes_ends_well_and_is_measured_on_all_ranks(inner: Inner) -> None:
    inner.file(BODY, "body.py", head="")
    inner.file(GREEN)
    measured = ("--cov=body", "--cov-report=term-missing")
    result = inner.run(*measured, command=TORCHRUN)
    assert (result.status, result.passed) == (0, {"test_one", "test_two"}), result.text + result.errors
    assert re.search(r"^body\.py +6 +0 +100%", result.text, re.MULTILINE), result.text
    assert "Traceback" not in result.errors


FAILS = """
@pytest.mark.ddp
def test_fails(ddp):
    dist.barrier()
    secret = 40 + ddp.rank
    assert ddp.rank != 2

@pytest.mark.ddp
def test_next(ddp): ...
"""


def test_the_debugger_prompts_once_where_a_launched_rank_failed(inner: Inner) -> None:
    inner.file(FAILS)
    result = inner.begin("--pdb", command=TORCHRUN, typed="p secret\nc\n").finish()
    assert result.ends == {"test_fails": "FAILED", "test_next": "PASSED"}, result.text + result.errors
    assert "(Pdb) 42" in result.text
    assert result.text.count("PDB post_mortem") == 1


DIES = """
@pytest.mark.ddp
def test_before(ddp):
    dist.barrier()

@pytest.mark.ddp
def test_dies(ddp):
    if ddp.rank == 1:
        {end}
    dist.barrier()

@pytest.mark.ddp
def test_lost(ddp): ...
"""


@pytest.mark.parametrize(
    ("end", "told"),
    [
        pytest.param("os._exit(3)", "rank 1 exited before barrier #0", marks=pytest.mark.stress),
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 died before barrier #0"),
    ],
)
def test_the_end_of_a_launched_rank_is_reported_before_torchrun_ends_all(
    inner: Inner, end: str, told: str
) -> None:
    inner.file(DIES.format(end=end))
    result = inner.run(command=TORCHRUN)
    assert result.ends == {"test_before": "PASSED", "test_dies": "FAILED"}, result.text + result.errors
    assert result.messages["test_dies"] == told
    assert "ended by SIGTERM" in result.text


HANGS = """
@pytest.mark.ddp(lockstep="off", timeout=90)
def test_hangs(ddp):
    Path(f"up{ddp.rank}").touch()
    dist.barrier() if ddp.rank else time.sleep(1000)
"""


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.stress),
        pytest.param(signal.SIGKILL, marks=pytest.mark.stress),
    ],
)
def test_nothing_outlives_torchrun(inner: Inner, number: signal.Signals) -> None:
    inner.file(HANGS)
    started = inner.start(command=TORCHRUN)
    assert all(inner.eventually_exists(f"up{rank}") for rank in range(3))
    started.send_signal(number)
    result = inner.finish(started)
    assert result.status != 0
    assert eventually(lambda: not inner.alive(), within=10), inner.alive()
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in result.text


LAUNCHED = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_what_a_launcher_says() -> None:
    assert place_of(LAUNCHED) == Place(1, 4, "localhost", 29500, serves=False, attempt="none/2")
    first = place_of({**LAUNCHED, "TORCHELASTIC_USE_AGENT_STORE": "False", "RANK": "0"})
    assert first is not None
    assert first.store_is_here
    assert place_of({**LAUNCHED, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}) is None
    assert place_of({name: LAUNCHED[name] for name in ("RANK", "WORLD_SIZE")}) is None
    with pytest.raises(pytest.UsageError, match=r"^torchrun has launched 4 of 8 ranks on this machine: "):
        place_of({**LAUNCHED, "WORLD_SIZE": "8"})
