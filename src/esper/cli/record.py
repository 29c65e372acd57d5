"""What stays of a run: its folder, with log, TensorBoard events and picture. Written by the first rank."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from esper.cli.train import RUNS
from esper.errors import DataError
from esper.modules import parameters_of
from esper.training import Callback, EpochResult, TrainConfig, Trainer, save_picture
from esper.training.log import NAME, RunLog

PICTURE = "run.png"


def choose_folder(
    out: Path | None, config: TrainConfig, group: dist.ProcessGroup | None, *, goes_on: bool, again: bool
) -> Path:
    """Collective: every rank, same order. The run's folder, which is there then: `out`, or a new one of the
    next free number; `again`: the one of the attempt before.

    Raises DataError, the same on every rank, where another run's log is in it and this one doesn't go on
    with that, or where it can't be made.
    """
    told: list[tuple[str, str, str] | str] = [""]
    if group is None or dist.get_rank() == 0:
        try:
            folder = out or _numbered(f"{config.task}-{config.controller}-{config.seed}", last=again)
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / NAME).exists() and not (goes_on or again):
                fix = "--resume goes on with it, another --out leaves it as it is"
                told = [(str(folder), "a run is in it already", fix)]
            else:
                told = [str(folder)]
        except OSError as error:
            told = [
                (
                    str(out or RUNS),
                    f"no folder can be made there ({error.strerror})",
                    "name another: --out DIR",
                )
            ]
    if group is not None:
        dist.broadcast_object_list(told, src=0, group=group)
    (chosen,) = told
    if isinstance(chosen, tuple):
        raise DataError(*chosen)
    return Path(chosen)


def _numbered(name: str, *, last: bool) -> Path:
    """The folder of that name and the next free number, or of the last one that is there."""
    runs = Path(RUNS)
    taken = [
        int(match[1])
        for path in (runs.iterdir() if runs.is_dir() else ())
        if (match := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name))
    ]
    highest = max(taken, default=0)
    return runs / f"{name}-{highest if last and highest else highest + 1}"


class Record(Callback):
    """The files of one run while it goes on."""

    def __init__(self, folder: Path, world_size: int) -> None:
        self._folder, self._world_size = folder, world_size
        self._begun = 0.0
        self._log: RunLog | None = None
        self._events: _Events | None = None

    def before_run(self, trainer: Trainer) -> None:
        """Open them. Raises OSError where they can't be written."""
        self._begun = time.monotonic()
        self._log = RunLog(self._folder)
        resumed = len(trainer.history.epochs)
        self._log.start(
            trainer.config, world_size=self._world_size, parameters=_parameters(trainer), resumed=resumed
        )
        with suppress(ImportError):  # the extra `train`
            self._events = _Events(self._folder, resumed)

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> None:
        """A line in the log, and a point in each of TensorBoard's curves."""
        parameters = _parameters(trainer)
        if self._log is not None:
            self._log.epoch(trainer.history, parameters)
        if self._events is not None:
            self._events.add(
                result.epoch,
                {
                    "train/loss": result.loss,
                    "test/accuracy": result.accuracy,
                    "model/parameters": parameters,
                    "epoch/seconds": result.seconds,
                    **{f"alpha/{record.slot_id}": record.alpha for record in result.records},
                    **{f"stage/{record.slot_id}": record.stage for record in result.records},
                },
            )

    def after_run(self, trainer: Trainer) -> None:
        """The log's last line, and the picture, which needs matplotlib and an epoch."""
        if self._log is not None:
            self._log.end(time.monotonic() - self._begun, stopped=bool(trainer.stopping))
        with suppress(DataError):
            save_picture(trainer.history, self._folder / PICTURE)

    def close(self) -> None:
        """Write no more."""
        if self._log is not None:
            self._log.close()
        if self._events is not None:
            self._events.close()


def _parameters(trainer: Trainer) -> int:
    return sum(parameter.numel() for parameter in parameters_of(trainer.model))


class _Events:
    """TensorBoard's curves, one event an epoch: torch's `add_scalar` writes one for each point."""

    def __init__(self, folder: Path, resumed: int) -> None:
        """What an earlier attempt wrote of later epochs is not shown any more. Raises ImportError."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary = Summary
        self._writer: Any = SummaryWriter(str(folder), purge_step=resumed + 1 if resumed else None)

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """A point in each curve."""
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.file_writer.add_summary(self._summary(value=points), epoch)

    def close(self) -> None:
        """Write no more."""
        self._writer.close()
