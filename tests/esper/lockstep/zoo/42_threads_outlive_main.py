"""The main thread is through while other threads go on: a non-daemon one with collectives, and daemon threads
that sleep and compute until the interpreter ends.
"""
# ranks: 2, patience: 20

import threading
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def idle() -> None:
    while True:
        time.sleep(0.05)


def go_on() -> None:
    value = torch.ones(1)
    for _ in range(8):
        if rank == 0:
            time.sleep(0.1)
        dist.all_reduce(value)
    assert value.item() == 256.0
    dist.destroy_process_group()
    print(f"DONE {rank}", flush=True)


threading.Thread(target=idle, daemon=True).start()
threading.Thread(target=go_on).start()
