"""What is registered with `atexit` still runs collectives after the script's last line, late on one rank."""
# ranks: 2, patience: 20

import atexit
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def report() -> None:
    if rank == 1:
        time.sleep(0.8)
    value = torch.ones(1)
    dist.all_reduce(value)
    assert value.item() == 2.0
    dist.destroy_process_group()
    print(f"DONE {rank}", flush=True)


atexit.register(report)
