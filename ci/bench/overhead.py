"""What an epoch costs beyond its own work, as `esper train --task digits --controller none` makes it.

    .venv/bin/python ci/bench/overhead.py [--ranks N ...] [--rounds N] [--json FILE]

trained  an epoch of the trainer on the preset's config, with what the command gives it: log, TensorBoard's
         events, and lines into a file, all on the first rank. Two exchanges, BatchNorm's statistics along
         with the last gradients, the governor's snapshot and the decision count as overhead, too
audited  such an epoch with the audit that each tenth one has
bare     an epoch's own work: the same `train_on` and `evaluate_on` over the same batches, on the very same
         model and optimiser, on ranks in the very same DDP. It exchanges nothing but gradients: its ranks
         know neither the accuracy of all nor whether they are alike, and nothing is written
saved    trained, with the checkpoint that the command writes each tenth epoch

`epoch`, nine trained and one audited, has the limit. Checkpoints are no overhead of an epoch's; what comes
once a run, from imports to the picture at its end, is in none of them. On ranks lockstep watches all sides
alike, as a trainer has it: what that costs is for ci/bench/watchdog.py.

The sides run in turn, an epoch each, in an order drawn anew each round, begun together; a time is that of
the slowest rank. A ratio is the median of the ratios of neighbours, with the range that holds it with 95 %
(order statistics), by the wall clock, which is judged, and by the processor time of all ranks; bare against
itself says how far to trust the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from esper.cli.progress import Counted, Silent, progress_for
from esper.cli.record import Record
from esper.distributed.replicate import Replica
from esper.training import (
    Checkpoints,
    History,
    TrainConfig,
    Trainer,
    build_controller,
    build_model,
    build_task,
)
from esper.training import preset as preset_of
from esper.training.epoch import evaluate_on, train_on
from esper.training.tasks import TaskName

MOST = 1.03
SETTLING = 5  # rounds before the first that counts
PAUSE = 0.005  # seconds from a measurement's announcement to its beginning
SIDES = ("trained", "audited", "saved", "bare", "bare again")
PAIRS = (
    ("bare again", "bare", None),
    ("trained", "bare", None),
    ("audited", "bare", None),
    ("saved", "bare", None),
    ("epoch", "bare", MOST),
)


class Taken(NamedTuple):
    """What an epoch took, in seconds."""

    wall: float
    processor: float


class Bench:
    """One trainer, and the work of its epochs without it."""

    def __init__(self, rank: int, world_size: int, folder: Path) -> None:
        """Collective: every rank, same order."""
        settings = {**preset_of(TaskName.DIGITS), "controller": "none", "epochs": 10**6}
        self.config = config = TrainConfig.from_dict(settings)
        self.group = dist.group.WORLD if world_size > 1 else None
        self.task = build_task(config, rank=rank, world_size=world_size)
        progress = progress_for(rank, config.epochs, self.task.announce)
        self.record = Record(folder, world_size) if rank == 0 else None
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.trainer = Trainer(
            build_model(config),
            Counted(self.task, progress),
            build_controller(config),
            config,
            group=self.group,
            callbacks=(self.record or Silent(), progress),
        )
        self.number = 0
        for callback in self.trainer.callbacks:
            callback.before_run(self.trainer)
        steps = self.task.announce(1)
        self.trainer._announced = tuple((each, steps) for each in range(world_size))

    def side(self, name: str) -> Taken:
        """Collective: every rank, same order. An epoch of one side."""
        self.number += 1
        if name.startswith("bare"):
            module = self.trainer.wrap()
            taken = together(partial(self.bare, module), self.group)
            if isinstance(module, Replica):
                assert self.trainer._replication is not None
                self.trainer._replication.keep(module)
            return taken
        # As long as the preset's run has it at most.
        self.trainer.history = History(self.trainer.history.epochs[-50:], self.trainer.history.final)
        every = self.config.agreement.audit_every
        epoch = self.number * every + (name != "audited")
        return together(partial(self.trained, epoch, saved=name == "saved"), self.group)

    def trained(self, epoch: int, *, saved: bool) -> None:
        """Collective: every rank, same order. What `Trainer.run` does in an epoch."""
        trainer = self.trainer
        result = trainer.run_epoch(epoch)
        for callback in trainer.callbacks:
            callback.after_epoch(trainer, result)
        if saved:
            self.checkpoints.save(trainer)

    def bare(self, module: nn.Module) -> None:
        """Collective: every rank, same order."""
        trainer, clip = self.trainer, self.config.optimizer.clip
        batches = self.task.train_batches(self.number)
        train_on(module, batches, trainer.optimizer, clip=clip, after_backward=lambda: None)
        evaluate_on(trainer.model, self.task.test_batches())

    def close(self) -> None:
        """Not a collective."""
        self.trainer.close()
        if self.record is not None:
            self.record.close()


def together(call: Callable[[], object], group: dist.ProcessGroup | None) -> Taken:
    """Collective: every rank, same order. What it takes from a common beginning to this rank's end.

    That is a moment on the clock, which ranks of one machine share: they leave a barrier up to 1 ms apart.
    """
    moment = torch.tensor([time.perf_counter() + PAUSE], dtype=torch.float64)
    if group is not None:
        dist.broadcast(moment, src=0)
    begun = float(moment)
    time.sleep(max(0.0, begun - time.perf_counter()))
    processor = time.process_time()
    call()
    return Taken(time.perf_counter() - begun, time.process_time() - processor)


def run_rank(rank: int, world_size: int, rounds: int, folder: Path, end: Connection) -> None:
    """What each side took, by side and round."""
    torch.set_num_threads(1)
    sys.stdout = (folder / f"shown-{rank}").open("w")
    if world_size > 1:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(folder / "store"), world_size),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=120),
        )
    found: dict[str, list[Taken]] = {name: [] for name in SIDES}
    drawn = random.Random(0)
    with closing(Bench(rank, world_size, folder)) as bench:
        for count in range(SETTLING + rounds):
            for name in drawn.sample(SIDES, len(SIDES)):
                taken = bench.side(name)
                if count >= SETTLING:
                    found[name].append(taken)
        end.send(found)
        end.recv()


def on_ranks(world_size: int, rounds: int) -> dict[str, list[Taken]]:
    """By side and round: seconds of the slowest rank, and of processors on all of them."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="bench-overhead.") as name:
        ends, processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = rank, world_size, rounds, Path(name), theirs
            process = context.Process(target=run_rank, args=arguments)
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        answers = [end.recv() for end in ends]
        for end in ends:
            end.send(None)
        for process in processes:
            process.join()
    return {
        side: [
            Taken(max(each.wall for each in ranks), sum(each.processor for each in ranks))
            for ranks in zip(*(answer[side] for answer in answers), strict=True)
        ]
        for side in SIDES
    }


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Median of the ratios of neighbours, and the range that holds it with 95 %."""
    ratios = sorted(mine / theirs for mine, theirs in zip(one, other, strict=True))
    margin, middle = round(0.98 * math.sqrt(len(ratios))), len(ratios) // 2
    return {
        "ratio": statistics.median(ratios),
        "least": ratios[max(0, middle - margin)],
        "most": ratios[min(len(ratios) - 1, middle + margin)],
    }


def main() -> int:
    """Measure, and print a line a pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    good = True
    for ranks in options.ranks:
        found = on_ranks(ranks, options.rounds)
        found["epoch"] = [
            Taken(*(0.9 * most + 0.1 * tenth for most, tenth in zip(one, other, strict=True)))
            for one, other in zip(found["trained"], found["audited"], strict=True)
        ]
        for one, other, limit in PAIRS:
            for clock in Taken._fields:
                mine, theirs = ([getattr(each, clock) for each in found[side]] for side in (one, other))
                figures = ratio(mine, theirs)
                medians = [1e3 * statistics.median(values) for values in (mine, theirs)]
                result[f"{ranks} {one} / {other} {clock}"] = {**figures, "milliseconds": medians}
                judged = limit if clock == "wall" else None
                fine = judged is None or figures["ratio"] <= judged
                good = good and fine
                said = "" if judged is None else f"  at most {judged:g}{'' if fine else '  MISSED'}"
                print(
                    f"{ranks} rank{'s' if ranks > 1 else ' '} {clock:9} {one:>10} / {other}:"
                    f"{medians[0]:8.2f} ms /{medians[1]:8.2f} ms {figures['ratio']:7.3f} "
                    f"({figures['least']:.3f} to {figures['most']:.3f}){said}",
                    flush=True,
                )
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
