"""A training step of Hugging Face Accelerate, by env://, on ranks of the plugin."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_esper_ddp.handle import DDP


def train() -> tuple[nn.Linear, torch.Tensor]:
    """As its documentation has it: nothing here knows of a test."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(4, 1)
    data = TensorDataset(torch.randn(16, 4), torch.randn(16, 1))
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(data, batch_size=4)
    )
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
    losses = accelerator.gather(loss.detach().reshape(1))
    accelerator.wait_for_everyone()
    return accelerator.unwrap_model(model), losses


@pytest.mark.ddp(2, init=False)
def test_it_trains(ddp: DDP) -> None:
    model, losses = train()
    assert losses.shape == (2,)
    ddp.assert_same(model.state_dict())
    assert not torch.equal(model.weight, nn.Linear(4, 1).weight)


@pytest.mark.ddp(2, init=False)
@pytest.mark.ddp_fault("skip", rank=1, op="barrier", nth=1)
@pytest.mark.ddp_expect("missing", guilty=[1], op="barrier")
def test_a_skipped_barrier_is_named(ddp: DDP) -> None:
    train()
