"""Tests as pytest knows them, on ranks: fixtures, parameters, capture, skip, xfail, errors of a phase."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pytest_esper_ddp.inner import Inner, Result

BODIES = """
FINALISED = Path(os.environ["FINALISED"])

@pytest.fixture(scope="session")
def of_session():
    yield os.getpid()
    (FINALISED / f"session.{os.environ.get('RANK', '-')}.{os.getpid()}").touch()

@pytest.fixture(scope="module")
def of_module(of_session):
    yield of_session
    (FINALISED / f"module.{os.environ.get('RANK', '-')}.{os.getpid()}").touch()

@pytest.fixture
def mine(ddp):
    return torch.full((4,), float(ddp.rank))

def test_plain(of_module):
    assert not dist.is_initialized()

@ddp4
def test_collective(ddp, mine, of_module):
    assert of_module == os.getpid()
    dist.all_reduce(mine)
    assert mine[0] == 6
    ddp.assert_same(mine)
    assert (dist.get_rank(), dist.get_world_size()) == (ddp.rank, ddp.world_size)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == (str(ddp.rank), "4")

@ddp2
def test_assert_same_names_the_ranks(ddp):
    with pytest.raises(AssertionError, match=r"^weights differs: 0.0 on rank 0; 1.0 on rank 1$"):
        ddp.assert_same(torch.tensor(float(ddp.rank)), "weights")

@ddp2
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters(size, dtype):
    x = torch.ones(size, dtype=dtype)
    dist.all_reduce(x)
    assert x.tolist() == [2.0] * size

@ddp2
class TestClass:
    def test_method(self, ddp):
        dist.barrier()

@ddp2
def test_paths(ddp, tmp_path):
    (ddp.shared_path / str(ddp.rank)).write_text(str(tmp_path))
    dist.barrier()
    paths = {path.name: path.read_text() for path in ddp.shared_path.iterdir()}
    assert set(paths) == {"0", "1"} and len(set(paths.values())) == 2 and Path(paths["0"]).is_dir()

@ddp2
def test_paths_are_new(ddp):
    assert not list(ddp.shared_path.iterdir())
    dist.barrier()

@ddp2
def test_was_done_before_the_fork(ddp):
    from esper.lockstep.rank.kernel import operators
    found = operators.cache_info()
    assert (found.misses, found.hits) == (1, 0)  # a hit would be this rank's

@ddp2
def test_large_pages_are_for_what_it_was_forked_from(ddp):
    began = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(bytes(1))
    assert b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in began
    assert "GLIBC_TUNABLES" not in os.environ

@ddp2
def test_tools(ddp, monkeypatch, capsys, caplog, recwarn):
    monkeypatch.setenv("MINE", str(ddp.rank))
    print("printed by", ddp.rank)
    assert capsys.readouterr().out == f"printed by {ddp.rank}\\n"
    import logging
    aside = logging.getLogger("aside")
    aside.propagate = False
    logging.getLogger("mine").warning("logged")
    logging.getLogger("torch.distributed").warning("by torch")  # doesn't propagate
    aside.warning("too new for pytest to catch")
    assert caplog.messages == ["logged", "by torch"]
    with pytest.warns(UserWarning, match="careful"):
        import warnings
        warnings.warn("careful")
    with pytest.raises(ZeroDivisionError):
        1 / 0

@ddp2
def test_a_warning(ddp):
    import warnings
    warnings.warn("only said")

@ddp2
def test_notes(ddp):
    ddp.note("said by all")
    ddp.note(f"said by {ddp.rank}")

@ddp2
def test_skipped(ddp):
    pytest.skip(f"not on rank {ddp.rank}")

@ddp2
@pytest.mark.skip(reason="by marker")
def test_skipped_by_marker(ddp): ...

@ddp2
def test_skipped_on_one(ddp):
    if ddp.rank == 1:
        pytest.skip("no GPU")

@ddp2
@pytest.mark.xfail(reason="known")
def test_xfail(ddp):
    assert ddp.rank > 5

@ddp2
@pytest.mark.xfail(reason="known")
def test_xfail_of_a_divergence(ddp):
    if ddp.rank == 0:
        dist.barrier()

@ddp2
@pytest.mark.xfail(reason="known", strict=True)
def test_xpass_strict(ddp): ...

@ddp4
def test_assertion(ddp):
    print("before,", ddp.rank)
    left = [1, 2, ddp.rank]
    dist.barrier()
    if ddp.rank == 2:
        assert left == [1, 2, 3]

@pytest.fixture
def bad_setup(ddp):
    if ddp.rank == 1:
        raise OSError("no such device")

@ddp2
def test_setup_error(bad_setup): ...

@pytest.fixture
def bad_teardown(ddp):
    yield
    assert ddp.rank == 0, "left open"

@ddp2
def test_teardown_error(bad_teardown): ...

@ddp2
def test_unsendable(record_property):
    record_property("key", lambda: 1)
    record_property("path", Path("here"))

@ddp2
def test_unsendable_report(request):
    request.node.add_report_section("call", "threads", threading.Lock())

@ddp2
def test_a_child_that_runs_on(ddp):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 256
        dist.barrier()

@ddp2
def test_no_such_fixture(nowhere): ...

def test_ddp_without_the_marker(ddp): ...

@ddp2
def test_after_all_that(of_module):
    dist.barrier()
"""
OTHER = """
def test_plain_in_another_file(): ...

@ddp4
def test_collective_in_another_file(ddp):
    dist.barrier()
"""


@pytest.fixture(scope="module")
def finalised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finalised")


@pytest.fixture(scope="module")
def result(inner_of_module: Inner, finalised: Path) -> Result:
    inner_of_module.file(BODIES)
    inner_of_module.file(OTHER, "test_other.py")
    return inner_of_module.run("--junitxml=out.xml", env={"FINALISED": str(finalised)}, cold=True)


def test_what_passes(result: Result) -> None:
    assert result.passed == {
        "test_plain",
        "test_was_done_before_the_fork",
        "test_large_pages_are_for_what_it_was_forked_from",
        "test_collective",
        "test_assert_same_names_the_ranks",
        *(f"test_parameters[dtype{dtype}-{size}]" for dtype in (0, 1) for size in (1, 3)),
        "TestClass::test_method",
        "test_paths",
        "test_paths_are_new",
        "test_tools",
        "test_a_warning",
        "test_notes",
        "test_unsendable",
        "test_a_child_that_runs_on",
        "test_after_all_that",
        "test_plain_in_another_file",
        "test_collective_in_another_file",
    }, result.text


def test_what_does_not(result: Result) -> None:
    assert {name: end for name, end in result.ends.items() if end != "PASSED"} == {
        "test_skipped_on_one": "FAILED",
        "test_xfail": "XFAIL",
        "test_xfail_of_a_divergence": "XFAIL",
        "test_xpass_strict": "FAILED",
        "test_assertion": "FAILED",
        "test_setup_error": "ERROR",
        "test_teardown_error": "PASSED+ERROR",
        "test_unsendable_report": "FAILED",
        "test_no_such_fixture": "ERROR",
        "test_ddp_without_the_marker": "ERROR",
    }
    assert result.skipped == ["not on rank 0", "by marker"]
    assert result.status == 1


def test_nothing_is_printed_beside_the_report(result: Result) -> None:
    assert "Traceback" not in result.text + result.errors
    assert result.errors == ""


def test_an_assertion_is_explained_and_its_rank_named(result: Result) -> None:
    told = result.told("test_assertion")
    assert "At index 2 diff: 2 != 3" in told
    assert "------ other ranks ------" in told
    assert "ranks 0, 1, 3: passed" in told
    assert "Captured stdout call (rank 2) ---" in told
    assert result.messages["test_assertion"].startswith("rank 2: assert [1, 2, 2] == [1, 2, 3]")


def test_the_messages(result: Result) -> None:
    assert (
        result.messages["test_skipped_on_one"] == "the ranks disagree: rank 0 passed; rank 1 skipped (no GPU)"
    )
    assert result.messages["test_setup_error"] == "rank 1: OSError: no such device"
    assert result.messages["test_teardown_error"].startswith("rank 1: AssertionError: left open")
    assert result.messages["test_xpass_strict"] == "rank 0: [XPASS(strict)] known"
    assert "fixture 'nowhere' not found" in result.told("test_no_such_fixture")
    assert result.messages["test_unsendable_report"].startswith("rank 0: its reports can't be sent: ")
    assert result.messages["test_ddp_without_the_marker"] == (
        "Failed: the ddp fixture needs @pytest.mark.ddp: this test runs in pytest's own process"
    )


def test_a_property_that_can_not_be_sent_is_shown_by_its_repr(inner_of_module: Inner, result: Result) -> None:
    written = (inner_of_module.folder / "out.xml").read_text()
    assert 'name="key" value="&lt;function test_unsendable.&lt;locals&gt;.&lt;lambda&gt; at 0x' in written
    assert 'name="path" value="here"' in written


def test_a_warning_of_all_ranks_is_told_once(result: Result) -> None:
    assert result.text.count("UserWarning: only said") == 1


def test_notes_stand_below_their_test(result: Result) -> None:
    (notes,) = [at for at, row in enumerate(result.table) if row[0] == "notes"]
    assert result.table[notes][1:4] == ["none", "healthy", "-"]
    assert result.table[notes + 1 : notes + 4] == [
        ["", "said by all"],
        ["", "said by 0"],
        ["", "said by 1"],
    ]


def test_wide_fixtures_are_finalised_once_in_each_process_that_made_them(
    result: Result, finalised: Path
) -> None:
    names = [path.name for path in finalised.iterdir()]
    for scope in ("session", "module"):
        found = [name for name in names if name.startswith(f"{scope}.")]
        # pytest itself for the plain test, four ranks of one world and two of another.
        assert sorted(name.split(".")[1] for name in found) == ["-", "0", "0", "1", "1", "2", "3"]
