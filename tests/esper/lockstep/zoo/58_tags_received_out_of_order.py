"""Messages with tags are received in another order than they were sent in: the first send waits for the last
receive.
"""
# ranks: 2, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
values = [torch.full((4,), float(n)) for n in range(4)]
if rank == 0:
    works = [dist.isend(values[n], 1, tag=n) for n in range(4)]
    for work in works:
        assert work is not None
        work.wait()
else:
    for n in reversed(range(4)):
        time.sleep(0.1)
        received = torch.zeros(4)
        dist.recv(received, 0, tag=n)
        assert torch.equal(received, values[n])
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
