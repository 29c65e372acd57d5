"""A training step of Lightning Fabric, by env://, on ranks of the plugin."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_esper_ddp.handle import DDP

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional:FutureWarning")


def train() -> tuple[nn.Linear, torch.Tensor]:
    """As its documentation has it: nothing here knows of a test."""
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=2, num_nodes=1, strategy="ddp")
    fabric.launch()
    network = nn.Linear(4, 1)
    data = TensorDataset(torch.randn(16, 4), torch.randn(16, 1))
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    for inputs, targets in fabric.setup_dataloaders(DataLoader(data, batch_size=4)):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        fabric.backward(loss)
        optimizer.step()
    losses = fabric.all_gather(loss.detach())
    fabric.barrier()
    return network, losses


@pytest.mark.ddp(2, init=False)
def test_it_trains(ddp: DDP) -> None:
    network, losses = train()
    assert losses.shape == (2,)
    ddp.assert_same(network.state_dict())
    assert not torch.equal(network.weight, nn.Linear(4, 1).weight)


@pytest.mark.ddp(2, init=False)
@pytest.mark.ddp_fault("skip", rank=1, op="barrier", nth=1)
@pytest.mark.ddp_expect("missing", guilty=[1], op="barrier")
def test_a_skipped_barrier_is_named(ddp: DDP) -> None:
    train()
