# META ws=5 guilty=2 opA=all_reduce|broadcast opB=barrier expect=wait_cycle|missing
# META class=subgroup_misuse ref=pytorch/pytorch#130102;NVIDIA/Megatron-LM#5370
"""A hierarchical reduction: within a node, among the leaders, and back; one leader skips the middle.

Today: some ranks print that they are done, the rest hang.
Wanted: rank 2 is in the final barrier; ranks 0, 4 wait for it in the leaders' all_reduce.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()
nodes = [dist.new_group(members, timeout=TIMEOUT) for members in ([0, 1], [2, 3], [4])]
leaders = dist.new_group([0, 2, 4], timeout=TIMEOUT)
node, first = nodes[rank // 2], rank // 2 * 2
value = torch.ones(4)
dist.reduce(value, dst=first, group=node)
if rank == first and not (FAULTY and rank == 2):
    dist.all_reduce(value, group=leaders)  # A
dist.broadcast(value, src=first, group=node)  # A
dist.barrier()  # B
assert value[0].item() == 5.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
