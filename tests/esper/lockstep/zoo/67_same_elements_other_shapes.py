"""Tensors of one size and several shapes, one of them empty: only the number of elements counts."""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
value = torch.ones(2, 3) if rank == 0 else torch.ones(6)
dist.all_reduce(value)
assert value.flatten().tolist() == [2.0] * 6
gathered = [torch.zeros(2, 3) if rank == 0 else torch.zeros(3, 2) for _ in range(world)]
dist.all_gather(gathered, gathered[0] + 2)
assert torch.cat(gathered).flatten().tolist() == [2.0] * 12
empty = torch.zeros(0)
dist.broadcast(empty, src=1)
scattered = torch.zeros(3)
dist.reduce_scatter(scattered, list(torch.split(value.flatten(), 3)))
assert scattered.tolist() == [4.0] * 3
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
