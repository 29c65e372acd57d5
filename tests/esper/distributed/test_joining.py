"""Ranks meet at a store that has the words of earlier attempts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

from esper.distributed.agreement import Agreement, AgreementConfig
from esper.distributed.control import _job_store
from esper.distributed.joining import join_job, unused_name
from esper.errors import AgreementDeadline
from pytest_esper_ddp.handle import DDP
from tests.esper.distributed.records import agreement_record
from tests.esper.ranks import run_ranks

LONG = timedelta(seconds=20)
SHORT = timedelta(seconds=0.3)


def names(store: Store, ranks: Sequence[int], size: int, timeout: timedelta) -> list[str | AgreementDeadline]:
    """What each of `ranks` gets, all at once."""

    def meet(rank: int) -> str | AgreementDeadline:
        try:
            return unused_name(store, rank, size, timeout)
        except AgreementDeadline as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(meet, ranks))


def test_each_attempt_has_a_name_of_its_own() -> None:
    store = HashStore()
    attempts = [names(store, range(4), 4, LONG) for _ in range(20)]
    assert all(isinstance(attempt[0], str) and len(set(attempt)) == 1 for attempt in attempts)
    assert len({attempt[0] for attempt in attempts}) == 20


@pytest.mark.parametrize("died", [0, 2])
def test_an_attempt_that_was_broken_off_leaves_nothing_that_counts(died: int) -> None:
    store = HashStore()
    before = names(store, [rank for rank in range(4) if rank != died], 4, SHORT)
    assert {str(each) for each in before} == {
        f"joining the job was called off after 0.3 s: rank {died} of 4 did not come"
    }
    assert {each.guilty for each in before if isinstance(each, AgreementDeadline)} == {(died,)}
    after = names(store, range(4), 4, LONG)
    assert isinstance(after[0], str)
    assert len(set(after)) == 1


def test_all_who_are_missing_are_named() -> None:
    (first, second) = names(HashStore(), (0, 2), 4, SHORT)
    assert str(first) == str(second)
    assert str(first) == "joining the job was called off after 0.3 s: ranks 1, 3 of 4 did not come"


@pytest.mark.ddp(4, init=False)
def test_ranks_that_join_again_meet_each_other(ddp: DDP) -> None:
    for attempt in range(5):
        join_job("gloo", timeout=LONG)
        total = torch.tensor([ddp.rank + attempt])
        dist.all_reduce(total)
        assert total == 6 + 4 * attempt
        dist.destroy_process_group()


def test_what_an_earlier_attempt_has_called_off_still_stands_for_nothing() -> None:
    def body(rank: int) -> None:
        store = _job_store()
        for group in range(10):
            for number in range(10):
                store.set(f"esper/{group}/{number}/verdict", "called off")
        with Agreement(dist.group.WORLD, AgreementConfig(deadline=2.0)) as agreement:
            time.sleep(1.1)  # more than half the deadline: the store is asked
            agreement.exchange(agreement_record())

    assert [outcome.error for outcome in run_ranks(body, 2)] == [None, None]
