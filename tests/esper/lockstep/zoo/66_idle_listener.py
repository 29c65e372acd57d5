"""A daemon thread listens for messages that seldom come, from any source, for longer than the patience, while
the main threads train: what it waits for is nobody's duty.
"""
# ranks: 2, patience: 2

import threading
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
control = dist.new_group([0, 1])
heard: list[float] = []


def listen() -> None:
    message = torch.zeros(1)
    while message.item() >= 0:
        dist.recv(message, None, group=control)
        heard.append(message.item())


listener = threading.Thread(target=listen, daemon=True)
if rank == 1:
    listener.start()
for step in range(40):
    time.sleep(0.1)
    value = torch.tensor([float(step)])
    dist.all_reduce(value)
    assert value.item() == 2.0 * step
if rank == 0:
    dist.send(torch.tensor([-1.0]), 1, group=control)
else:
    listener.join()
    assert heard == [-1.0]
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
