"""The program turns warnings into errors and works under dispatch and profiling modes: who watches from
inside must not trip over them.
"""
# ranks: 2, patience: 20

import warnings

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode
from torch.profiler import profile

warnings.simplefilter("error")
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
value = torch.ones(2)
with profile() as profiled:
    dist.all_reduce(value)
mode = CommDebugMode()  # type: ignore[no-untyped-call]
with mode, torch.inference_mode():
    dist.all_reduce(value)
    dist.broadcast(value, src=1)
assert value.tolist() == [4.0, 4.0]
assert mode.get_total_counts() == 2
assert any("all_reduce" in event.key or "allreduce" in event.key for event in profiled.key_averages())
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
