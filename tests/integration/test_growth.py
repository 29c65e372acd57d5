"""Germinate, fossilise, prune and freeze on four ranks: in one step, nothing lost and nothing left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from esper.distributed.replicate import Replica
from esper.errors import LifecycleDivergence, NotReplicated
from esper.lifecycle import Blend, Stage
from esper.model import SeedSlot
from esper.training import AfterEpoch, EpochResult, Trainer
from esper.training.optimizer import follow_parameters
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import alike, miniature


def _state(trainer: Trainer) -> dict[str, Any]:
    """The optimiser's state by the names of parameters."""
    states = trainer.optimizer.state
    return {
        name: copy.deepcopy(dict(states[each]))
        for name, each in trainer.model.named_parameters()
        if each in states
    }


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.ddp(4)
def test_each_change_keeps_what_survives_and_is_everybodys(ddp: DDP, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[Any] = []
    trained: dict[str, Any] = {}
    born: list[tuple[int, str]] = []
    gone: list[tuple[int, str]] = []

    def look(trainer: Trainer, result: EpochResult) -> None:
        epoch = result.epoch
        ddp.assert_same(alike(trainer), f"epoch {epoch}")
        # Averaged was what learnt, no more and no less.
        assert isinstance(wrapped[-1], Replica)
        assert len(wrapped) == epoch
        before = set(trained)
        follow_parameters(trainer.optimizer, trainer.model.parameters())
        after = _state(trainer)
        assert all(_same(trained[name], after[name]) for name in before & set(after))
        born.extend((epoch, name) for name in set(after) - before)
        gone.extend((epoch, name) for name in before - set(after))

    with miniature(ddp.rank, 4, callbacks=[AfterEpoch(look)]) as trainer:
        wrap, agree = trainer.wrap, trainer.agree

        def watched_wrap() -> Any:
            wrapped.append(wrap())
            return wrapped[-1]

        def watched_agree(*given: Any) -> Any:
            trained.clear()
            trained.update(_state(trainer))
            return agree(*given)

        monkeypatch.setattr(trainer, "wrap", watched_wrap)
        monkeypatch.setattr(trainer, "agree", watched_agree)
        trainer.run()
    # Only the pruned seed's state went, in the tick in which alpha arrived at 0.
    assert born == []
    assert {epoch for epoch, _ in gone} == {6}
    assert all(".r0c1." in name for _, name in gone)
    # Over the host alone, with the seeds that learn, without the one that is frozen; anew where that is new.
    sizes = [len(each.covered) for each in wrapped]
    host = len(list(trainer.model.host.parameters()))
    conv, norm = sizes[2] - host, sizes[3] - sizes[2]
    assert conv > 0 < norm
    assert sizes == [host, host, host + conv, host + conv + norm, host + conv + norm] + [host + conv] * 5
    assert [each.number for each in wrapped] == [1, 1, 2, 3, 3, 4, 4, 4, 4, 4]


@pytest.mark.ddp(4)
def test_a_frozen_seed_stands_still_and_the_host_learns_on(ddp: DDP) -> None:
    held: list[dict[str, torch.Tensor]] = []

    def look(trainer: Trainer, result: EpochResult) -> None:
        if result.epoch in (5, 6):
            held.append({name: each.clone() for name, each in trainer.model.named_parameters()})

    slow = {"tempo": 3, "embargoed_epochs": 1}
    with miniature(ddp.rank, 4, epochs=6, slot=slow, callbacks=[AfterEpoch(look)]) as trainer:
        trainer.run()
        ddp.assert_same(alike(trainer))
    before, after = held
    seed = [name for name in after if ".r0c1." in name]
    assert seed
    assert all(torch.equal(before[name], after[name]) for name in seed)
    assert not torch.equal(before["host.norm.weight"], after["host.norm.weight"])


@pytest.mark.ddp(4)
@pytest.mark.ddp_fault("raise_in", rank=3, target="esper.model.slot:SeedSlot.prepare", nth=2)
@pytest.mark.ddp_expect("lifecycle", guilty=[3], field="germinate r0c1 norm", raises=LifecycleDivergence)
def test_a_seed_that_one_rank_cannot_build_is_built_on_none(ddp: DDP) -> None:
    with miniature(ddp.rank, 4) as trainer:
        generator = torch.get_rng_state()
        with pytest.raises(LifecycleDivergence, match="InjectedFault: injected on rank 3") as raised:
            trainer.run()
        assert [record.stage for record in trainer.model.records()] == [Stage.GERMINATED, Stage.DORMANT]
        assert not any(".r0c1." in name for name, _ in trainer.model.named_parameters())
        assert len(trainer.history.epochs) == 1
        assert torch.equal(generator, torch.get_rng_state())
    raise raised.value


@pytest.mark.ddp(4)
def test_a_seed_with_another_bit_on_one_rank_is_put_in_on_none(
    ddp: DDP, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = SeedSlot.prepare

    def other(
        slot: SeedSlot, blueprint: str, generator: torch.Generator, blend: Blend | None = None
    ) -> nn.Module:
        seed = prepare(slot, blueprint, generator, blend)
        next(seed.parameters()).data.view(-1)[-1] *= -1 if ddp.rank == 2 else 1
        return seed

    monkeypatch.setattr(SeedSlot, "prepare", other)
    with miniature(ddp.rank, 4) as trainer:
        with pytest.raises(LifecycleDivergence, match="fingerprint of the seed for r0c0") as raised:
            trainer.run()
        assert raised.value.guilty == (2,)
        assert [record.stage for record in trainer.model.records()] == [Stage.DORMANT, Stage.DORMANT]


@pytest.mark.ddp(4)
@pytest.mark.ddp_fault("extra_tick", rank=1, epoch=5)
@pytest.mark.ddp_expect("lifecycle", guilty=[1], field="stage of r0c1", raises=LifecycleDivergence)
def test_a_tick_more_that_ends_a_prune_never_reaches_the_reducer(ddp: DDP) -> None:
    # With other numbers of parameters DistributedDataParallel would end each process by SIGABRT.
    with miniature(ddp.rank, 4) as trainer, pytest.raises(LifecycleDivergence) as raised:
        trainer.run()
    assert "stage of r0c1: BLENDING on ranks 0, 2, 3; PRUNED on rank 1" in str(raised.value)
    assert "the start of epoch 6" in str(raised.value)
    raise raised.value


@pytest.mark.ddp(4)
def test_statistics_that_one_rank_alone_has_never_reach_their_mean(ddp: DDP) -> None:
    # With other numbers of values gloo would end each process by SIGABRT.
    def more(trainer: Trainer, _: EpochResult) -> None:
        if ddp.rank == 1:
            trainer.model.host.add_module("more", nn.BatchNorm2d(3, affine=False))

    with miniature(ddp.rank, 4, callbacks=[AfterEpoch(more)]) as trainer:
        with pytest.raises(LifecycleDivergence, match=r"buffer host\.more\.running_mean: absent") as raised:
            trainer.run()
        assert raised.value.guilty == (1,)
        assert "the start of epoch 2" in str(raised.value)


@pytest.mark.ddp(4)
def test_a_rank_that_makes_a_replica_where_the_others_go_on_with_theirs_is_named(ddp: DDP) -> None:
    def drop(trainer: Trainer, result: EpochResult) -> None:
        if ddp.rank == 2 and result.epoch == 7:
            assert trainer._replication is not None
            trainer._replication.forget()

    with miniature(ddp.rank, 4, callbacks=[AfterEpoch(drop)]) as trainer:
        with pytest.raises(LifecycleDivergence, match=r"replica: number 4 of this run .*number 5") as raised:
            trainer.run()
        assert raised.value.guilty == (2,)
        assert "the start of epoch 8" in str(raised.value)


@pytest.mark.ddp(2)
def test_what_learns_without_being_averaged_is_an_error_on_every_rank(
    ddp: DDP, monkeypatch: pytest.MonkeyPatch
) -> None:
    with miniature(ddp.rank, 2) as trainer:
        wrap = trainer.wrap
        held: list[Any] = []

        def never_again() -> Any:
            held.append(held[0] if held else wrap())
            return held[0]

        monkeypatch.setattr(trainer, "wrap", never_again)
        with pytest.raises(NotReplicated, match=r"parameter slots\.r0c0\..*: learns, but the replicated"):
            trainer.run()
    assert len(trainer.history.epochs) == 2
