"""A run's log: JSON, one line an event, written as it happens and read back by `esper history` and `plot`.

Schema `esper.training/2`. The lines, by their `event`: `start` (`schema`, `version`, `torch`, `world_size`,
`parameters`, `resumed` epochs, `config`), `epoch` (`parameters`, `result`, an EpochResult, and `after`, the
slots as its decision left them), `end` (`seconds`, `stopped`). Numbers that are not finite are written as
Python's json does, as NaN and Infinity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import torch

from esper import __version__
from esper.errors import BadState, DataError
from esper.lifecycle.record import SlotRecord
from esper.training.config import TrainConfig
from esper.training.history import EpochResult, History
from esper.training.plain import from_plain, to_plain

SCHEMA = "esper.training/2"
NAME = "log.jsonl"


class RunLog:
    """Appends to the log of a run; every line is on its way to the disk once it is written."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        self.path = folder / NAME
        self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def start(self, config: TrainConfig, *, world_size: int, parameters: int, resumed: int) -> None:
        """A run begins, or goes on after `resumed` epochs."""
        self._write(
            "start",
            schema=SCHEMA,
            version=__version__,
            torch=torch.__version__,
            world_size=world_size,
            parameters=parameters,
            resumed=resumed,
            config=config.to_dict(),
        )

    def epoch(self, history: History, parameters: int) -> None:
        """The last epoch of `history` is over."""
        result = to_plain(history.epochs[-1])
        self._write("epoch", parameters=parameters, result=result, after=to_plain(history.final))

    def end(self, seconds: float, *, stopped: bool) -> None:
        """The run is over; `stopped`: since somebody asked for it."""
        self._write("end", seconds=seconds, stopped=stopped)

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def _write(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()


def read_log(folder: Path) -> tuple[TrainConfig, History]:
    """Of the run in `folder` its config and its epochs; of an epoch that was trained twice, since the run
    went on from an earlier one, the last. A last line that a killed run left unfinished is left out.

    Raises DataError where there is no log, BadState naming the line that is none, or is of another schema.
    """
    path = folder / NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            str(path), f"it can't be read ({error.strerror})", "name the folder of a run"
        ) from None
    config: TrainConfig | None = None
    epochs: dict[int, tuple[EpochResult, tuple[SlotRecord, ...]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            event = values["event"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise BadState(f"{path}:{number}", line[:60], "an event as JSON") from None
        if event == "start":
            if values["schema"] != SCHEMA:
                raise BadState(f"{path}:{number} schema", values["schema"], SCHEMA)
            config = TrainConfig.from_dict(values["config"])
            epochs = {epoch: told for epoch, told in epochs.items() if epoch <= values["resumed"]}
        elif event == "epoch":
            result = from_plain(EpochResult, values["result"], f"{path}:{number} result")
            after = from_plain(tuple[SlotRecord, ...], values["after"], f"{path}:{number} after")
            epochs[result.epoch] = result, after
    if config is None:
        raise BadState(str(path), lines[0][:60] if lines else "", "a log that begins with a start")
    told = [epochs[epoch] for epoch in sorted(epochs)]
    return config, History(tuple(result for result, _ in told), told[-1][1] if told else ())
