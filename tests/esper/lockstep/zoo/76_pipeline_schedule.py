"""A pipeline schedule of torch's own: stages infer shapes from each other, then send and receive in batches
in another order on each rank.
"""
# ranks: 2, patience: 60

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


torch.manual_seed(rank)
stage = PipelineStage(torch.nn.Linear(4, 4), rank, world, torch.device("cpu"))
schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=loss)
losses: list[torch.Tensor] = []
for _ in range(2):
    if rank == 0:
        schedule.step(torch.ones(8, 4))
    else:
        schedule.step(target=torch.zeros(8, 4), losses=losses)
gradient = next(stage.submod.parameters()).grad
assert gradient is not None
assert gradient.abs().sum().item() > 0
dist.barrier()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
