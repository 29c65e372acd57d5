"""Spawned loader workers import the script again, with this rank's environment: they must not be taken for
it.
"""
# ranks: 2, patience: 60

import os

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset


class Squares(Dataset[torch.Tensor]):
    """Defined in the script itself, so that a worker has to import it."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index**2))


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    loader = DataLoader(Squares(), batch_size=8, num_workers=1, multiprocessing_context="spawn")
    total = torch.zeros(1)
    for batch in loader:
        part = batch.sum()
        dist.all_reduce(part)
        total += part
    assert total.item() == 2 * sum(n**2 for n in range(16))
    dist.destroy_process_group()
    print(f"DONE {os.environ['RANK']}", flush=True)


if __name__ == "__main__":
    main()
