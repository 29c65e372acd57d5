"""Ticket 004: whether steps are compiled is a flag of the module.

Feared: a failure to compile, or a test, flips it for everything that comes later in the process, other
agents and environments included, and ranks of one job may come to have it differently.

Shown: the setting is a value of one trainer's config (options A and B of the ticket), its compiled steps
are that trainer's own, and a fallback is that trainer's alone, on all of its ranks: one rank that cannot
compile any more makes all fall back in the same epoch. Runs one after another in one process, with other
settings, do not touch each other. Option C, the context manager, is there for one trainer
(`StepCompiler.disabled`) and restores on the way out, also of an exception.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from esper.training import AfterEpoch, CompileState, History, Trainer, train_heuristic, train_ppo
from pytest_esper_ddp.handle import DDP
from tests.esper.training.short_config import short_config
from tests.integration.miniature import alike, miniature

EAGER: dict[str, Any] = {"enabled": True, "backend": "eager"}
SIZES = [pytest.param(size, marks=pytest.mark.ddp(size)) for size in (2, 4)]


def _fails(graph: object, inputs: object) -> Any:
    raise RuntimeError("no compiler for this machine")


@pytest.mark.parametrize("world_size", SIZES)
def test_back_to_back_runs_have_their_own_settings(ddp: DDP, world_size: int) -> None:
    torch._dynamo.register_backend(name="failing_here", compiler_fn=_fails)
    states = []
    for compiled in (EAGER, {}, {"enabled": True, "backend": "failing_here"}, EAGER):
        with miniature(ddp.rank, world_size, epochs=2, compile=compiled) as trainer:
            trainer.run()
            ddp.assert_same(alike(trainer))
            states.append(trainer.compiler.state)
    compiled_, eager, fell_back = CompileState.COMPILED, CompileState.EAGER, CompileState.FELL_BACK
    assert states == [compiled_, eager, fell_back, compiled_]


@pytest.mark.ddp(2)
def test_the_heuristic_and_a_policy_back_to_back_have_their_own_settings(ddp: DDP) -> None:
    states: list[CompileState] = []
    note = AfterEpoch(lambda trainer, _: states.append(trainer.compiler.state))
    histories: dict[tuple[object, str], History] = {}
    for train, compiled in (
        (train_heuristic, EAGER),
        (train_ppo, {}),
        (train_ppo, EAGER),
        (train_heuristic, {}),
        (train_heuristic, EAGER),
    ):
        settings = short_config(
            task="digits",
            epochs=2,
            batch_size=128,
            compile=compiled,
            ppo={"updates": 1, "environments": 1, "hidden": 8},
        )
        _, history = train(settings, group=dist.group.WORLD, callbacks=[note])
        ddp.assert_same([result.fingerprint for result in history.epochs])
        again = histories.setdefault((train, str(compiled)), history)
        assert again.same_as(history)  # whatever came in between
    assert states[::2] == states[1::2]
    compiled_, eager = CompileState.COMPILED, CompileState.EAGER
    assert states[::2] == [compiled_, eager, compiled_, eager, compiled_]


@pytest.mark.ddp(2)
@pytest.mark.ddp_fault("compile_fallback", rank=1, epoch=2)
def test_one_rank_that_cannot_compile_takes_the_others_with_it(ddp: DDP) -> None:
    states: list[CompileState] = []
    note = AfterEpoch(lambda trainer, _: states.append(trainer.compiler.state))
    with miniature(ddp.rank, 2, epochs=3, compile=EAGER, callbacks=[note]) as trainer:
        trainer.run()
        ddp.assert_same(alike(trainer))
    assert states == [CompileState.COMPILED, CompileState.FELL_BACK, CompileState.FELL_BACK]
    assert trainer.compiler.fallbacks == 1
    assert trainer.compiler.reason == (
        "RuntimeError: injected" if ddp.rank == 1 else "rank 1 could not compile"
    )


@pytest.mark.ddp(2)
def test_the_context_manager_is_one_trainers_and_ends(ddp: DDP) -> None:
    with (
        miniature(ddp.rank, 2, epochs=1, compile=EAGER) as one,
        miniature(ddp.rank, 2, epochs=1, compile=EAGER) as other,
    ):
        with pytest.raises(ZeroDivisionError):
            _fail_without_compilation(one, other)
        assert one.compiler.state is CompileState.COMPILED
        assert one.compiler.callables == 0


def _fail_without_compilation(one: Trainer, other: Trainer) -> None:
    with one.compiler.disabled():
        assert (one.compiler.state, other.compiler.state) == (CompileState.EAGER, CompileState.COMPILED)
        one.run()
        raise ZeroDivisionError
