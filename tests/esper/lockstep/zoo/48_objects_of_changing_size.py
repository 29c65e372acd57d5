"""Object collectives: pickled sizes differ between ranks and steps, each is several collectives underneath,
and only the destination of a gather has a list to gather into.
"""
# ranks: 3, patience: 20

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
for step in range(5):
    mine = {"rank": rank, "text": "x" * (rank * step * 100)}
    everyone: list[dict[str, object] | None] = [None] * world
    dist.all_gather_object(everyone, mine)
    assert [len(str(one["text"])) for one in everyone if one] == [n * step * 100 for n in range(world)]
    sent = [list(range(step * 10))] if rank == step % world else [None]
    dist.broadcast_object_list(sent, src=step % world)
    assert sent == [list(range(step * 10))]
    gathered: list[object] | None = [None] * world if rank == 1 else None
    dist.gather_object("y" * (rank + step), gathered, dst=1)
    assert gathered is None or gathered == ["y" * (n + step) for n in range(world)]
    received: list[object] = [None]
    dist.scatter_object_list(received, [(n, step) for n in range(world)] if rank == 2 else None, src=2)
    assert received == [(rank, step)]
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
