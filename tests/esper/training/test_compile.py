"""Compiled steps: settings of one trainer are nobody else's, and a lifecycle costs few graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics
from torch.nn.parallel import DistributedDataParallel

from esper.control import Advance, Decision, Germinate
from esper.errors import ConfigError
from esper.lifecycle import Blend, Stage
from esper.training import (
    CompileConfig,
    CompileState,
    History,
    StepCompiler,
    TrainConfig,
    Trainer,
    build_model,
)
from tests.esper.ranks import run_ranks
from tests.esper.training.lives import TINY, Script, tiny_task, tiny_trainer, whole_life

SLOTS = ("r0c0", "r0c1", "r0c2")
EAGER = {"enabled": True, "backend": "eager"}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Counters from 0; graphs of other tests forgotten."""
    torch._dynamo.reset()
    counters.clear()
    clear_compilation_metrics()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def calls() -> list[int]:
    """The calls of a backend that cannot compile anything."""
    calls: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(len(inputs))
        raise RuntimeError("no compiler for this machine")

    torch._dynamo.register_backend(name="failing", compiler_fn=backend)
    return calls


@pytest.fixture
def failing(calls: list[int]) -> list[int]:
    """The calls of the failing backend in this test."""
    calls.clear()
    return calls


def compiled(epochs: int = 2, script: Script | None = None, **changes: Any) -> Trainer:
    return tiny_trainer(script or Script(), epochs=epochs, **{"compile": EAGER, **changes})


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("blends", [(None,), tuple(Blend)], ids=["alike", "each its own"])
def test_a_lifecycle_of_three_slots_costs_one_graph_a_configuration(blends: tuple[Blend | None, ...]) -> None:
    plan = Script(whole_life(SLOTS, blends=blends))
    trainer, plain = compiled(12, plan), tiny_trainer(plan, epochs=12)
    seen, costs = set(), []
    trainer._announced = ((0, 3),)
    # Shared among the configurations, two recompiles would be used up soon.
    with torch._dynamo.config.patch(recompile_limit=2):
        for epoch in range(1, 13):
            configuration, before = trainer.model.configuration(), graphs()
            trainer.run_epoch(epoch)
            costs.append(graphs() - before)
            assert costs[-1] == (configuration not in seen)
            seen.add(configuration)
    assert [record.stage for record in trainer.model.records()] == [Stage.FOSSILIZED] * 3
    assert sum(costs) == len(seen) == trainer.compiler.callables > 4
    metrics = get_compilation_metrics()
    assert len(metrics) == len(seen)
    assert [(each.recompile_reason, each.fail_type) for each in metrics] == [(None, None)] * len(seen)
    assert not counters["graph_break"]
    assert (trainer.compiler.state, trainer.compiler.fallbacks) == (CompileState.COMPILED, 0)

    trainer.evaluate()
    with torch.no_grad():
        trainer.model(torch.zeros(2, 1, 4, 4), alpha_overrides={"r0c0": 0.5})
    assert len(get_compilation_metrics()) == graphs() == len(seen)

    assert plain.run().final == trainer.history.final
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_alpha_ramps_in_both_directions_cost_nothing() -> None:
    trainer = compiled(2)
    slot = trainer.model.slots["r0c1"]
    slot.commit("norm", slot.prepare("norm", torch.Generator().manual_seed(0)))
    slot.advance()
    slot.advance()
    trainer.config = trainer.config.from_dict({**trainer.config.to_dict(), "epochs": 20})
    trainer._announced = ((0, 3),)
    costs = []
    for epoch in range(1, 8):
        if epoch == 4:
            slot.retarget(0.5, 3)
        before = graphs()
        trainer.run_epoch(epoch)
        costs.append(graphs() - before)
    # A new one where the seed is frozen for the way down; after it the first one again.
    assert costs == [1, 0, 0, 1, 0, 0, 0]


# torch's own compiler warns about torch's own code, and takes a minute.
@pytest.mark.stress
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_trains_the_same_model_as_without() -> None:
    plan = Script({epoch: decision for epoch, decision in whole_life().items() if epoch < 4})
    settings: dict[str, Any] = {
        "optimizer": {"name": "sgd", "lr": 0.05}
    }  # Adam makes a step of the smallest difference
    plain = tiny_trainer(plan, epochs=3, **settings)
    other = compiled(3, plan, compile={"enabled": True}, **settings)
    other.run()
    plain.run()
    assert other.compiler.reason is None
    assert graphs() == 2
    for one, two in zip(other.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_failure_falls_back_for_this_trainer_only_is_said_once_and_counted(
    failing: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "esper")
    broken = compiled(3, compile={"enabled": True, "backend": "failing"})
    broken.run()
    assert len(failing) == 1
    assert (broken.compiler.state, broken.compiler.fallbacks) == (CompileState.FELL_BACK, 1)
    assert broken.compiler.reason is not None
    assert "no compiler for this machine" in broken.compiler.reason
    assert caplog.text.count("training goes on without compilation") == 1
    plain = tiny_trainer(Script(), epochs=3)
    plain.run()
    assert broken.model.fingerprint() == plain.model.fingerprint()
    assert plain.compiler.fallbacks == 0


@pytest.mark.parametrize("first", ["broken", "well"])
def test_trainers_do_not_influence_each_other_in_any_order(failing: list[int], first: str) -> None:
    makers: dict[str, Callable[[], Trainer]] = {
        "broken": lambda: compiled(2, compile={"enabled": True, "backend": "failing"}),
        "well": lambda: compiled(2),
        "eager": lambda: tiny_trainer(Script(), epochs=2),
        "dynamic": lambda: compiled(2, compile={**EAGER, "dynamic": True}),
    }
    order = [first, *(name for name in makers if name != first)]
    trainers = {name: makers[name]() for name in order}
    for epoch in (1, 2):  # in turn, not one after the other
        for name in order:
            trainers[name]._announced = ((0, 3),)
            trainers[name].run_epoch(epoch)
    states = {name: trainers[name].compiler.state for name in makers}
    assert states == {
        "broken": CompileState.FELL_BACK,
        "well": CompileState.COMPILED,
        "eager": CompileState.EAGER,
        "dynamic": CompileState.COMPILED,
    }
    assert {name: trainers[name].compiler.fallbacks for name in makers} == {
        "broken": 1,
        "well": 0,
        "eager": 0,
        "dynamic": 0,
    }
    assert len(failing) == 1
    assert {name: trainers[name].compiler.callables for name in ("well", "dynamic")} == {
        "well": 1,
        "dynamic": 1,
    }


def test_it_can_be_switched_off_and_is_on_again_afterwards() -> None:
    trainer, other = compiled(4), compiled(4)
    trainer._announced = other._announced = ((0, 3),)
    with trainer.compiler.disabled():
        trainer.run_epoch(1)
        assert graphs() == 0
        other.run_epoch(1)
        assert graphs() == 1  # of the other one
    trainer.run_epoch(2)
    assert graphs() == 2
    with pytest.raises(ZeroDivisionError), trainer.compiler.disabled():
        raise ZeroDivisionError
    assert trainer.compiler.state is CompileState.COMPILED


def test_a_module_wrapped_before_runs_eagerly_while_it_is_off() -> None:
    trainer = compiled()
    module, x = trainer.wrap(), torch.zeros(3, 1, 4, 4)
    with trainer.compiler.disabled():
        module(x)
    assert graphs() == 0
    module(x)
    assert graphs() == 1


def test_ranks_train_the_same_model_compiled() -> None:
    """Replicated around the compiled module, not inside of it."""

    def body(rank: int) -> tuple[History, int, int]:
        config = TrainConfig.from_dict({**TINY, "epochs": 3, "compile": EAGER})
        task = replace(tiny_task(), rank=rank, world_size=2)
        plan = Script({1: Decision((Germinate("r0c0", "norm"),)), 2: Decision((Advance("r0c0"),))})
        with Trainer(build_model(config), task, plan, config, group=dist.group.WORLD) as trainer:
            history = trainer.run()
            replica = trainer.wrap()
            assert isinstance(replica, DistributedDataParallel)
            assert all(buffer is not trainer.model.alphas for buffer in replica.modules_buffers)
            return history, trainer.model.fingerprint(), trainer.compiler.fallbacks

    outcomes = run_ranks(body, 2)
    assert [outcome.error for outcome in outcomes] == [None, None]
    (first, print_0, fallbacks), (second, print_1, _) = (outcome.value for outcome in outcomes)
    assert first.same_as(second)
    assert print_0 == print_1
    assert fallbacks == 0


def test_what_a_seed_that_has_gone_was_compiled_for_is_dropped() -> None:
    trainer = compiled(2)
    slot = trainer.model.slots["r0c0"]
    for birth in range(1, 4):
        slot.commit("norm", slot.prepare("norm", torch.Generator().manual_seed(birth)))
        slot.advance()
        trainer.wrap()
        slot.prune()
        trainer.wrap()
        assert trainer.compiler.callables <= 2
        while slot.stage is not Stage.DORMANT:
            slot.tick()


def test_hooks_of_a_model_run_in_compiled_steps_too() -> None:
    trainer, calls = compiled(), []
    trainer.wrap()(torch.zeros(3, 1, 4, 4))  # the host's own way
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.wrap()(torch.zeros(3, 1, 4, 4))
    assert calls == [1]
    assert (graphs(), trainer.compiler.fallbacks) == (2, 0)


def test_off_it_does_not_even_load_the_compiler() -> None:
    model = tiny_trainer(Script()).model
    assert StepCompiler().wrap(model) is model
    assert StepCompiler(CompileConfig()).state is CompileState.EAGER


def test_a_mode_that_the_backend_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compile\.mode='max-autotune'"):
        compiled(compile={"enabled": True, "backend": "eager", "mode": "max-autotune"})
    with pytest.raises(
        ConfigError, match=r"compile\.dynamic=3 is not accepted: must be of type bool \| None"
    ):
        compiled(compile={"dynamic": 3})
