"""Ranks write and read checkpoints in turn, by barriers, and all resume from rank 0's: each waits for the one
before it, and the last waits for all.
"""
# ranks: 3, patience: 20

import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
with tempfile.TemporaryDirectory() as own:
    shared = [own if rank == 0 else ""]
    dist.broadcast_object_list(shared, src=0)
    folder = Path(shared[0])
    for turn in range(world):
        if turn == rank:
            time.sleep(0.3)
            torch.save({"rank": rank, "weights": torch.full((100,), float(rank))}, folder / f"{rank}.pt")
        dist.barrier()
    states = [torch.load(folder / f"{turn}.pt") for turn in range(world)]
    assert [state["weights"][0].item() for state in states] == [0.0, 1.0, 2.0]
    dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
