"""A pipeline: the last stage waits for the first micro-batch through all others, and each stage has several
sends and receives in flight whose works it waits for later.
"""
# ranks: 4, patience: 20

import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
MICRO_BATCHES = 6
pending, out = [], []
incoming = []
if rank:
    for _ in range(MICRO_BATCHES):
        buffer = torch.empty(8)
        incoming.append((buffer, dist.irecv(buffer, rank - 1)))
for micro in range(MICRO_BATCHES):
    if rank:
        buffer, work = incoming[micro]
        assert work is not None
        work.wait()
    else:
        buffer = torch.full((8,), float(micro))
    time.sleep(0.03)
    result = buffer * 2
    out.append(result)
    if rank < world - 1:
        pending.append(dist.isend(result, rank + 1))
for sent in pending:
    assert sent is not None
    sent.wait()
assert [one[0].item() for one in out] == [micro * 2.0 ** (rank + 1) for micro in range(MICRO_BATCHES)]
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
