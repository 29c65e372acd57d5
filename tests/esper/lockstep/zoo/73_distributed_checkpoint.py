"""torch.distributed.checkpoint: plans by object collectives, saves in a thread or process of its own, and
goes on training meanwhile.
"""
# ranks: 2, patience: 60

import tempfile
import time

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
with tempfile.TemporaryDirectory() as own:
    shared = [own if rank == 0 else ""]
    dist.broadcast_object_list(shared, src=0)
    state = {"weights": torch.full((100,), 3.0), "step": 5}
    save(state, checkpoint_id=f"{shared[0]}/first")
    saving = async_save(state, checkpoint_id=f"{shared[0]}/second", process_group=dist.new_group([0, 1]))
    for _ in range(5):
        time.sleep(0.02)
        dist.all_reduce(torch.ones(1))
    assert hasattr(saving, "result")
    saving.result()
    loaded = {"weights": torch.zeros(100), "step": 0}
    load(loaded, checkpoint_id=f"{shared[0]}/second")
    assert torch.equal(loaded["weights"], state["weights"])  # type: ignore[arg-type]
    dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
