"""`esper history`, `plot` and `eval`: what was done in a run, its picture, and how good its network is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from esper.errors import EsperError

_Do = Callable[[argparse.Namespace], None]


def add_commands(commands: Any) -> None:
    """Add `history`, `plot` and `eval`."""
    for name, does, told in (
        ("history", history, "say what the controller did in a run, and why"),
        ("plot", plot, "draw a run: accuracy, stages and alpha over the epochs"),
        ("eval", evaluate, "evaluate a run's newest checkpoint on its task"),
    ):
        parser: argparse.ArgumentParser = commands.add_parser(name, help=told, description=told)
        parser.add_argument(
            "run", type=Path, metavar="RUN", help="the run's folder, as `esper train` said it"
        )
        if name == "history":
            parser.add_argument("--all", action="store_true", help="every epoch, not only those with a deed")
        if name == "plot":
            parser.add_argument("--to", type=Path, metavar="FILE", help="a .png, .pdf or .svg (RUN/run.png)")
        if name == "eval":
            parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where cifar10 lies")
            parser.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="(RUN/checkpoints)")
        parser.set_defaults(do=_in_one_sentence(name, does))


def _in_one_sentence(name: str, does: _Do) -> Callable[[argparse.Namespace], int]:
    @wraps(does)
    def run(options: argparse.Namespace) -> int:
        try:
            does(options)
        except (EsperError, OSError) as error:
            sys.stderr.write(f"esper {name}: {error}\n")
            return 2
        return 0

    return run


def history(options: argparse.Namespace) -> None:
    """The epochs in which something was done, and what and why."""
    from esper.training.deeds import deeds
    from esper.training.log import read_log

    _, told = read_log(options.run)
    header, *lines = told.table().splitlines()
    sys.stdout.write(f"{header}\n")
    for result, line in zip(told.epochs, lines, strict=True):
        done = deeds(result)
        if done or options.all or result is told.epochs[-1]:
            sys.stdout.write("\n      ".join([line, *done]) + "\n")


def plot(options: argparse.Namespace) -> None:
    """Draw it."""
    from esper.cli.record import PICTURE
    from esper.training import save_picture
    from esper.training.log import read_log

    path = options.to or options.run / PICTURE
    save_picture(read_log(options.run)[1], path)
    sys.stdout.write(f"{path}\n")


def evaluate(options: argparse.Namespace) -> None:
    """Loss and accuracy of the newest checkpoint, with all slots and with each of them off."""
    from esper.lifecycle.stage import in_forward
    from esper.model import leave_one_out
    from esper.training import Checkpoints, Trainer, build_controller, build_model, build_task
    from esper.training.epoch import evaluate_on
    from esper.training.log import read_log

    config, _ = read_log(options.run)
    model, task = build_model(config), build_task(config, data_dir=options.data_dir)
    with Trainer(model, task, build_controller(config), config) as trainer:
        path = Checkpoints(options.checkpoint_dir or options.run / "checkpoints").resume(trainer)
        grown = [record for record in model.records() if in_forward(record.stage)]
        without = leave_one_out([record.slot_id for record in grown])
        whole, *others = evaluate_on(model, task.test_batches(), [{}, *without.values()])
    sys.stdout.write(f"{path}: accuracy {whole.accuracy:.2f}, loss {whole.loss:.4f}\n")
    for record, sums in zip(grown, others, strict=True):
        told = f"{record.slot_id} {record.stage.name} {record.blueprint}"
        sys.stdout.write(f"  without {told}: accuracy {sums.accuracy:.2f}, loss {sums.loss:.4f}\n")
