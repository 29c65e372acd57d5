"""Master and workers: receives from any source, whose sender nobody knows before it comes, and workers that
are idle or busy for as long as their jobs need.
"""
# ranks: 4, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
STOP = -1.0
job = torch.zeros(1)
if rank == 0:
    jobs, answers = [float(n) for n in range(12)], 0.0
    for worker in range(1, world):
        dist.send(torch.tensor([jobs.pop()]), worker)
    for _ in range(12):
        sender = dist.recv(job, None)
        answers += job.item()
        dist.send(torch.tensor([jobs.pop() if jobs else STOP]), sender)
    assert answers == sum(n * n for n in range(12))
else:
    while True:
        dist.recv(job, 0)
        if job.item() == STOP:
            break
        time.sleep(0.1 * rank)
        dist.send(job**2, 0)
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
