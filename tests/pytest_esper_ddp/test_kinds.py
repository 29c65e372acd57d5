"""More of what pytest knows, on ranks: kinds of fixtures, marks, subtests, async tests, errors in the end."""

from __future__ import annotations

import pytest

from tests.pytest_esper_ddp.inner import Inner, Result

KINDS = '''
import asyncio, logging, unittest, warnings

@pytest.fixture(params=[1, 2], ids=["one", "two"])
def with_params(request):
    return request.param

@pytest.fixture
def doubled(request):
    return request.param * 2

@pytest.fixture(autouse=True)
def automatic(request):
    request.node.stash["automatic"] = True

@pytest.fixture(scope="class")
def of_class(request):
    request.cls.value = 5

@pytest.fixture(scope="package")
def of_package():
    return 7

@ddp2
def test_params_of_a_fixture(ddp, with_params):
    assert with_params in (1, 2)
    dist.barrier()

@ddp2
@pytest.mark.parametrize("doubled", [3], indirect=True)
def test_indirect(doubled, request):
    assert doubled == 6 and request.node.stash["automatic"]
    assert request.getfixturevalue("of_package") == 7

@ddp2
@pytest.mark.usefixtures("of_class")
class TestClass:
    def setup_method(self):
        self.mine = os.getpid()

    def test_one(self, of_package):
        assert (self.value, of_package, self.mine) == (5, 7, os.getpid())

@ddp2
class TestUnit(unittest.TestCase):
    def setUp(self):
        self.ones = torch.ones(1)

    def test_unit(self):
        dist.all_reduce(self.ones)
        self.assertEqual(self.ones.item(), 2)

    def test_unit_sub(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1)

@ddp4
def test_subtests(ddp, subtests):
    for number in range(4):
        with subtests.test("part", number=number):
            if number == 3:
                pytest.skip("not the last") if ddp.rank == 3 else None
            assert number != 1 or ddp.rank < 2

@ddp2
@pytest.mark.skipif("sys.platform == 'linux'", reason="condition")
def test_skipif(): ...

@ddp2
@pytest.mark.skipif(sys.platform != "linux", reason="condition")
def test_skipif_not(): ...

@pytest.fixture
def skipping():
    pytest.skip("in a fixture")

@ddp2
def test_skipped_by_a_fixture(skipping): ...

@ddp2
def test_importorskip():
    pytest.importorskip("no_module_of_this_name")

@ddp2
@pytest.mark.xfail(raises=ValueError, strict=True)
def test_xfail_raises():
    raise ValueError

@ddp2
@pytest.mark.xfail(raises=ValueError, strict=True)
def test_xfail_raises_another():
    raise KeyError

@ddp2
@pytest.mark.xfail("sys.platform == 'linux'", reason="condition")
def test_xfail_condition():
    assert 0

@ddp2
@pytest.mark.xfail(run=False, reason="not run")
def test_xfail_not_run():
    os._exit(3)

@ddp2
def test_xfail_in_the_body():
    pytest.xfail("from here on")

@ddp2
@pytest.mark.xfail
def test_xpass(): ...

@ddp2
def test_capfd(capfd):
    os.write(1, b"raw")
    assert capfd.readouterr().out == "raw"

@ddp2
@pytest.mark.filterwarnings("error")
def test_warnings_as_errors():
    with pytest.raises(UserWarning):
        warnings.warn("now an error")
    with pytest.deprecated_call():
        warnings.warn("old", DeprecationWarning)

@ddp2
def test_tools(tmp_path_factory, pytestconfig, record_property, record_testsuite_property, doctest_namespace):
    assert tmp_path_factory.mktemp("of rank").is_dir()
    assert pytestconfig.rootpath == Path.cwd()
    record_testsuite_property("key", "value")

@pytest.fixture
def anyio_backend():
    return "asyncio"

@ddp2
@pytest.mark.anyio
async def test_async(ddp):
    import anyio
    await anyio.sleep(0)
    dist.barrier()
    assert ddp.rank == dist.get_rank()

@ddp2
@pytest.mark.anyio
async def test_async_failing(ddp):
    assert ddp.rank != 1

@ddp2
def test_a_thread_raises():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()

@ddp2
def test_log_of_a_failure(ddp):
    with pytest.raises(TypeError):
        dist.all_reduce("no tensor")
    logging.getLogger("mine").warning("told by %d", ddp.rank)
    assert 0

@pytest.fixture
def raises_in_the_end(ddp):
    yield
    raise OSError(f"end of {ddp.rank}")

@ddp2
def test_both_phases_fail(raises_in_the_end, ddp):
    assert ddp.rank == 5

@ddp2
def test_environment():
    assert dist.get_world_size() == 2
    assert os.environ["MASTER_PORT"] == "1" and os.environ["MASTER_ADDR"] == "192.0.2.1"

@pytest.mark.ddp(init=False)
def test_environment_of_its_own():
    assert "TORCHELASTIC_RUN_ID" not in os.environ
    dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()

@pytest.mark.ddp(world_size=2, patience=1.0)
def test_compiles_on_one_rank_for_longer_than_the_patience(ddp):
    def slow(graph, inputs):
        time.sleep(1.6)
        return graph
    x = torch.ones(1)
    if ddp.rank == 1:
        x = torch.compile(lambda x: x * 2, backend=slow)(x)
    dist.all_reduce(x)
    assert x.item() == 3

def documented():
    """
    >>> 1 + 1
    2
    >>> import os; "RANK" in os.environ
    False
    """
'''


@pytest.fixture(scope="module")
def result(inner_of_module: Inner) -> Result:
    inner_of_module.file(KINDS)
    # As a launcher that ran here before may have left it.
    left = {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none"}
    return inner_of_module.run("--doctest-modules", env=left)


def test_what_passes(result: Result) -> None:
    assert result.passed == {
        "test_inner.documented",
        "test_params_of_a_fixture[one]",
        "test_params_of_a_fixture[two]",
        "test_indirect[3]",
        "TestClass::test_one",
        "TestUnit::test_unit",
        "TestUnit::test_unit_sub",  # as in pytest: what failed are its subtests
        "test_subtests",
        "test_skipif_not",
        "test_capfd",
        "test_warnings_as_errors",
        "test_tools",
        "test_async",
        "test_a_thread_raises",
        "test_environment",
        "test_environment_of_its_own",
        "test_compiles_on_one_rank_for_longer_than_the_patience",
    }, result.text


def test_what_does_not(result: Result) -> None:
    assert {name: end for name, end in result.ends.items() if name not in result.passed} == {
        "test_xfail_raises": "XFAIL",
        "test_xfail_raises_another": "FAILED",
        "test_xfail_condition": "XFAIL",
        "test_xfail_in_the_body": "XFAIL",
        "test_xpass": "XPASS",
        "test_async_failing": "FAILED",
        "test_log_of_a_failure": "FAILED",
        "test_both_phases_fail": "FAILED+ERROR",
    }
    assert "XFAIL at setup of test_inner.py::test_xfail_not_run - [NOTRUN] not run" in result.text
    assert sorted(result.skipped) == [
        "condition",
        "could not import 'no_module_of_this_name': No module named 'no_module_of_this_name'",
        "in a fixture",
    ]
    assert result.messages["test_xfail_raises_another"] == "rank 0: KeyError"
    assert result.messages["test_async_failing"].startswith("rank 1: assert 1 != 1")


def test_a_subtest_of_all_ranks_is_one(result: Result) -> None:
    failed = [line for line in result.text.splitlines() if line.startswith("SUBFAILED")]
    assert failed == [
        "SUBFAILED(number='1') test_inner.py::TestUnit::test_unit_sub - rank 0: AssertionError: 1 == 1",
        "SUBFAILED[part] (number='1') test_inner.py::test_subtests - rank 2: assert (1 != 1 or 2 < 2)",
        "SUBFAILED[part] (number='3') test_inner.py::test_subtests - the ranks disagree: rank 0 passed; "
        "rank 1 passed; rank 2 passed; rank 3 skipped (not the last)",
    ]
    assert "rank 0: passed\nrank 1: passed\nrank 2: failed\nrank 3: failed\n" in result.text
    assert result.text.count("rank 0: failed\nrank 1: failed\n") == 1


def test_both_phases_are_told(result: Result) -> None:
    assert result.text.count("E       OSError: end of 0\n") == 1
    assert "rank 1: OSError: end of 1" in result.text
    assert result.text.count("E       assert 0 == 5") == 1


def test_what_a_thread_raised_is_a_warning(result: Result) -> None:
    assert result.text.count("PytestUnhandledThreadExceptionWarning: Exception in thread") == 1


def test_the_log_is_the_tests_own(result: Result) -> None:
    told = result.told("test_log_of_a_failure")
    assert "told by 0" in told
    assert "told by 1" in told
    assert "c10d" not in told.partition("Captured log call")[2]


def test_nothing_is_printed_beside_the_report(result: Result) -> None:
    assert result.errors == ""


WIDE = """
@pytest.fixture(scope="session")
def bad_end(request):
    yield
    if dist.is_initialized() and dist.get_world_size() == 2:
        raise OSError(f"end of {os.environ['RANK']}")
    if dist.is_initialized() and os.environ["RANK"] == "1":
        os._exit(5)

@ddp2
def test_replaced(bad_end, ddp):
    assert 0

@ddp2
def test_pooled(bad_end, ddp): ...

@ddp2
def test_same_world(ddp): ...

@ddp4
def test_exits_in_the_end(bad_end, ddp): ...

def test_plain():
    assert 0

@ddp2
def test_not_run(bad_end, ddp): ...

@ddp4
def test_not_run_either(bad_end, ddp): ...
"""


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_what_wide_fixtures_raise_in_the_end_is_an_error(inner: Inner, options: tuple[str, ...]) -> None:
    inner.file(WIDE)
    result = inner.run("--maxfail=3", "--setup-show", *options)
    assert result.status == pytest.ExitCode.TESTS_FAILED if not options else pytest.ExitCode.INTERRUPTED
    assert "2 failed, 3 passed, 3 errors" in result.text.rstrip().splitlines()[-1]
    # xdist takes reports of the last test alone.
    two, four = ("test_plain",) * 2 if options else ("test_same_world", "test_exits_in_the_end")
    errors = [line for line in result.text.splitlines() if line.startswith("ERROR test_inner")]
    assert sorted(errors) == sorted(
        [
            "ERROR test_inner.py::test_replaced - rank 0: OSError: end of 0",
            f"ERROR test_inner.py::{two} - rank 0: OSError: end of 0",
            f"ERROR test_inner.py::{four} - rank 1: ended with 5 while its fixtures were finalised",
        ]
    )
    assert result.text.count("rank 1: OSError: end of 1") == 2
    if options:
        assert "which have run test_inner.py::test_same_world before" in result.text
    else:
        # The fixtures of one rank.
        assert result.text.count("SETUP    S bad_end") == 3
    assert "Traceback" not in result.text + result.errors
