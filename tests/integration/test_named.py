"""What ranks say when they part: the same on each of them, with the field, its values and who has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from esper.errors import LifecycleDivergence, UnknownBackend
from esper.training import AfterEpoch, EpochResult, Trainer
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import alike, miniature


def _raised(ddp: DDP, world_size: int, **changes: Any) -> LifecycleDivergence:
    """What the run ends with, the same on every rank; no slot, decision or epoch came of it."""
    before: list[object] = []

    def look(trainer: Trainer, _: EpochResult) -> None:
        before[:] = [trainer.model.records(), trainer.history]

    with miniature(ddp.rank, world_size, callbacks=[AfterEpoch(look)], **changes) as trainer:
        with pytest.raises(LifecycleDivergence) as raised:
            trainer.run()
        ddp.assert_same(str(raised.value))
        if before:
            assert before == [trainer.model.records(), trainer.history]
    return raised.value


@pytest.mark.parametrize("world_size", [pytest.param(size, marks=pytest.mark.ddp(size)) for size in (2, 4)])
def test_a_setting_that_one_rank_has_otherwise(ddp: DDP, world_size: int) -> None:
    rate = 0.02 if ddp.rank == 1 else 0.01
    error = _raised(ddp, world_size, optimizer={"name": "adam", "lr": rate})
    assert error.guilty == ((1,) if world_size == 4 else (0, 1))
    others = "rank 0" if world_size == 2 else "ranks 0, 2, 3"
    assert str(error) == (
        f"ranks disagree in the agreement of epoch 0: config optimizer.lr: 0.01 on {others}; 0.02 on rank 1"
    )


@pytest.mark.ddp(4)
@pytest.mark.ddp_fault("override_alone", rank=2, epoch=4, slot="r0c0")
@pytest.mark.ddp_expect("lifecycle", guilty=[2], field="alpha of r0c0", raises=LifecycleDivergence)
def test_a_drifted_alpha_comes_with_both_values(ddp: DDP) -> None:
    with miniature(ddp.rank, 4) as trainer, pytest.raises(LifecycleDivergence) as raised:
        trainer.run()
    assert "alpha of r0c0: 0.5 on ranks 0, 1, 3; 0.25 on rank 2" in str(raised.value)
    raise raised.value


@pytest.mark.ddp(4)
def test_the_audit_names_the_first_part_that_differs(ddp: DDP) -> None:
    with miniature(ddp.rank, 4, epochs=3) as trainer:
        trainer.run()
        trainer.audit("now")
        state = trainer.optimizer.state[next(trainer.model.parameters())]
        held = state["exp_avg"].clone()
        state["exp_avg"].view(-1)[0] += float(ddp.rank == 3)
        with pytest.raises(
            LifecycleDivergence, match=r"now: optimiser\['state'\]\[0\]\['exp_avg'\]"
        ) as raised:
            trainer.audit("now")
        state["exp_avg"].copy_(held)
        assert raised.value.guilty == (3,)
        trainer.safeguard.governor.rollbacks += ddp.rank == 1
        with pytest.raises(
            LifecycleDivergence, match=r"governor\['rollbacks'\]: 0 on ranks 0, 2, 3; 1 on rank 1"
        ):
            trainer.audit("now")
        trainer.safeguard.governor.rollbacks = 0
        with torch.no_grad():
            buffers = dict(trainer.model.named_buffers())
            next(each for name, each in buffers.items() if "running_mean" in name).add_(ddp.rank == 0)
        with pytest.raises(LifecycleDivergence, match=r"buffers\['.*running_mean'\]") as raised:
            trainer.audit("now")
        assert raised.value.guilty == (0,)


@pytest.mark.parametrize(("every", "asked"), [(0, [3]), (1, [1, 2, 3]), (2, [2, 3]), (3, [3])])
@pytest.mark.ddp(2)
def test_audits_are_as_often_as_asked_and_at_the_end(
    ddp: DDP, every: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with miniature(ddp.rank, 2, epochs=3, agreement={"audit_every": every}) as trainer:
        found = []
        monkeypatch.setattr(trainer, "audit", lambda where: found.append(len(trainer.history.epochs)))
        trainer.run()
    assert found == asked


@pytest.mark.ddp(2)
def test_a_rank_that_cannot_compile_any_more_takes_the_others_with_it(ddp: DDP) -> None:
    with miniature(ddp.rank, 2, epochs=2, compile={"enabled": True, "backend": "eager"}) as trainer:

        def broken(x: torch.Tensor) -> torch.Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no compiler here")

        # Without seeds the host alone is compiled, which on the other rank is a stand-in that works.
        step = broken if ddp.rank == 1 else trainer.model.forward
        trainer.compiler._steps[True, trainer.model.configuration()] = step
        trainer.run()
        ddp.assert_same(alike(trainer))
    assert trainer.compiler.fallbacks == 1
    reason = "TorchDynamoException: no compiler here" if ddp.rank == 1 else "rank 1 could not compile"
    assert trainer.compiler.reason == reason


def test_a_group_of_another_backend_is_refused_by_name() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(UnknownBackend, match="a process group of backend 'fake' is not accepted"):
            miniature(0, 2)
    finally:
        dist.destroy_process_group()
