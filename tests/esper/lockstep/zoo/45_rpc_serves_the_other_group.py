"""Two ranks wait for each other in two groups, a cycle as it seems, until a third one sends one of them a
call that serves the other group, in a thread of the RPC agent.
"""
# ranks: 3, patience: 20

import time

import torch
import torch.distributed as dist
from torch.distributed import rpc

torch.set_num_threads(1)


def serve() -> float:
    value = torch.ones(1)
    dist.all_reduce(value, group=second)
    return value.item()


dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
first, second = dist.new_group([0, 1]), dist.new_group([0, 1])
rpc.init_rpc(f"worker{rank}", rank=rank, world_size=world)  # type: ignore[no-untyped-call]
value = torch.ones(1)
if rank == 0:
    dist.all_reduce(value, group=first)
elif rank == 1:
    dist.all_reduce(torch.ones(1), group=second)
    dist.all_reduce(value, group=first)
else:
    time.sleep(1.0)
    value[0] = rpc.rpc_sync("worker0", serve)
assert value.item() == 2.0
rpc.shutdown()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
