"""A miniature life under torchrun: `program_life.py FOLDER [diverge | doomed RANK... | touched RANK]`.

It goes on from its newest checkpoint and notes its pid in FOLDER at each moment of each attempt, and in the
end all that ranks have in common, bit for bit, and what it would draw next.

doomed: in the n-th attempt that rank, should it get to the end, waits there to be killed.
touched: that rank kills itself when it opens, lists, renames or removes something in its folder of
checkpoints: the first attempt at the first time, the second at the second, until one gets to the end.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from esper.distributed import join_job
from esper.distributed.audit import digest_of
from esper.distributed.digest import stable_digest
from esper.distributed.telling import one_voice
from esper.errors import NoCheckpoint
from esper.training import AfterEpoch, Checkpoints, EpochResult, Trainer
from esper.training.sameness import common_state
from tests.integration.miniature import miniature


def main() -> None:
    folder, mode, chosen = Path(sys.argv[1]), "".join(sys.argv[2:3]), [int(word) for word in sys.argv[3:]]
    attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])

    def note(moment: str) -> None:
        (folder / f"{moment}-{attempt}-{rank}").write_text(str(os.getpid()))

    note("started")
    torch.set_num_threads(1)
    join_job("gloo")
    note("joined")
    size = dist.get_world_size()
    store = Checkpoints(folder / "checkpoints")
    if mode == "touched" and rank in chosen:
        die_touching(store.folder, attempt)

    def live(trainer: Trainer, result: EpochResult) -> None:
        torch.rand(rank + 1)  # as a dropout does, each rank from its own numbers
        note(f"epoch{result.epoch}")

    def diverge(trainer: Trainer, result: EpochResult) -> None:
        if mode == "diverge" and result.epoch == 3 and rank == 1:
            trainer.model.tick()

    callbacks = (AfterEpoch(live), store, AfterEpoch(diverge))
    with (
        one_voice(rank, range(size)),
        miniature(rank, size, agreement={"deadline": 20.0}, callbacks=callbacks) as trainer,
    ):
        torch.manual_seed(rank)
        with suppress(NoCheckpoint):
            store.resume(trainer)
        note("resumed")
        trainer.run()
        drawn = stable_digest("drawn", torch.get_rng_state().tolist())
        end = f"{trainer.model.fingerprint():x} {digest_of(common_state(trainer)):x} {drawn:x}"
    if mode == "doomed" and chosen[attempt : attempt + 1] == [rank]:
        signal.pause()
    dist.barrier()
    (folder / f"end-{rank}").write_text(end)
    dist.barrier()
    dist.destroy_process_group()


def die_touching(folder: Path, times: int) -> None:
    """SIGKILL for this process as it touches what is in `folder` for the time after `times` times."""
    left = times

    def see(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if arguments and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(str(folder)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(see)


if __name__ == "__main__":
    main()
