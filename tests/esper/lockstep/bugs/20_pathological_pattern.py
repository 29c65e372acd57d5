# META ws=3 guilty=2 opA=all_gather opB=none expect=stalled|frozen
# META class=rank_freeze ref=huggingface/trl#1519;hiyouga/LlamaFactory#2424
"""A regular expression backtracks for ever over one rank's text, and holds the interpreter's lock meanwhile.

Today: a time-out on healthy ranks.
Wanted: rank 2 runs in clean; ranks 0, 1 wait in all_gather.
"""

import os
import re
from datetime import timedelta

import torch
import torch.distributed as dist

FAULTY = os.environ.get("HEALTHY") != "1"
TIMEOUT = timedelta(seconds=float(os.environ.get("PGT", "30")))
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=TIMEOUT)
rank, world = dist.get_rank(), dist.get_world_size()


def clean(text: str) -> int:
    return len(re.findall(r"^(a+)+$", text))  # B


text = "a" * 40 + "!" if FAULTY and rank == 2 else "aaa"
counts = [torch.zeros(1) for _ in range(world)]
dist.barrier()
dist.all_gather(counts, torch.tensor([float(clean(text))]))  # A
assert torch.cat(counts).sum().item() == 3.0
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
