"""Ticket 000: a counterfactual that mutates alpha.

Feared: `force_alpha` overwrites a slot's alpha and switches its schedule off for a while; ranks that use it
unevenly part, a rank that fails inside stays changed, and a compiled graph is guarded anew at each toggle.

Shown: the question is an argument (`alpha_overrides`, `counterfactuals`; the ticket's option A). Asking it
on all ranks, on one rank alone, or inside another answer changes no state on any rank, and no compiled
graph learns of it. There is nothing to nest and nothing to restore. Asked of the replicated model, where a
rank alone could hang in DDP's own broadcast, it is refused by name. Options B (a guard that wants world
size 1, or a broadcast of overrides) and C (schedule apart from alpha) protect a mutation that no longer
exists; `force_alpha` says what replaced it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from esper.distributed.replicate import replicate
from esper.errors import CounterfactualOnReplica, ForcedAlpha
from esper.training import AfterEpoch
from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import alike, miniature

SIZES = [pytest.param(size, marks=pytest.mark.ddp(size)) for size in (2, 4)]
EAGER: dict[str, Any] = {"enabled": True, "backend": "eager"}


def _ask(trainer: Any) -> list[torch.Tensor]:
    """Each slot off, both off, halfway; as numbers and as tensors."""
    trainer.model.eval()
    pictures, _ = next(iter(trainer.task.test_batches()))
    variants = [{"r0c0": 0.0}, {"r0c1": torch.tensor(0.5)}, {"r0c0": 0.0, "r0c1": 0.0}, {}]
    with torch.no_grad():
        whole = list(trainer.model.counterfactuals(pictures, variants))
        single = trainer.model(pictures, alpha_overrides=variants[0])
    assert torch.equal(single, whole[0])
    return whole


@pytest.mark.parametrize("world_size", SIZES)
def test_asked_on_all_ranks_it_leaves_all_states_as_they_were(ddp: DDP, world_size: int) -> None:
    with miniature(ddp.rank, world_size, epochs=4) as trainer:
        trainer.run()
        before = trainer.model.fingerprint()
        random = torch.get_rng_state()
        _ask(trainer)
        assert trainer.model.fingerprint() == before
        assert torch.equal(random, torch.get_rng_state())
        ddp.assert_same(alike(trainer))


@pytest.mark.parametrize("world_size", SIZES)
def test_asked_on_one_rank_alone_it_needs_and_disturbs_nobody(ddp: DDP, world_size: int) -> None:
    # Between any two epochs, so also while the others are in the next start already.
    asking = [AfterEpoch(lambda trainer, _: _ask(trainer))] if ddp.rank == 1 else []
    with miniature(ddp.rank, world_size, callbacks=asking) as trainer:
        trainer.run()
        ddp.assert_same(alike(trainer))
        mine = trainer.model.fingerprint()
    with miniature(ddp.rank, world_size) as undisturbed:
        undisturbed.run()
    assert undisturbed.model.fingerprint() == mine


@pytest.mark.parametrize("world_size", SIZES)
def test_asked_of_the_replicated_model_it_is_refused_by_name(ddp: DDP, world_size: int) -> None:
    with miniature(ddp.rank, world_size, epochs=4) as trainer:
        trainer.run()
        assert dist.group.WORLD is not None
        replica = replicate(trainer.model, dist.group.WORLD).eval()
        pictures, _ = next(iter(trainer.task.test_batches()))
        if ddp.rank == 0:
            with pytest.raises(CounterfactualOnReplica, match=r"alpha_overrides for r0c0 were given"):
                replica(pictures, alpha_overrides={"r0c0": 0.0})
            assert replica.module(pictures, alpha_overrides={"r0c0": 0.0}).shape == (len(pictures), 2)


@pytest.mark.ddp(2)
def test_compiled_graphs_and_their_guards_stay_put(ddp: DDP) -> None:
    with miniature(ddp.rank, 2, epochs=4, compile=EAGER) as trainer:
        trainer.run()
        seen = dict(torch._dynamo.utils.counters["stats"]), trainer.compiler.callables
        for _ in range(3):
            _ask(trainer)
        assert (dict(torch._dynamo.utils.counters["stats"]), trainer.compiler.callables) == seen
        assert trainer.compiler.fallbacks == 0


def test_there_is_no_way_to_force_one() -> None:
    trainer = miniature()
    with pytest.raises(ForcedAlpha, match="it would change the model for everyone"):
        trainer.model.force_alpha("r0c0", 0.0)
