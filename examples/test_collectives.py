"""Plain collectives, without a growing network: what any program of torch.distributed may run into."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pytest_esper_ddp.handle import DDP


@pytest.mark.ddp
def test_gradients_agree(ddp: DDP) -> None:
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 2).to(ddp.device))
    model(torch.full((4, 8), float(ddp.rank), device=ddp.device)).sum().backward()
    ddp.assert_same([parameter.grad for parameter in model.parameters()], "gradients")


@pytest.mark.ddp
@pytest.mark.ddp_fault("skip", rank=2, op="all_reduce", nth=3)
@pytest.mark.ddp_expect("missing", guilty=[2], op="all_reduce", within=0.5)
def test_a_skipped_collective(ddp: DDP) -> None:
    for _ in range(5):
        dist.all_reduce(torch.ones(8, device=ddp.device))


@pytest.mark.ddp
@pytest.mark.ddp_fault("kill", rank=1, op="all_reduce", nth=2)
@pytest.mark.ddp_expect("crashed", guilty=[1], op="all_reduce", within=0.5)
def test_a_killed_rank(ddp: DDP) -> None:
    for _ in range(3):
        dist.all_reduce(torch.ones(8, device=ddp.device))


@pytest.mark.ddp
@pytest.mark.ddp_fault("raise", rank=1, op="all_reduce", nth=2, message="corrupt sample 812")
@pytest.mark.ddp_expect("raised", guilty=[1], op="all_reduce", within=0.5)
def test_an_exception_on_one_rank(ddp: DDP) -> None:
    for _ in range(3):
        dist.all_reduce(torch.ones(8, device=ddp.device))


@pytest.mark.ddp(patience=1.0)
@pytest.mark.ddp_fault("stop", rank=2, op="all_reduce", nth=2)
@pytest.mark.ddp_expect("frozen", guilty=[2], op="all_reduce")
def test_a_stopped_rank(ddp: DDP) -> None:
    for _ in range(3):
        dist.all_reduce(torch.ones(8, device=ddp.device))
