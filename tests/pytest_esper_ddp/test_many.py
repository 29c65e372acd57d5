"""Hundreds of tests in a row: nothing grows with them, neither in pytest nor in a rank."""

from __future__ import annotations

from tests.pytest_esper_ddp.inner import Inner

MANY = """
def held(name):
    with open(name, "a") as file:
        print(len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), file=file)

@ddp2
def test_first(ddp):
    dist.barrier()

def test_held_before():
    held("pytest")

@ddp2
@pytest.mark.parametrize("number", range(300))
def test_one(ddp, number, tmp_path):
    x = torch.ones(2)
    dist.all_reduce(x)
    assert x[0] == 2
    if number in (1, 299):
        held(f"rank{ddp.rank}")
        if ddp.rank == 0:
            run = ddp.shared_path.parent
            with open("run", "a") as file:
                print(sum(1 for _ in run.rglob("*")), file=file)

def test_held_after():
    held("pytest")
"""


def test_nothing_grows_in_300_tests(inner: Inner) -> None:
    inner.file(MANY)
    result = inner.run("-p", "no:randomly")
    assert len(result.passed) == 303, result.text[-2000:]
    for name in ("pytest", "rank0", "rank1"):
        before, after = (inner.folder / name).read_text().splitlines()
        assert before == after, name
    first, last = (inner.folder / "run").read_text().split()
    assert first == last
