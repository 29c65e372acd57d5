"""A miniature life under torchrun: `program_life.py FOLDER [DIVERGE]`.

It goes on from its newest checkpoint, notes its pid at each epoch in FOLDER, and in the end its fingerprint.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from esper.distributed.telling import one_voice
from esper.errors import NoCheckpoint
from esper.training import Checkpoints, Trainer
from tests.integration.miniature import miniature


def main() -> None:
    folder, diverge = Path(sys.argv[1]), sys.argv[2:] == ["diverge"]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    store = Checkpoints(folder / "checkpoints")

    def after_epoch(trainer: Trainer) -> None:
        epoch = len(trainer.history.epochs)
        torch.rand(rank + 1)
        (folder / f"epoch-{epoch}-{rank}").write_text(str(os.getpid()))
        store.save(trainer)
        if diverge and epoch == 3 and rank == 1:
            trainer.model.tick()

    with one_voice(rank, range(size)), miniature(rank, size, agreement={"deadline": 20.0}) as trainer:
        torch.manual_seed(rank)
        with suppress(NoCheckpoint):
            store.resume(trainer)
        trainer.run(after_epoch=after_epoch)
        drawn = int(torch.get_rng_state().to(torch.int64).sum())
        (folder / f"end-{rank}").write_text(f"{trainer.model.fingerprint():x} {drawn}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
