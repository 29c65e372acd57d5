"""Lightning Fabric: launched by environment variables, a module behind two wrappers, and collectives of its
own strategy.
"""
# ranks: 2, patience: 60, needs: lightning_fabric

import os

import torch
from lightning_fabric import Fabric

torch.set_num_threads(1)
os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
fabric = Fabric(accelerator="cpu", devices=2, num_nodes=1, strategy="ddp")
fabric.launch()
torch.manual_seed(0)
network = torch.nn.Linear(4, 1)
model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
for step in range(4):
    with fabric.no_backward_sync(model, enabled=step % 2 == 0):
        fabric.backward(model(torch.full((2, 4), float(fabric.global_rank))).sum())
    if step % 2:
        optimizer.step()
        optimizer.zero_grad()
gathered = fabric.all_gather(network.bias.detach())
assert gathered[0] == gathered[1]
assert fabric.broadcast({"rank": fabric.global_rank}) == {"rank": 0}
fabric.barrier()
print(f"DONE {fabric.global_rank}", flush=True)
