"""One run as `esper train` makes it: the trainer, what is shown and what is written, and a Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from esper.cli.policy import policy_for
from esper.cli.progress import Counted, Silent, progress_for
from esper.cli.record import Record, choose_folder
from esper.control import ControllerName
from esper.distributed import join_job
from esper.distributed.telling import one_voice
from esper.errors import ConfigError, NoCheckpoint
from esper.training import (
    Callback,
    Checkpoints,
    Learner,
    TrainConfig,
    Trainer,
    build_controller,
    build_model,
    build_task,
)

_ENDING = (signal.SIGINT, signal.SIGTERM)


def run(
    config: TrainConfig,
    *,
    out: Path | None,
    data_dir: Path | None,
    checkpoint_dir: Path | None,
    checkpoint_every: int,
    resume: bool,
    device: str | None,
    policy: Path | None = None,
) -> int:
    """Collective: every rank, same order. Train; the exit status.

    A job that torchrun has started again goes on from its checkpoint, if there is one yet. Raises what a
    trainer raises, NoCheckpoint, DataError, and OSError for what can't be written.
    """
    place = _device(device)
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if together:
        join_job("nccl" if place.type == "cuda" else "gloo")
    try:
        group = dist.group.WORLD if together else None
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        task = build_task(config, data_dir=data_dir, rank=rank, world_size=world_size)
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        folder = choose_folder(out, config, group, goes_on=resume, again=again)
        checkpoints = Checkpoints(checkpoint_dir or folder / "checkpoints", every=checkpoint_every)
        with (
            one_voice(rank, range(world_size)),
            closing(progress_for(rank, config.epochs, task.announce)) as progress,
        ):
            learned = None
            if config.controller is ControllerName.PPO:
                learned = policy_for(
                    config,
                    file=policy,
                    folder=folder,
                    group=group,
                    device=place,
                    data_dir=data_dir,
                    say=progress.say,
                    stopping=_stopping,
                )
                if learned is None:
                    return 0
            with (
                _record_for(rank, folder, world_size) as record,
                Trainer(
                    build_model(config).to(place),
                    Counted(task, progress),
                    build_controller(config, learned),
                    config,
                    group=group,
                    callbacks=(record, progress, checkpoints),
                ) as trainer,
                _stopping(trainer),
            ):
                with suppress(NoCheckpoint) if again or (learned and policy is None) else nullcontext():
                    # It may have died before its first; and learning a policy writes none.
                    if resume or again:
                        progress.say(f"goes on from {checkpoints.resume(trainer)}")
                begun = time.monotonic()
                trainer.run()
                progress.say(_ended(trainer, time.monotonic() - begun))
                progress.say(f"in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    finally:
        if together:
            dist.destroy_process_group()
    return 0


def _record_for(rank: int, folder: Path, world_size: int) -> AbstractContextManager[Callback]:
    """The first rank's record, closed in the end; the others keep none."""
    return nullcontext(Silent()) if rank else closing(Record(folder, world_size))


def _ended(trainer: Trainer, seconds: float) -> str:
    history, wanted = trainer.history, trainer.config.epochs
    done = len(history.epochs)
    ended = f"{done} epoch{'' if done == 1 else 's'}"
    if trainer.stopping:
        ended = f"stopped after epoch {done} of {wanted}; --resume goes on"
    return f"{ended}: accuracy {history.accuracy:.2f} in {seconds:.1f} s"


def _device(name: str | None) -> torch.device:
    """Raises ConfigError for a name that torch doesn't know, or a device that isn't there."""
    number = os.environ.get("LOCAL_RANK", "0")
    there = torch.cuda.is_available()
    wanted = name or ("cuda" if there else "cpu")
    try:
        device = torch.device(f"cuda:{number}" if wanted == "cuda" else wanted)
    except RuntimeError:
        raise ConfigError("--device", wanted, "cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError("--device", wanted, "cpu, cuda or cuda:N")
    if device.type == "cuda" and not (there and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(
            "--device", wanted, f"one of the {torch.cuda.device_count()} CUDA devices here, or cpu"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextmanager
def _stopping(trainer: Trainer | Learner) -> Iterator[None]:
    """The first Ctrl-C, or SIGTERM, ends the run after its epoch, on all ranks; the second ends at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.stop()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, stop) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
