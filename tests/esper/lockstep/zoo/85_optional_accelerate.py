"""Accelerate: its own wrappers, loaders that broadcast batches from rank 0, metrics gathered with padding,
and a state that is made and reset.
"""
# ranks: 2, patience: 60, needs: accelerate

import os

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
torch.manual_seed(0)
network = torch.nn.Linear(4, 1)
data = DataLoader(TensorDataset(torch.arange(40.0).reshape(10, 4) / 40), batch_size=2)
model, optimizer, loader = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.1), data)
for _ in range(2):
    for (batch,) in loader:
        with accelerator.accumulate(model):
            loss = model(batch).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    seen = accelerator.gather_for_metrics(torch.full((accelerator.process_index + 1,), 1.0).mean().reshape(1))
    assert seen.tolist() == [1.0, 1.0]
    accelerator.wait_for_everyone()
bias = accelerator.gather(accelerator.unwrap_model(model).bias.detach())
assert bias[0] == bias[1]
accelerator.end_training()
print(f"DONE {os.environ['RANK']}", flush=True)
