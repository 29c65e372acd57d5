"""A ring of batched sends and receives: each rank waits for its left and its right, a perfect cycle of needs
that nothing is wrong with.
"""
# ranks: 4, patience: 20

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
block, total = torch.full((4,), float(rank)), torch.zeros(4)
for _ in range(3 * world):
    total += block
    incoming = torch.empty(4)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, block, (rank + 1) % world),
            dist.P2POp(dist.irecv, incoming, (rank - 1) % world),
        ]
    )
    for work in works:
        work.wait()
    block = incoming
assert total.tolist() == [18.0] * 4
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
