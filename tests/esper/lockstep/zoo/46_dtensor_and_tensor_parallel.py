"""DTensor and tensor parallelism on a mesh of two dimensions: the library picks the collectives, in subgroups
that are made in one order and used in another.
"""
# ranks: 4, patience: 60

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
whole = torch.arange(16.0).reshape(4, 4)
sharded = distribute_tensor(whole, mesh, [Shard(0), Shard(1)])
product = sharded @ sharded
assert isinstance(product, DTensor)
assert torch.equal(product.redistribute(mesh, [Replicate(), Replicate()]).to_local(), whole @ whole)
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
expected = network(whole).detach()
parallel = parallelize_module(network, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
result = parallel(whole)
assert torch.allclose(result.detach(), expected, atol=1e-5)
result.sum().backward()
dist.destroy_process_group()
print(f"DONE {rank}", flush=True)
