"""Rank 0 compiles seconds before the others, which wait in a broadcast: neither a collective nor a line of
the program moves meanwhile.
"""
# ranks: 2, patience: 60

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def double(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 2 + 1


compiled = torch.compile(double, backend="eager")
value = torch.zeros(8)
if rank == 0:
    value = compiled(torch.ones(8))
dist.broadcast(value, src=0)
assert value.tolist() == [3.0] * 8
value = compiled(value)  # now the other compiles while rank 0 waits
dist.all_reduce(value)
assert value.tolist() == [14.0] * 8
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
