"""Rank 0 evaluates and saves while the others wait in a barrier: the one that is late is the one
that works.
"""
# ranks: 4, patience: 20

import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
weights = torch.zeros(64, 64)
for epoch in range(2):
    gradient = torch.full((64, 64), float(rank))
    dist.all_reduce(gradient)
    weights += gradient
    if rank == 0:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            score = (weights @ torch.ones(64)).sum().item()
        assert score == 64 * 64 * 6.0 * (epoch + 1)
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"weights": weights, "epoch": epoch}, Path(folder) / "checkpoint.pt")
            assert torch.load(Path(folder) / "checkpoint.pt")["epoch"] == epoch
    dist.barrier()
assert weights[0, 0].item() == 12.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
