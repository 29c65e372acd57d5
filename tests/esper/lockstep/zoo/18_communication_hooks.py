"""Communication hooks replace the reducer's all_reduce: other operations, other types, other numbers of
calls, and nobody waits on the works, only on futures.
"""
# ranks: 2, patience: 20

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def gather_and_mean(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    parts = [torch.empty_like(bucket.buffer()) for _ in range(world)]
    work = dist.all_gather(parts, bucket.buffer(), async_op=True)
    assert work is not None

    def mean(_: torch.futures.Future[object]) -> torch.Tensor:
        return torch.stack(parts).mean(0)

    averaged: torch.futures.Future[torch.Tensor] = work.get_future().then(mean)
    return averaged


def train(which: str) -> float:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(16, 16))
    if which == "compressed":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif which == "low rank":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    else:
        model.register_comm_hook(None, gather_and_mean)
    for _ in range(4):
        model.zero_grad()
        model(torch.full((2, 16), float(rank))).sum().backward()
    gradient = model.module.bias.grad
    assert gradient is not None
    return float(gradient[0])


for name in ("compressed", "low rank", "own"):
    assert abs(train(name) - 2.0) < 0.01, name
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
