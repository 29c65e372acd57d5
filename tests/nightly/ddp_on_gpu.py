"""One rank of test_lockstep_on_gpu.py: DDP training on the first GPU, in which FAULT befalls rank 1."""

import os
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

FAULTY_STEP = 9


def step(model: DistributedDataParallel) -> None:
    model(torch.randn(8, 256, device="cuda")).square().mean().backward()  # step


def befall(fault: str, layers: torch.nn.Sequential) -> None:
    """What rank 1 does in place of, or before, its tenth step."""
    if fault == "raise":
        raise ValueError("broken batch")  # raise
    if fault == "other":
        dist.broadcast(torch.ones(5, device="cuda"), 0)  # other
    if fault == "sleep":
        time.sleep(100)  # sleep
    if fault == "spin":
        while True:  # spin
            pass
    if fault == "drift":
        with torch.no_grad():
            next(layers[2].parameters()).add_(1)


def main() -> None:
    fault = os.environ["FAULT"]
    dist.init_process_group(os.environ["BACKEND"])
    torch.cuda.set_device(0)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(6)]).cuda()
    model = DistributedDataParallel(layers, device_ids=[0], bucket_cap_mb=0.3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for number in range(60 if fault == "drift" else 12):
        if number == FAULTY_STEP and dist.get_rank() == 1:
            befall(fault, layers)
            if fault == "skip":
                continue
        optimizer.zero_grad()
        step(model)
        optimizer.step()
    dist.all_reduce(torch.ones(3, device="cuda"))  # end
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
