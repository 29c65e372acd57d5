"""What each fault does where it is addressed, and that it does nothing elsewhere: programs that end well."""

from __future__ import annotations

import pytest

from tests.pytest_esper_ddp.inner import Inner, Result

EFFECTS = """
from esper import lockstep
from pytest_esper_ddp.faults.process import InjectedFault

ddp3 = pytest.mark.ddp(world_size=3)

def everywhere(kind, **named):
    return lambda test: fault(kind, rank=0, **named)(fault(kind, rank=1, **named)(test))

@pytest.fixture
def slept(monkeypatch):
    '''Each sleep of this rank: for how long, and how many collectives it had entered before.'''
    STATE.update(entered=0, sleeps=[])
    monkeypatch.setattr(time, "sleep", lambda seconds: STATE["sleeps"].append((STATE["entered"], seconds)))
    return STATE["sleeps"]

STATE = {}

def program():
    '''Eight collectives of two operators under two tags.'''
    for name in "ab":
        with lockstep.tag(name):
            for _ in range(2):
                dist.all_reduce(torch.ones(8))
                STATE["entered"] += 1
                dist.broadcast(torch.ones(4), 0)
                STATE["entered"] += 1

# The place: rank, operator, tag and number.

@ddp3
@fault("sleep", rank=1, seconds=5)
def test_at_the_first(ddp, slept):
    program()
    assert slept == ([(0, 5)] if ddp.rank == 1 else [])

@ddp3
@fault("sleep", rank=2, nth=8, seconds=5)
def test_at_the_last(ddp, slept):
    program()
    assert slept == ([(7, 5)] if ddp.rank == 2 else [])

@ddp3
@fault("sleep", rank=1, op="broadcast", nth=3, seconds=5)
def test_at_an_operator(ddp, slept):
    program()
    assert slept == ([(5, 5)] if ddp.rank == 1 else [])

@ddp3
@fault("sleep", rank=1, tag="b", nth=2, seconds=5)
def test_at_a_tag(ddp, slept):
    program()
    assert slept == ([(5, 5)] if ddp.rank == 1 else [])

@ddp3
@fault("sleep", rank=1, op="all_reduce", tag="b", nth=2, seconds=5)
def test_at_both(ddp, slept):
    program()
    assert slept == ([(6, 5)] if ddp.rank == 1 else [])

@ddp3
@fault("sleep", rank=0, op="broadcast", seconds=1)
@fault("sleep", rank=1, op="all_reduce", nth=2, seconds=2)
@fault("sleep", rank=1, op="all_reduce", nth=2, seconds=3)
def test_several(ddp, slept):
    program()
    assert slept == {0: [(1, 1)], 1: [(2, 2), (2, 3)], 2: []}[ddp.rank]

@ddp3
@fault("slow", rank=1, op="all_reduce", nth=3, seconds=5)
def test_slow_from_there_on(ddp, slept):
    program()
    assert slept == ([(4, 5), (6, 5)] if ddp.rank == 1 else [])

@ddp3
@fault("delay", rank=1, nth=2, seconds=5)
def test_the_result_is_late(ddp, monkeypatch):
    late = []
    monkeypatch.setattr(time, "sleep", lambda seconds: late.append((seconds, x.tolist())))
    for number in range(3):
        x = torch.tensor([float(number)])
        dist.all_reduce(x)
    assert late == ([(5, [3.0])] if ddp.rank == 1 else [])

@ddp3
@fault("delay", rank=1, seconds=5)
def test_the_result_is_late_where_it_is_waited_for(ddp, monkeypatch):
    late = []
    monkeypatch.setattr(time, "sleep", lambda seconds: late.append((seconds, order[:])))
    order = []
    work = dist.all_reduce(torch.ones(1), async_op=True)
    order.append("issued")
    work.wait()
    work.wait()
    assert late == ([(5, ["issued"])] if ddp.rank == 1 else [])

# Exceptions.

def failures(error):
    '''Which of four all_reduces fails here, and how; it is then tried again.'''
    found = []
    for number in range(4):
        try:
            dist.all_reduce(torch.ones(1))
        except error as caught:
            found.append((number, str(caught)))
            dist.all_reduce(torch.ones(1))
    return found

@ddp3
@fault("raise", rank=1, nth=3, message="no luck")
def test_raise(ddp):
    assert failures(InjectedFault) == ([(2, "no luck")] if ddp.rank == 1 else [])

@ddp3
@fault("out_of_memory", rank=1, nth=3)
def test_out_of_memory(ddp):
    found = failures(RuntimeError)
    assert [number for number, _ in found] == ([2] if ddp.rank == 1 else [])
    assert all("can't allocate memory: you tried to allocate" in text for _, text in found)

@ddp3
@fault("out_of_memory", rank=1, nth=3, allocator="python")
def test_out_of_memory_of_python(ddp):
    assert failures(MemoryError) == ([(2, "")] if ddp.rank == 1 else [])

# Short ones that are survived.

@ddp2
@fault("busy", rank=1, nth=2, seconds=0.1)
def test_busy(ddp):
    program_of(ddp)

@ddp2
@fault("stop", rank=1, nth=2, for_seconds=0.1)
def test_stop(ddp):
    program_of(ddp)

def program_of(ddp):
    for _ in range(4):
        x = torch.ones(8)
        dist.all_reduce(x)
        assert x.tolist() == [ddp.world_size] * 8

# Silent changes of one rank.

def sums(times=4, **given):
    found = []
    for _ in range(times):
        x = torch.ones(2)
        work = dist.all_reduce(x, **given)
        if work is not None:
            work.wait()
        found.append(x.tolist())
    return found

FAIR = [3.0, 3.0]

@ddp3
@fault("corrupt", rank=1, nth=3)
def test_corrupt(ddp):
    assert sums() == [FAIR, FAIR, [2.0, 3.0] if ddp.rank == 1 else FAIR, FAIR]

@ddp3
@fault("corrupt", rank=1, nth=3)
def test_corrupt_where_it_is_waited_for(ddp):
    assert sums(async_op=True) == [FAIR, FAIR, [2.0, 3.0] if ddp.rank == 1 else FAIR, FAIR]

@ddp3
@fault("corrupt", rank=1)
def test_corrupt_where_it_is_awaited(ddp):
    x = torch.ones(2)
    work = dist.all_reduce(x, async_op=True)
    with lockstep.awaiting(work):
        while not work.is_completed():
            pass
    assert x.tolist() == ([2.0, 3.0] if ddp.rank == 1 else FAIR)

@ddp3
@fault("corrupt", rank=1)
def test_corrupt_what_is_waited_for_long_after(ddp):
    x = torch.ones(2)
    work = dist.all_reduce(x, async_op=True)
    for _ in range(100):
        dist.all_reduce(torch.ones(1), async_op=True)
    dist.barrier()
    work.wait()
    assert x.tolist() == ([2.0, 3.0] if ddp.rank == 1 else FAIR)

@ddp3
@fault("corrupt", rank=1, nth=3, where="input")
def test_corrupt_input(ddp):
    assert sums() == [FAIR, FAIR, [3.5, 3.0], FAIR]

@ddp3
@fault("corrupt", rank=1, op="all_gather")
def test_corrupt_a_gathered_list(ddp):
    parts = [torch.zeros(2, dtype=torch.int64) for _ in range(3)]
    dist.all_gather(parts, torch.full((2,), ddp.rank + 4))
    assert [part.tolist() for part in parts] == [[5 if ddp.rank == 1 else 4, 4], [5, 5], [6, 6]]

@ddp3
@fault("corrupt", rank=1, op="all_reduce")
def test_corrupt_a_gradient_in_the_reducer(ddp):
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
    model(torch.ones(1, 1)).sum().backward()
    assert model.module.weight.grad.item() == (1.5 if ddp.rank == 1 else 1.0)

# The same on both ranks: the program goes on, with what it asked for by mistake.

@ddp2
@everywhere("skip", nth=2)
def test_skip(ddp):
    assert sums() == [[2.0, 2.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]

@ddp2
@everywhere("skip", op="all_reduce")
def test_skip_in_the_reducer(ddp):
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
    model(torch.full((1, 1), 1.0 + 2 * ddp.rank)).sum().backward()
    # Not summed, but divided by the size of the world before.
    assert model.module.weight.grad.item() == 0.5 + ddp.rank

@ddp2
@everywhere("duplicate", nth=2)
def test_duplicate(ddp):
    assert sums() == [[2.0, 2.0], [4.0, 4.0], [2.0, 2.0], [2.0, 2.0]]

@ddp2
@everywhere("reduce_op", nth=2)
def test_reduce_op(ddp):
    assert sums() == [[2.0, 2.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]

@ddp2
@everywhere("reduce_op")
def test_reduce_op_that_was_none_of_sums(ddp):
    assert sums(1, op=dist.ReduceOp.MAX) == [[2.0, 2.0]]

@ddp2
@everywhere("shape", nth=2)
def test_shape(ddp):
    assert sums() == [[2.0, 2.0], [2.0, 1.0], [2.0, 2.0], [2.0, 2.0]]

@ddp2
@everywhere("shape")
def test_shape_of_a_single_element(ddp):
    x = torch.ones(1)
    dist.all_reduce(x)
    assert x.tolist() == [1.0]  # another tensor was reduced

@ddp2
@everywhere("shape", op="all_gather")
@everywhere("shape", op="reduce_scatter")
@everywhere("shape", op="gather")
@everywhere("shape", op="scatter")
def test_shapes_that_depend_on_each_other(ddp):
    mine = torch.full((3,), 1.0 + ddp.rank)
    parts = [torch.zeros(3), torch.zeros(3)]
    whole = torch.zeros(6)
    dist.all_gather(parts, mine)
    assert [part.tolist() for part in parts] == [[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]
    dist.reduce_scatter(mine, [torch.ones(3), torch.ones(3)])
    assert mine.tolist() == [2.0, 2.0, 1.0 + ddp.rank]
    dist.gather(torch.ones(3), parts if ddp.rank == 0 else None)
    dist.scatter(mine, parts if ddp.rank == 0 else None)
    assert mine.tolist() == [1.0, 1.0, 1.0 + ddp.rank]
    dist.all_gather_into_tensor(whole, mine)

@ddp2
@everywhere("shape")
def test_shape_of_one_tensor_for_all(ddp):
    whole = torch.zeros(6)
    dist.all_gather_into_tensor(whole, torch.full((3,), 1.0 + ddp.rank))
    assert whole.tolist() == [1.0, 1.0, 2.0, 2.0, 0.0, 0.0]

@ddp2
@everywhere("shape")
@everywhere("reduce_op")
def test_two_changes_of_one_call(ddp):
    x = torch.full((2,), 1.0 + ddp.rank)
    dist.all_reduce(x)
    assert x.tolist() == [2.0, 1.0 + ddp.rank]

@ddp2
@everywhere("dtype", nth=2)
def test_dtype(ddp):
    assert sums() == [[2.0, 2.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]  # a copy was reduced

@ddp2
@everywhere("root", nth=2)
def test_root(ddp):
    seen = []
    for _ in range(3):
        x = torch.tensor([float(ddp.rank)])
        dist.broadcast(x, 0)
        seen.append(x.item())
    assert seen == [0.0, 1.0, 0.0]

@ddp2
@everywhere("root", op="gather")
@everywhere("root", op="scatter")
def test_root_that_has_lists(ddp):
    parts = [torch.zeros(1), torch.zeros(1)]
    dist.gather(torch.ones(1), parts if ddp.rank == 0 else None)
    dist.scatter(torch.ones(1), parts if ddp.rank == 0 else None)
    assert [part.item() for part in parts] == [0.0, 0.0]

@ddp2
@everywhere("swap", op="all_reduce", nth=2)
def test_swap(ddp):
    seen = []
    xs = [torch.full((1,), float(number)) for number in range(1, 5)]
    for x in xs:
        dist.all_reduce(x)
        seen.append([x.item() for x in xs])
    assert seen == [[2, 2, 3, 4], [2, 2, 3, 4], [2, 4, 6, 4], [2, 4, 6, 8]]

@ddp2
@everywhere("swap")
def test_swap_of_what_is_not_waited_for(ddp):
    x, y = torch.ones(1), torch.full((1,), 2.0)
    works = [dist.all_reduce(x, async_op=True), dist.all_reduce(y, async_op=True)]
    for work in works:
        work.wait()
    dist.barrier()
    assert y.item() == 4.0

# Any function.

class Model:
    calls = []

    def step(self, by, *, scale=1):
        self.calls.append((by, scale))
        return by * scale

    @staticmethod
    def loss(value):
        return value + 1

    @classmethod
    def name(cls, suffix="x"):
        return cls.__name__ + suffix

@pytest.fixture
def model():
    Model.calls.clear()
    return Model()

STEP = "test_inner:Model.step"

def steps(model):
    return [model.step(number, scale=2) for number in range(3)]

@ddp3
@fault("skip_call", rank=1, target=STEP, nth=2)
def test_skip_call(ddp, model):
    assert steps(model) == ([0, None, 4] if ddp.rank == 1 else [0, 2, 4])
    assert len(model.calls) == (2 if ddp.rank == 1 else 3)

@ddp3
@fault("skip_call", rank=1, target=STEP, nth=2, value=7)
def test_skip_call_with_a_value(ddp, model):
    assert steps(model) == ([0, 7, 4] if ddp.rank == 1 else [0, 2, 4])

@ddp3
@fault("repeat_call", rank=1, target=STEP, nth=2)
def test_repeat_call(ddp, model):
    assert steps(model) == [0, 2, 4]
    assert [by for by, _ in model.calls] == ([0, 1, 1, 2] if ddp.rank == 1 else [0, 1, 2])

@ddp3
@fault("raise_in", rank=1, target=STEP, nth=2, message="no luck")
def test_raise_in(ddp, model):
    if ddp.rank == 1:
        with pytest.raises(InjectedFault, match="^no luck$"):
            steps(model)
        assert model.calls == [(0, 2)]
    assert steps(model) == [0, 2, 4]

@ddp3
@fault("delay_in", rank=1, target=STEP, nth=2, seconds=5)
def test_delay_in(ddp, model, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append((seconds, len(model.calls))))
    assert steps(model) == [0, 2, 4]
    assert slept == ([(5, 1)] if ddp.rank == 1 else [])

@ddp3
@fault("change_argument", rank=1, target=STEP, nth=2, name="scale", value=-1)
def test_change_argument_by_name(ddp, model):
    assert steps(model) == ([0, -1, 4] if ddp.rank == 1 else [0, 2, 4])

@ddp3
@fault("change_argument", rank=1, target=STEP, nth=2, index=0, value=5)
def test_change_argument_by_place(ddp, model):
    assert steps(model) == ([0, 10, 4] if ddp.rank == 1 else [0, 2, 4])

@ddp3
@fault("change_argument", rank=1, target=STEP, name="by", value=5)
def test_change_argument_that_is_given_by_place(ddp, model):
    assert steps(model) == ([10, 2, 4] if ddp.rank == 1 else [0, 2, 4])

@ddp3
@fault("change_argument", rank=1, target=STEP, index=0, value=5)
def test_change_argument_that_is_given_by_name(ddp, model):
    assert model.step(by=1) == (5 if ddp.rank == 1 else 1)

@ddp3
@fault("change_argument", rank=1, target="test_inner:Model.loss", index=0, value=5)
def test_change_argument_of_a_static_method(ddp, model):
    assert model.loss(1) == (6 if ddp.rank == 1 else 2)

@ddp3
@fault("change_argument", rank=1, target="test_inner:Model.name", index=0, value="y")
def test_change_argument_that_is_left_out(ddp):
    assert Model.name() == ("Modely" if ddp.rank == 1 else "Modelx")

@ddp3
@fault("change_argument", rank=1, target="torch:ones", nth=2, index=0, value=3)
def test_change_argument_of_a_function_in_c(ddp):
    assert [torch.ones(2).numel() for _ in range(3)] == ([2, 3, 2] if ddp.rank == 1 else [2, 2, 2])

@ddp3
@fault("change_result", rank=1, target=STEP, nth=2, value=[1, {"a": None}])
def test_change_result(ddp, model):
    assert steps(model) == ([0, [1, {"a": None}], 4] if ddp.rank == 1 else [0, 2, 4])
    assert len(model.calls) == 3

@pytest.mark.ddp(lockstep="off")
@fault("change_result", rank=1, target=STEP, value=8)
def test_without_lockstep(ddp, model):
    assert model.step(1) == (8 if ddp.rank == 1 else 1)

@ddp3
def test_nothing_is_left_of_them(ddp, model):
    assert steps(model) == [0, 2, 4]
    assert sums() == [FAIR] * 4
"""


@pytest.fixture(scope="module")
def result(inner_of_module: Inner) -> Result:
    inner_of_module.file(EFFECTS)
    return inner_of_module.run()


def test_each_does_its_own_there_and_nothing_elsewhere(result: Result) -> None:
    others = {name: (end, result.messages[name]) for name, end in result.ends.items() if end != "PASSED"}
    assert not others, result.text
    assert len(result.ends) == EFFECTS.count("\ndef test_")


def test_each_has_fired_and_all_ended_well(result: Result) -> None:
    rows = [row for row in result.table if row[0] != "scenario"]
    assert len(rows) == len(result.ends) - 1
    assert {tuple(row[2:]) for row in rows} == {("healthy", "-", "-")}
