"""What lockstep says of each fault: kind, guilty rank, collective, difference; and what can't be injected."""

from __future__ import annotations

import pytest

from tests.pytest_esper_ddp.inner import Inner, Result

# Nothing is expected, so each fails, and tells what came.
DIAGNOSES = """
from esper import lockstep

ddp3 = pytest.mark.ddp(world_size=3, patience=0.4)

def program():
    '''#0 and #1 to #6 and #7.'''
    for name in "ab":
        with lockstep.tag(name):
            for _ in range(2):
                dist.all_reduce(torch.ones(8))
                dist.broadcast(torch.ones(4), 0)

def of_one_operator(times=3):
    for number in range(times):
        with lockstep.tag(f"step {number}"):
            dist.all_reduce(torch.ones(1))

def train(steps=4):
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()

@ddp3
@fault("skip", rank=2, op="all_reduce", tag="b", nth=2)
def test_skip(ddp):
    program()

@ddp3
@fault("duplicate", rank=2, op="all_reduce", tag="b", nth=2)
def test_duplicate(ddp):
    program()

@ddp2
@fault("duplicate", rank=1, nth=8)
def test_duplicate_of_the_last(ddp):
    program()

@ddp3
@fault("swap", rank=2, nth=7)
def test_swap(ddp):
    program()

@ddp3
@fault("swap", rank=2, tag="step 1")
def test_swap_of_tags(ddp):
    of_one_operator()

@ddp3
@fault("shape", rank=2, op="all_reduce", tag="b", nth=2)
def test_shape(ddp):
    program()

@ddp3
@fault("dtype", rank=2, op="broadcast", nth=3)
def test_dtype(ddp):
    program()

@ddp3
@fault("reduce_op", rank=2, nth=4)
def test_reduce_op(ddp):
    program()

@ddp3
@fault("root", rank=2, nth=3)
def test_root(ddp):
    program()

@ddp3
@fault("root", rank=0, op="gather")
def test_root_of_gather(ddp):
    dist.gather(torch.ones(2), [torch.zeros(2) for _ in range(3)] if ddp.rank == 0 else None)

@ddp3
@fault("root", rank=1, op="scatter")
def test_root_of_scatter(ddp):
    dist.scatter(torch.ones(2), [torch.zeros(2) for _ in range(3)] if ddp.rank == 0 else None)

@ddp3
@fault("reduce_op", rank=1)
def test_reduce_op_in_the_reducer(ddp):
    train()

@ddp3
@fault("shape", rank=1, op="all_reduce")
def test_shape_in_the_reducer(ddp):
    train()

@ddp3
@fault("corrupt", rank=1, op="all_reduce", nth=2)
def test_corrupt_in_the_reducer(ddp):
    train(70)  # not each forward's parameters are compared

@ddp3
@fault("corrupt", rank=1, nth=2)
def test_corrupt_what_is_watched(ddp):
    x = torch.ones(2)
    lockstep.watch("state", x)
    for _ in range(3):
        dist.all_reduce(x)
        dist.barrier()

@ddp3
@fault("delay", rank=1, nth=7, seconds=30)
def test_delay(ddp):
    program()

@ddp3
@fault("slow", rank=1, op="all_reduce", nth=4, seconds=30)
def test_slow(ddp):
    program()

@ddp3
@fault("sleep", rank=1, op="all_reduce", nth=4, seconds=30)
def test_sleep(ddp):
    program()

@ddp3
@fault("busy", rank=1, op="all_reduce", nth=4, seconds=30)
def test_busy(ddp):
    program()

@ddp3
@fault("out_of_memory", rank=1, op="all_reduce", nth=4)
def test_out_of_memory(ddp):
    # The first error of C++ reads tables from the disk, which may take longer than the patience. Here all
    # ranks wait for them.
    with pytest.raises(RuntimeError):
        torch.empty(1 << 60)
    program()

@ddp3
@fault("skip_call", rank=1, nth=2, target="test_inner:of_one_operator")
def test_skip_call(ddp):
    of_one_operator()
    of_one_operator(1)
    program()

@ddp3
@fault("repeat_call", rank=1, nth=2, target="test_inner:of_one_operator")
def test_repeat_call(ddp):
    of_one_operator()
    of_one_operator(1)
    program()

@ddp3
@fault("raise_in", rank=1, nth=2, target="test_inner:of_one_operator")
def test_raise_in(ddp):
    of_one_operator()
    of_one_operator(1)

@ddp3
@fault("delay_in", rank=1, nth=2, seconds=30, target="test_inner:of_one_operator")
def test_delay_in(ddp):
    of_one_operator()
    of_one_operator(1)

@ddp3
@fault("change_argument", rank=1, target="test_inner:of_one_operator", name="times", value=1)
def test_change_argument(ddp):
    of_one_operator()
    program()

@ddp3
@fault("change_result", rank=1, nth=2, target="torch:ones", value=None)
def test_change_result(ddp):
    of_one_operator()

# Where a fault has nothing to act on.

@ddp3
@fault("root", rank=1)
def test_nothing_has_a_root(ddp):
    of_one_operator()

@ddp3
@fault("swap", rank=1, nth=3)
def test_nothing_follows(ddp):
    of_one_operator(3)

@ddp3
@fault("skip_call", rank=1, nth=3, target="test_inner:of_one_operator")
def test_not_called_so_often(ddp):
    of_one_operator()

# What can't be injected.

@ddp3
@fault("skip_call", rank=1, target="no.such:thing")
def test_no_such_module(ddp):
    Path('ran').touch()

@ddp3
@fault("skip_call", rank=1, target="test_inner:Nothing.here")
def test_no_such_class(ddp):
    Path('ran').touch()

@ddp3
@fault("skip_call", rank=1, target="test_inner:Thing.nothing.here")
def test_no_such_method(ddp):
    Path('ran').touch()

@ddp3
@fault("uneven_loader", rank=1, target="test_inner:HELD")
def test_no_function(ddp):
    Path('ran').touch()

@ddp3
@fault("change_argument", rank=1, target="test_inner:of_one_operator", name="time", value=1)
def test_no_such_argument(ddp):
    Path('ran').touch()

@ddp3
@fault("change_argument", rank=1, target="test_inner:of_one_operator", index=1, value=1)
def test_no_such_place(ddp):
    Path('ran').touch()

@ddp3
@fault("skip_call", rank=1, target="broken:thing")
def test_a_module_that_breaks(ddp):
    Path('ran').touch()

@ddp3
def test_the_next_one(ddp):
    program()

HELD = 3

class Thing: ...
"""
# By test: what came, and lines of the message. All that is said of #6 holds for the fourth all_reduce alone.
CAME = {
    "test_skip": (
        "mismatch of rank 2",
        "rank 2 disagrees in all_reduce #6 (float32 [8], SUM, tag b)",
        "rank 2 is in broadcast #6 (float32 [4], root 0, tag b)",
    ),
    "test_duplicate": (
        "mismatch of rank 2",
        "rank 2 disagrees in broadcast #7 (float32 [4], root 0, tag b)",
        "rank 2 is in all_reduce #7 (float32 [8], SUM, tag b)",
        "last in common: all_reduce #6",
    ),
    "test_duplicate_of_the_last": (
        "missing of rank 0",
        "rank 0 never entered broadcast #8 (float32 [4], root 0, tag b)",
        "rank 1 waits in broadcast #8",
    ),
    "test_swap": (
        "mismatch of rank 2",
        "rank 2 disagrees in all_reduce #6 (float32 [8], SUM, tag b)",
        "rank 2 is in broadcast #6 (float32 [4], root 0, tag b)",
    ),
    "test_swap_of_tags": (
        "order of rank 2",
        "rank 2 disagrees in all_reduce #1 (float32 [1], SUM, tag step 1): the order is swapped",
        "rank 2 is in all_reduce #1 (float32 [1], SUM, tag step 2)",
    ),
    "test_shape": (
        "mismatch of rank 2",
        "rank 2 disagrees in all_reduce #6 (float32 [8], SUM, tag b)",
        "rank 2 is in all_reduce #6 (float32 [7], SUM, tag b)",
    ),
    "test_dtype": (
        "mismatch of rank 2",
        "rank 2 disagrees in broadcast #5 (float32 [4], root 0, tag b)",
        "rank 2 is in broadcast #5 (float64 [4], root 0, tag b)",
    ),
    "test_reduce_op": (
        "mismatch of rank 2",
        "rank 2 disagrees in all_reduce #6 (float32 [8], SUM, tag b)",
        "rank 2 is in all_reduce #6 (float32 [8], MAX, tag b)",
    ),
    "test_root": (
        "mismatch of rank 2",
        "rank 2 disagrees in broadcast #5 (float32 [4], root 0, tag b)",
        "rank 2 is in broadcast #5 (float32 [4], root 1, tag b)",
    ),
    "test_root_of_gather": ("mismatch of rank 0", "rank 0 is in gather #0 (float32 [2], root 1)"),
    "test_root_of_scatter": ("mismatch of rank 1", "rank 1 is in scatter #0 (float32 [2], root 2)"),
    "test_reduce_op_in_the_reducer": (
        "mismatch of rank 1",
        "rank 1 disagrees in all_reduce #3 (float32 [20], SUM)",
        "rank 1 is in all_reduce #3 (float32 [20], MAX)",
    ),
    "test_shape_in_the_reducer": (
        "mismatch of rank 1",
        "rank 1 disagrees in all_reduce #3 (float32 [20], SUM)",
        "rank 1 is in all_reduce #3 (float32 [19], SUM)",
    ),
    "test_corrupt_in_the_reducer": (
        "drift of rank 1",
        "bias of DistributedDataParallel #0 differs between ranks 0, 2",
    ),
    "test_corrupt_what_is_watched": (
        "drift of rank 1",
        "state differs: [9.0, 9.0] on ranks 0, 2; [13.0, 9.0] on rank 1",
    ),
    "test_delay": (
        "frozen of rank 1",
        "rank 1 is late for broadcast #7 (float32 [4], root 0, tag b): frozen",
    ),
    "test_slow": ("frozen of rank 1", "rank 1 is late for all_reduce #6 (float32 [8], tag b): frozen"),
    "test_sleep": (
        "frozen of rank 1",
        "rank 1 is late for all_reduce #6 (float32 [8], tag b): frozen",
        "rank 1 is sleeping                test_inner.py:18  program",
    ),
    "test_busy": (
        "stalled of rank 1",
        "rank 1 is late for all_reduce #6 (float32 [8], tag b): stalled",
        "rank 1 is running                 test_inner.py:18  program",
    ),
    "test_out_of_memory": (
        "raised of rank 1",
        "rank 1 raised before all_reduce #6 (float32 [8], tag b)",
        "can't allocate memory: you tried to allocate 1152921504606846976 bytes",
    ),
    "test_skip_call": (
        "mismatch of rank 1",
        "rank 1 disagrees in all_reduce #3 (float32 [1], SUM, tag step 0)",
        "rank 1 is in all_reduce #3 (float32 [8], SUM, tag a)",
    ),
    "test_repeat_call": (
        "mismatch of rank 1",
        "rank 1 disagrees in all_reduce #4 (float32 [8], SUM, tag a)",
        "rank 1 is in all_reduce #4 (float32 [1], SUM, tag step 0)",
    ),
    "test_raise_in": (
        "raised of rank 1",
        "rank 1 raised before all_reduce #3 (float32 [1], tag step 0)",
        "InjectedFault: injected",
    ),
    "test_delay_in": (
        "frozen of rank 1",
        "rank 1 is late for all_reduce #3 (float32 [1], tag step 0): frozen",
    ),
    "test_change_argument": (
        "mismatch of rank 1",
        "rank 1 disagrees in all_reduce #1 (float32 [1], SUM, tag step 1)",
        "rank 1 is in all_reduce #1 (float32 [8], SUM, tag a)",
    ),
    "test_change_result": (
        "raised of rank 1",
        "rank 1 raised before all_reduce #1 (float32 [1], tag step 1)",
        "TypeError: Invalid function argument. Expected parameter `tensor` of type torch.Tensor",
    ),
}
UNFIRED = {
    "test_nothing_has_a_root": "root on rank 1",
    "test_nothing_follows": "swap on rank 1 (nth 3)",
    "test_not_called_so_often": "skip_call on rank 1 (nth 3, of_one_operator)",
}
REFUSED = {
    "test_no_such_module": "target 'no.such:thing': no module 'no.such' (No module named 'no')",
    "test_no_such_class": "target 'test_inner:Nothing.here': 'test_inner' has no 'Nothing'",
    "test_no_such_method": "target 'test_inner:Thing.nothing.here': 'Thing' has no 'nothing'",
    "test_no_function": "target 'test_inner:HELD': 'HELD' can't be called",
    "test_no_such_argument": (
        "target 'test_inner:of_one_operator': 'of_one_operator' has no argument 'time'; it has: times=3"
    ),
    "test_no_such_place": (
        "target 'test_inner:of_one_operator': 'of_one_operator' has no argument at index 1; it has: times=3"
    ),
    "test_a_module_that_breaks": (
        "target 'broken:thing': module 'broken' can't be imported (OSError: no disk)"
    ),
}


@pytest.fixture(scope="module")
def result(inner_of_module: Inner) -> Result:
    inner_of_module.file("raise OSError('no disk')\n", "broken.py", head="")
    inner_of_module.file(DIAGNOSES)
    return inner_of_module.run()


def test_each_has_a_line_here(result: Result) -> None:
    assert result.passed == {"test_the_next_one"}, result.text
    assert set(result.ends) == {*CAME, *UNFIRED, *REFUSED, "test_the_next_one"}


@pytest.mark.parametrize("name", CAME)
def test_it_is_found_out(result: Result, name: str) -> None:
    outcome, *lines = CAME[name]
    assert result.messages[name] == (
        f"expected to end healthy, since nothing says ddp_expect; got {outcome}"
    ), result.told(name)
    told = result.told(name)
    assert [line for line in lines if line not in told] == [], told


@pytest.mark.parametrize("name", UNFIRED)
def test_one_that_meets_nothing_is_inconclusive(result: Result, name: str) -> None:
    assert result.messages[name] == f"inconclusive: the fault never fired: {UNFIRED[name]}"


@pytest.mark.parametrize("name", REFUSED)
def test_one_that_cannot_be_injected_is_an_error_of_one_sentence(result: Result, name: str) -> None:
    assert result.ends[name] == "ERROR"
    said = result.messages[name]
    assert said.partition(": ")[2] == REFUSED[name]
    assert result.told(name) == said


@pytest.mark.usefixtures("result")
def test_no_rank_runs_what_one_cannot_begin(inner_of_module: Inner) -> None:
    assert not (inner_of_module.folder / "ran").exists()
