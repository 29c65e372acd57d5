"""One rank of test_one_gpu.py: collectives and a DDP step on the device named by DEVICE, over BACKEND."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend, device = os.environ["BACKEND"], torch.device(os.environ["DEVICE"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{os.environ['STORE']}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
        device_id=device if backend == "nccl" else None,
    )
    assert dist.get_backend() == backend
    check_collectives(rank, size, device)
    check_step(rank, size, device)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(f"rank {rank} of {size}: {backend} on {device} done\n")


def check_collectives(rank: int, size: int, device: torch.device) -> None:
    total = torch.full((1024,), float(rank), device=device)
    dist.all_reduce(total)
    assert total.device.type == device.type
    assert torch.equal(total, torch.full_like(total, sum(range(size))))
    from_first = torch.full((4,), rank, device=device)
    dist.broadcast(from_first, src=0)
    assert torch.equal(from_first, torch.zeros_like(from_first))


def check_step(rank: int, size: int, device: torch.device) -> None:
    """Gradients that DDP averaged are those of the mean of the ranks' losses."""
    torch.manual_seed(7)
    bare = torch.nn.Linear(8, 3, bias=False).to(device)
    model = DistributedDataParallel(bare)
    model(torch.full((2, 8), float(rank), device=device)).sum().backward()
    assert bare.weight.grad is not None
    expected = torch.full_like(bare.weight, 2 * sum(range(size)) / size)
    torch.testing.assert_close(bare.weight.grad, expected)


if __name__ == "__main__":
    main()
