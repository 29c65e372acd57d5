"""Rank 0 sleeps in the kernel, opening a pipe that nobody writes to yet and syncing a file: asleep without
progress is how a frozen rank looks, too.
"""
# ranks: 3, patience: 20

import os
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
read = torch.zeros(1)
if rank == 0:
    with tempfile.TemporaryDirectory() as folder:
        pipe = Path(folder) / "pipe"
        os.mkfifo(pipe)
        feeder = subprocess.Popen(["sh", "-c", f"sleep 1.2; echo 7 > {pipe}"])
        read[0] = float(pipe.read_text())
        assert feeder.wait() == 0
        with (Path(folder) / "blob").open("wb") as file:
            for _ in range(8):
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
dist.broadcast(read, src=0)
dist.barrier()
assert read.item() == 7.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
