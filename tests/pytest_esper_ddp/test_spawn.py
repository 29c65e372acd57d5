"""Ranks that are processes of their own: asked for, or where a fork would lack what a module starts."""

from __future__ import annotations

from tests.pytest_esper_ddp.inner import Inner

SPAWNED = """
import pickle
PIDS = Path("pids")

def remember(ddp, name):
    (PIDS / f"{name}{ddp.rank}").write_text(f"{os.getpid()} {os.getppid()}")

@pytest.fixture(scope="session")
def wide():
    yield torch.ones(2)
    if os.environ.get("RANK"):
        (PIDS / f"finalised{os.environ['RANK']}").touch()

@ddp2
def test_one(ddp, wide, tmp_path):
    remember(ddp, "one")
    dist.all_reduce(wide)
    assert wide[0] == 2

@ddp2
def test_two(ddp, wide):
    remember(ddp, "two")
    print("said by", ddp.rank)
    assert ddp.rank == 0, "not the first"

@ddp2
@fault("kill", rank=1, op="barrier", nth=1)
@expect("crashed", guilty=[1])
def test_killed(ddp):
    remember(ddp, "killed")
    dist.barrier()
"""


def test_spawned_ranks_are_ranks(inner: Inner) -> None:
    inner.file(SPAWNED)
    (inner.folder / "pids").mkdir()
    session = inner.begin("--ddp-start=spawn", "-p", "no:randomly", starts=6)
    result = session.finish()
    assert result.passed == {"test_one", "test_killed"}, result.text
    assert result.ends["test_two"] == "FAILED"
    assert "rank 1: AssertionError: not the first" in result.messages["test_two"]
    told = result.told("test_two")
    assert "said by 0" in told
    assert "said by 1" in told
    pids = {path.name: path.read_text() for path in (inner.folder / "pids").iterdir()}
    assert pids["one0"] == pids["two0"] != pids["killed0"]
    # No process between pytest and its ranks.
    assert {text.split()[1] for text in pids.values() if text} == {str(session.pid)}
    assert {"finalised0", "finalised1"} <= set(pids)
    assert not result.errors


STARTS = """
RUNNING = threading.Event()
if Path("threads").exists():
    THREAD = threading.Thread(target=lambda: (RUNNING.set(), time.sleep(1000)), daemon=True)
    THREAD.start()

@ddp2
def test_its_thread_lives(ddp):
    assert RUNNING.wait(10)
    assert THREAD.is_alive()
    dist.barrier()

def test_plain(): ...
"""
NEIGHBOUR = """
@ddp2
def test_neighbour(ddp):
    # A fork has the command line of what it was forked from.
    Path(f"began{ddp.rank}").write_text(" ".join(sys.orig_argv))
    dist.barrier()
"""


def test_a_module_that_starts_threads_has_its_ranks_spawned(inner: Inner) -> None:
    inner.file(STARTS, "test_starts.py")
    inner.file(NEIGHBOUR, "test_neighbour.py")
    (inner.folder / "threads").touch()
    result = inner.run(starts=4)
    assert result.passed == {"test_its_thread_lives", "test_plain", "test_neighbour"}, result.text
    assert result.errors == (
        "\nddp: ranks of test_starts.py are spawned, not forked: importing it starts 1 thread(s), which a "
        "fork would lack\n"
    )
    assert "zygote" in (inner.folder / "began0").read_text()


def test_threads_of_a_conftest_file_are_everybodys(inner: Inner) -> None:
    inner.file("threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()", "conftest.py")
    inner.file(STARTS, "test_starts.py")
    inner.file(NEIGHBOUR, "test_neighbour.py")
    (inner.folder / "threads").touch()
    result = inner.run(starts=4)
    assert result.passed == {"test_its_thread_lives", "test_plain", "test_neighbour"}, result.text
    assert "ranks of test_starts.py are spawned" in result.errors
    assert result.errors.strip().splitlines()[-1] == (
        "ddp: ranks are spawned, not forked: plugins or conftest files start 1 thread(s) when they are "
        "imported, which a fork would lack"
    )
    assert "zygote" not in (inner.folder / "began0").read_text()


DIES = """
import sys
if "pytest_esper_ddp.rank.spawned" in " ".join(sys.orig_argv) and Path("dies").exists():
    try:
        Path("first").touch(exist_ok=False)
    except FileExistsError:
        os._exit(3)

@ddp2
def test_never(ddp): ...

def test_plain(): ...
"""


def test_a_spawned_rank_that_ends_before_it_is_one(inner: Inner) -> None:
    inner.file(DIES)
    (inner.folder / "dies").touch()
    result = inner.run("--ddp-start=spawn", starts=4)
    assert result.ends == {"test_never": "ERROR", "test_plain": "PASSED"}
    assert result.messages["test_never"] in {"rank 0 of 2 ended with 3", "rank 1 of 2 ended with 3"}
