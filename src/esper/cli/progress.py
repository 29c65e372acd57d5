"""What a person sees of a run: a bar that moves on a terminal, and lines that stay."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from esper.training import Callback, EpochResult, Trainer
from esper.training.deeds import deeds
from esper.training.history import HEADER
from esper.training.tasks import Batch, Task

# On a terminal, where the bar shows the rest, each epoch of such a number has a line, done what may be.
_EVERY = 10


class Progress(Callback, Protocol):
    """Shows a run."""

    def batch(self) -> None:
        """Another batch is about to be trained on."""

    def say(self, text: str) -> None:
        """Something that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent(Callback):
    """Of the ranks but the first."""

    def batch(self) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines(Callback):
    """A line an epoch, and one for each thing done: for a file, a pipe, a log."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        """`write`: where else than to stdout a line goes."""
        self._headed, self._write = False, write or _write_line

    def batch(self) -> None:
        """Nothing: a line a batch would be too many."""

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> None:
        """The epoch's numbers and slots, and what was done."""
        for text in (result.line(),) if self._headed else (HEADER, result.line()):
            self.say(text)
        self._headed = True
        for deed in deeds(result):
            self.say(f"      {deed}")

    def say(self, text: str) -> None:
        """At once, also into a pipe."""
        self._write(text)

    def close(self) -> None:
        """Nothing."""


def _write_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Live(Callback):
    """On a terminal: bars for the run and for its epoch, above them epochs in which something was done."""

    def __init__(self, epochs: int, batches: Callable[[int], int | None]) -> None:
        """`batches`: how many an epoch has, None if nobody knows."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._lines = Lines(self.say)  # above the bar
        self._epochs, self._batches = epochs, batches
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stdout),
            refresh_per_second=4,  # ten times a second are some percent of a processor
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._run = self._bar.add_task("epoch", total=epochs, told="")
        self._epoch = self._bar.add_task("batch", total=batches(1), told="")
        self._bar.start()

    def batch(self) -> None:
        """The lower bar moves."""
        self._bar.advance(self._epoch)

    def after_epoch(self, trainer: Trainer, result: EpochResult) -> None:
        """The upper bar moves; a line for what was done."""
        told = f"loss {result.loss:.4f}  accuracy {result.accuracy:.2f}"
        self._bar.update(self._run, completed=result.epoch, told=told)
        self._bar.reset(self._epoch, total=self._batches(min(result.epoch + 1, self._epochs)))
        if deeds(result) or result.epoch % _EVERY == 0 or result.epoch in (1, self._epochs):
            self._lines.after_epoch(trainer, result)

    def say(self, text: str) -> None:
        """Above the bars."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """The bars stay as they are, and the cursor comes back."""
        self._bar.stop()


def progress_for(rank: int, epochs: int, batches: Callable[[int], int | None]) -> Progress:
    """Bars for the first rank on a terminal, lines for it elsewhere, nothing for the others."""
    if rank:
        return Silent()
    if not sys.stdout.isatty():
        return Lines()
    try:
        return Live(epochs, batches)
    except ImportError:  # without the extra `train`
        return Lines()


class Counted:
    """A task that tells of each batch."""

    def __init__(self, task: Task, progress: Progress) -> None:
        self._task, self._progress = task, progress

    def announce(self, epoch: int) -> int | None:
        """As the task says."""
        return self._task.announce(epoch)

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """The task's."""
        for batch in self._task.train_batches(epoch):
            self._progress.batch()
            yield batch

    def test_batches(self) -> Iterator[Batch]:
        """The task's."""
        return self._task.test_batches()
