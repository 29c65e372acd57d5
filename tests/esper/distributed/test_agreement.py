"""Exchanges between real ranks."""

from __future__ import annotations

import logging
import pickle
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from esper.distributed import (
    Agreed,
    Agreement,
    AgreementConfig,
    GrowthRecord,
    GrowthStep,
    control,
    deadline,
)
from esper.distributed.rows import with_own
from esper.errors import AgreementDeadline, GrowthFailed, LifecycleDivergence
from esper.lifecycle.config import Blend
from esper.lifecycle.metrics import MetricSums, SlotMeasurement
from esper.lifecycle.stage import Stage
from tests.esper.distributed.records import agreement_record, in_stage, slot_record
from tests.esper.ranks import Outcome, run_ranks

DEADLINE = 1.0


def _agreement(deadline: float = 10.0, debug: bool = False) -> Agreement:
    return Agreement(dist.group.WORLD, AgreementConfig(deadline=deadline, debug=debug))


def _errors(outcomes: list[Outcome]) -> list[str]:
    return [f"{type(outcome.error).__name__}: {outcome.error}" for outcome in outcomes]


def test_every_rank_gets_the_same_averages() -> None:
    def body(rank: int) -> tuple[Agreed, list[float]]:
        record = agreement_record(
            train=MetricSums(0.1 * (rank + 1), rank, 10 + rank),
            measurements=(SlotMeasurement(), SlotMeasurement(0.1 * rank, None, 2.0 * rank if rank else None)),
            next_batches=11 + rank,
            random_bits=100 + rank,
            panic=rank == 2,
        )
        with _agreement() as agreement:
            agreed = agreement.exchange(record)
            values = torch.tensor([float(rank), 4.0])
            agreement.mean_(values, "buffers")
            return agreed, values.tolist()

    outcomes = run_ranks(body, 3)
    assert _errors(outcomes) == ["NoneType: None"] * 3
    agreed, means = outcomes[0].value
    assert all(pickle.dumps(outcome.value[0]) == pickle.dumps(agreed) for outcome in outcomes)
    assert agreed.train == MetricSums(0.1 + 0.2 + 0.1 * 3, 3, 33)
    assert agreed.measurements[0] == SlotMeasurement()
    assert agreed.measurements[1].contribution == 3.0
    assert agreed.next_batches == ((0, 11), (1, 12), (2, 13))
    assert agreed.random_bits == 100
    assert agreed.panicking == (2,)
    assert means == [1.0, 4.0]


@pytest.mark.parametrize("length", [3, 5000])  # sent all to all, and reduced
def test_a_mean_of_any_length_is_the_same_on_every_rank(length: int) -> None:
    def body(rank: int) -> bytes:
        values = torch.linspace(0.1, 0.9, length) ** (rank + 1)
        with _agreement() as agreement:
            agreement.mean_(values, "buffers")
        return values.numpy().tobytes()

    outcomes = run_ranks(body, 3)
    assert _errors(outcomes) == ["NoneType: None"] * 3
    assert len({outcome.value for outcome in outcomes}) == 1
    values = torch.frombuffer(bytearray(outcomes[0].value), dtype=torch.float32)
    base = torch.linspace(0.1, 0.9, length)
    torch.testing.assert_close(values, (base + base**2 + base**3) / 3)


def test_one_process_agrees_with_itself_without_a_group() -> None:
    agreed = Agreement(None).exchange(agreement_record())
    mine = agreement_record()
    assert (agreed.epoch, agreed.slots, agreed.fingerprint) == (mine.epoch, mine.slots, mine.fingerprint)
    assert [with_own(mine, own) for own in agreed.own] == [mine]
    assert agreed.measurements == agreement_record().measurements


def test_a_stage_that_differs_is_named_alike_on_every_rank() -> None:
    def body(rank: int) -> None:
        with _agreement() as agreement:
            agreement.exchange(in_stage(Stage.GERMINATED if rank == 2 else Stage.TRAINING))

    outcomes = run_ranks(body, 3)
    errors = [outcome.error for outcome in outcomes]
    assert len({str(error) for error in errors}) == 1
    assert all(isinstance(error, LifecycleDivergence) and error.guilty == (2,) for error in errors)
    assert str(errors[0]) == (
        "ranks disagree in the agreement of epoch 7: "
        "stage of r0c1: TRAINING on ranks 0, 1; GERMINATED on rank 2"
    )


# How soon is a matter of the load, and benched: ci/bench/agreement.py and ci/bench/missing_rank.py.
@pytest.mark.parametrize(("world_size", "missing"), [(3, (2,)), (3, (0,)), (4, (1, 3)), (4, (0, 1))], ids=str)
def test_ranks_that_stay_away_are_named(
    world_size: int, missing: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of ranks that enter it further apart than its time-out the barrier can't say who is missing.
    for module in (control, deadline):
        monkeypatch.setattr(module, "DIAGNOSIS", 1.0)

    def body(rank: int) -> None:
        agreement = _agreement(DEADLINE)
        if rank in missing:
            return  # it lives until all others have raised
        # The destructor of a group waits for what is under way in it: closing must not hold the error up.
        monkeypatch.setattr(dist, "destroy_process_group", _must_not_be_called)
        with agreement:
            agreement.exchange(agreement_record())

    outcomes = run_ranks(body, world_size)
    came = [outcome for rank, outcome in enumerate(outcomes) if rank not in missing]
    for outcome in came:
        assert isinstance(outcome.error, AgreementDeadline)
        assert outcome.error.guilty == missing
        assert str(outcome.error) == str(came[0].error)
        assert "monitored" in str(outcome.error)
    if 0 not in missing:
        assert f"Ranks {', '.join(map(str, missing))} failed to pass monitoredBarrier" in str(came[0].error)


def _must_not_be_called(group: object) -> None:
    raise AssertionError("destroyed a group that an operation is under way in")


def test_a_rank_that_merely_came_later_is_not_named() -> None:
    def body(rank: int) -> None:
        agreement = _agreement(DEADLINE)
        if rank == 2:
            return
        if rank == 3:
            time.sleep(0.6 * DEADLINE)
        agreement.exchange(agreement_record())

    outcomes = run_ranks(body, 4)
    for rank in (0, 1, 3):
        error = outcomes[rank].error
        assert isinstance(error, AgreementDeadline)
        assert error.guilty == (2,)


def test_a_rank_that_comes_after_the_end_raises_at_once() -> None:
    def body(rank: int) -> float:
        agreement, store = _agreement(DEADLINE), control._job_store()
        if rank == 1:
            store.wait(["raised/0", "raised/2"])
        begun = time.monotonic()
        with pytest.raises(AgreementDeadline) as raised:
            agreement.exchange(agreement_record())
        assert raised.value.guilty == (1,)
        took = time.monotonic() - begun
        store.set(f"raised/{rank}", "")
        return took

    outcomes = run_ranks(body, 3)
    assert _errors(outcomes) == ["NoneType: None"] * 3
    assert outcomes[1].value < DEADLINE


def test_debug_logs_each_slots_turn_with_its_rank(caplog: pytest.LogCaptureFixture) -> None:
    def body(rank: int) -> list[str]:
        caplog.set_level(logging.INFO, "esper")
        with _agreement(debug=True) as agreement:
            agreement.exchange(agreement_record())
        return caplog.messages

    outcomes = run_ranks(body, 2)
    assert outcomes[1].value == [
        "rank 1, epoch 7: turn of slot r0c0, DORMANT",
        "rank 1, epoch 7: turn of slot r0c1, TRAINING",
    ]


def test_a_part_of_the_job_names_global_ranks() -> None:
    def body(rank: int) -> None:
        part = dist.new_group([1, 2])
        try:
            if rank > 0:
                agreement = Agreement(part, AgreementConfig(deadline=10.0))
                agreement.exchange(replace(agreement_record(), epoch=rank))
        finally:
            # The rest of the job has heard nothing of it, and still makes groups that fit together.
            dist.barrier(dist.new_group())

    outcomes = run_ranks(body, 3)
    error = outcomes[2].error
    assert isinstance(error, LifecycleDivergence)
    assert error.guilty == (1, 2)
    assert "epoch: 1 on rank 1; 2 on rank 2" in str(error)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_seed_that_could_not_be_built_stops_the_growth(everywhere: bool) -> None:
    def body(rank: int) -> None:
        error = "MemoryError: no room" if everywhere or rank == 1 else ""
        step = GrowthStep(slot_id="r0c0", action="germinate", blueprint="norm", fingerprint=5, error=error)
        with _agreement() as agreement:
            agreement.confirm(GrowthRecord(run_id=1, epoch=7, decision=9, steps=(step,)))

    outcomes = run_ranks(body, 3)
    assert len({str(outcome.error) for outcome in outcomes}) == 1
    error = outcomes[0].error
    if everywhere:
        assert isinstance(error, GrowthFailed)
    else:
        assert isinstance(error, LifecycleDivergence)
        assert error.guilty == (1,)
        assert "germinate r0c0 norm: ready on ranks 0, 2; MemoryError: no room on rank 1" in str(error)


def test_more_slots_than_a_row_holds_are_agreed_on_row_by_row() -> None:
    def body(rank: int) -> Agreed:
        slots = tuple(slot_record(f"r0c{column}", birth=column) for column in range(40))
        measured = tuple(SlotMeasurement(contribution=float(rank * column)) for column in range(40))
        with _agreement() as agreement:
            agreed = agreement.exchange(agreement_record(slots=slots, measurements=measured, epoch=1))
            odd = replace(slots[37], birth=99) if rank == 1 else slots[37]
            with pytest.raises(LifecycleDivergence, match="birth of r0c37: 37 on ranks 0, 2; 99 on rank 1"):
                agreement.exchange(agreement_record(slots=(*slots[:37], odd, *slots[38:]), measurements=()))
            return agreed

    outcomes = run_ranks(body, 3)
    assert _errors(outcomes) == ["NoneType: None"] * 3
    agreed = outcomes[0].value
    assert [record.slot_id for record in agreed.slots] == [f"r0c{column}" for column in range(40)]
    assert [measured.contribution for measured in agreed.measurements] == [float(at) for at in range(40)]
    assert outcomes[1].value == agreed


def test_a_rank_whose_seed_is_mixed_otherwise_is_named() -> None:
    def body(rank: int) -> None:
        record = agreement_record()
        seed = replace(record.slots[1], blend=Blend.GATE if rank == 2 else Blend.ADD)
        with _agreement() as agreement:
            agreement.exchange(replace(record, slots=(record.slots[0], seed)))

    for outcome in run_ranks(body, 3):
        assert isinstance(outcome.error, LifecycleDivergence)
        assert outcome.error.guilty == (2,)
        assert str(outcome.error) == (
            "ranks disagree in the agreement of epoch 7: blend of r0c1: add on ranks 0, 1; gate on rank 2"
        )


@pytest.mark.parametrize("sizes", [(0, 0, 0), (3, 10_000, 0), (5_000, 5_000, 5_000)])
def test_texts_of_any_length_reach_every_rank(sizes: tuple[int, ...]) -> None:
    def body(rank: int) -> dict[int, str]:
        with _agreement() as agreement:
            return agreement.texts(str(rank) * sizes[rank], "the test")

    texts = {rank: str(rank) * size for rank, size in enumerate(sizes)}
    assert [outcome.value for outcome in run_ranks(body, 3)] == [texts] * 3


def test_ranks_in_different_exchanges_say_so() -> None:
    def body(rank: int) -> None:
        with _agreement() as agreement:
            if rank == 1:
                agreement.confirm(GrowthRecord(run_id=1, epoch=7, decision=9, steps=()))
            else:
                agreement.exchange(agreement_record())

    outcomes = run_ranks(body, 3)
    assert "exchange: agreement on ranks 0, 2; growth on rank 1" in str(outcomes[1].error)
