"""Forked children that fail, with an exception and a status of their own: their end is not their parent's."""
# ranks: 2, patience: 20

import multiprocessing
import os
import sys

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def fail() -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the child's own traceback
    raise ValueError("the child's own affair")


context = multiprocessing.get_context("fork")
for _ in range(3):
    worker = context.Process(target=fail)
    worker.start()
    value = torch.ones(1)
    dist.all_reduce(value)
    assert value.item() == 2.0
    worker.join()
    assert worker.exitcode == 1
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
