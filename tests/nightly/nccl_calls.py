"""One rank, alone on NCCL: everything by which a program comes to a collective there."""

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

DEVICE = torch.device("cuda:0")


def plain_calls() -> None:
    x, parts = torch.ones(8, device=DEVICE), [torch.empty(8, device=DEVICE)]
    dist.all_reduce(x)
    dist.broadcast(x, 0)
    dist.barrier()
    dist.reduce(x, 0)
    dist.all_gather(parts, x)
    dist.all_gather_into_tensor(parts[0], x)
    dist.reduce_scatter_tensor(parts[0], x)
    dist.all_to_all_single(parts[0], x)
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, 0), dist.P2POp(dist.irecv, parts[0], 0)]):
        work.wait()
    dist.all_reduce(x, group=dist.new_group([0]))
    told: list[object] = [None]
    dist.all_gather_object(told, {"a": 1})
    dist.broadcast_object_list(told, 0)


def waits() -> None:
    x = torch.ones(8, device=DEVICE)
    for work in [dist.all_reduce(x, async_op=True) for _ in range(40)]:
        work.wait()
    dist.all_reduce(x, async_op=True).get_future().wait()
    while not dist.all_reduce(x, async_op=True).is_completed():
        pass
    with distributed_c10d._coalescing_manager(async_ops=True, device=DEVICE) as manager:
        for _ in range(3):
            dist.all_reduce(x)
    manager.wait()
    world = dist.group.WORLD
    assert world is not None
    assert torch.equal(functional.all_reduce(x, "sum", world) + 1, x + 1)


def train(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(5):
        loss = model(torch.randn(16, 64, device=DEVICE)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def models() -> None:
    layers = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8)).to(DEVICE)
    train(DistributedDataParallel(layers, device_ids=[0], bucket_cap_mb=0.01))
    sharded = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)).to(DEVICE)
    for layer in sharded:
        fully_shard(layer)
    fully_shard(sharded)
    train(sharded)
    mesh = init_device_mesh("cuda", (1,))
    distribute_tensor(torch.randn(8, 8), mesh, [Shard(0)]).redistribute(mesh, [Replicate()]).to_local()


def captured() -> None:
    x, graph, stream = torch.ones(8, device=DEVICE), torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        dist.all_reduce(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        dist.all_reduce(x)
        x.add_(1)
    for _ in range(5):
        graph.replay()
    assert torch.equal(x, torch.full_like(x, 6.0))


def main() -> None:
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", device_id=DEVICE)
    plain_calls()
    waits()
    models()
    captured()
    torch.cuda.synchronize()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
