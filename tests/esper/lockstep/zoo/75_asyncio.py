"""An event loop: collectives run in its executor's threads, several are awaited at once, each in its own
group.
"""
# ranks: 2, patience: 20

import asyncio

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
groups = [dist.new_group([0, 1]) for _ in range(3)]


async def reduce_in(which: int) -> float:
    total = 0.0
    for step in range(5):
        await asyncio.sleep(0.02 * ((rank + which) % 3))
        value = torch.tensor([float(step)])
        await asyncio.to_thread(dist.all_reduce, value, group=groups[which])
        total += value.item()
    return total


async def main() -> None:
    assert await asyncio.gather(*(reduce_in(which) for which in range(3))) == [20.0] * 3


asyncio.run(main())
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
