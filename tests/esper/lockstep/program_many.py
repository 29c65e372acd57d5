"""A script for `python -m esper.lockstep run`: does every program of a file, one after the other.

Groups are made anew for each. Every other time a rank goes on to the next one as soon as it is done, and the
groups are destroyed only at the end.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.esper.lockstep.program_ranks import Rank

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
programs = pickle.loads(Path(sys.argv[1]).read_bytes())
for number, (seed, run) in enumerate(programs):
    one = Rank(run, rank, seed, checks=True)
    one.go()
    if number % 2:
        dist.barrier()
        one.destroy_groups()
dist.destroy_process_group()
print(f"DONE {rank} {len(programs)}")  # noqa: T201
