"""Shards and the sources of random numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from esper.distributed.digest import stable_digest
from esper.distributed.growth import birth_generator, birth_seed, growth_rng_digest, prepare_birth
from esper.distributed.loaders import evaluation_shard, training_shard
from tests.esper.distributed.records import slot_record


def test_training_shards_are_disjoint_equal_and_new_each_epoch() -> None:
    shards = [training_shard(11, seed=1, epoch=3, rank=rank, world_size=3).tolist() for rank in range(3)]
    assert [len(shard) for shard in shards] == [3, 3, 3]
    assert len({index for shard in shards for index in shard}) == 9
    assert shards[0] == training_shard(11, seed=1, epoch=3, rank=0, world_size=3).tolist()
    assert shards[0] != training_shard(11, seed=1, epoch=4, rank=0, world_size=3).tolist()
    assert shards[0] != training_shard(11, seed=2, epoch=3, rank=0, world_size=3).tolist()


def test_evaluation_shards_hold_each_sample_once() -> None:
    shards = [evaluation_shard(11, rank=rank, world_size=3).tolist() for rank in range(3)]
    assert sorted(index for shard in shards for index in shard) == list(range(11))


def test_digests_are_the_same_in_another_process() -> None:
    code = "from esper.distributed.digest import stable_digest; print(stable_digest('a', 1, [2.5, None]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == stable_digest("a", 1, [2.5, None])
    assert 0 <= stable_digest("a") < 2**63
    assert stable_digest("a", bits=64) >> 1 == stable_digest("a")


def test_a_birth_draws_from_its_own_numbers() -> None:
    def draw(run_seed: int, slot_id: str, birth: int) -> list[float]:
        return torch.rand(3, generator=birth_generator(run_seed, slot_id, birth)).tolist()

    state = torch.get_rng_state()
    assert draw(0, "r0c0", 1) == draw(0, "r0c0", 1)
    assert (
        len(
            {
                tuple(draw(*which))
                for which in [(0, "r0c0", 1), (1, "r0c0", 1), (0, "r0c1", 1), (0, "r0c0", 2)]
            }
        )
        == 4
    )
    assert torch.equal(state, torch.get_rng_state())


def test_the_growth_digest_follows_births_and_a_shifted_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = growth_rng_digest(0, [slot_record()])
    assert before != growth_rng_digest(1, [slot_record()])
    assert before != growth_rng_digest(0, [slot_record(birth=1)])
    monkeypatch.setattr("esper.distributed.growth.birth_seed", lambda *which: birth_seed(*which) + 1)
    assert before != growth_rng_digest(0, [slot_record()])


def test_the_error_of_building_is_kept() -> None:
    def fail(generator: torch.Generator) -> nn.Module:
        raise ValueError("no")

    birth = prepare_birth(fail, torch.Generator())
    assert birth.seed is None
    assert birth.reason == "ValueError: no"
    built = prepare_birth(lambda generator: nn.Identity(), torch.Generator())
    assert built.seed is not None
    assert built.reason == ""
