"""The main thread waits for a child process while a thread serves a group, and the other rank's collectives
come in bursts with long pauses: nothing moves, and nobody waits.
"""
# ranks: 2, patience: 2

import subprocess
import threading
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
sums: list[float] = []


def serve() -> None:
    for burst in range(3):
        time.sleep(1.2)
        for _ in range(5):
            value = torch.tensor([float(burst)])
            dist.all_reduce(value)
            sums.append(value.item())


server = threading.Thread(target=serve)
server.start()
assert subprocess.run(["sleep", "2.5"], check=False).returncode == 0
server.join()
assert sums == [0.0] * 5 + [2.0] * 5 + [4.0] * 5
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
