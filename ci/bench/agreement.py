"""What agreeing costs on four ranks: an exchange, an epoch, a growth step, a rank that is not there.

    .venv/bin/python ci/bench/agreement.py [--rounds N] [--json FILE]

What is compared runs in turn on the same ranks, begun together, so that the machine's drift meets both. A
time is that of the slowest rank. A ratio is the median of the ratios of neighbours, with the range that holds
it with 95 % (order statistics); a side against itself says how far to trust the rest.

An epoch's limit is against the same loop as one writes it without an agreement (`Unchecked`), which says what
the agreement costs whoever needs its results. `silent` is that loop without them: it exchanges nothing but
gradients, so its ranks know neither their accuracy nor each other's statistics. Two rounds of nothing beside
it are what no agreed epoch can do without.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from esper.control import Decision, EpochSignals, Germinate
from esper.distributed import Agreement, AgreementConfig, AgreementRecord
from esper.distributed.replicate import Replica
from esper.distributed.rows import ROW_BYTES
from esper.errors import AgreementDeadline
from esper.lifecycle import MetricSums, SlotMeasurement, SlotRecord, Stage
from esper.training import TrainConfig, Trainer, build_model
from esper.training.batchnorm import average_statistics
from esper.training.tasks import ShardedTask, load_digits_task

RANKS = 4
SLOTS = 16
DEADLINE = 1.0
LATE = 0.5
SETTLING = 3
PAUSE = 0.005  # seconds from a measurement's announcement to its beginning
Body = Callable[[int, int], dict[str, Any]]


class Waiting:
    """A controller that never does anything."""

    def decide(self, signals: EpochSignals) -> Decision:
        """Wait."""
        return Decision()


class Silent(Trainer):
    """The same loop, in which no rank says anything to another beside its gradients: what it evaluates is a
    model of its own, on a part of the data.
    """

    def start(self, epoch: int, module: Any = None) -> None:
        """Nothing."""

    def wrap(self) -> nn.Module:
        """Of which gradients go alone."""
        module = super().wrap()
        if isinstance(module, Replica):
            module.take_along = lambda tensors: None  # type: ignore[method-assign]
        return module

    def average_buffers(self) -> None:
        """Nothing."""

    def audit(self, where: str) -> None:
        """Nothing."""

    def agree(self, epoch: int, train: MetricSums, test: MetricSums, measurements: Any) -> Any:
        """With itself alone."""
        record = AgreementRecord(
            run_id=0,
            config_digest=0,
            epoch=epoch,
            steps=0,
            slots=self.model.records(),
            growth_rng=0,
            fingerprint=0,
            train=train,
            test=test,
            measurements=measurements,
            next_batches=self.task.announce(epoch) or 0,
        )
        return Agreement(None).exchange(record)


class Unchecked(Silent):
    """The same loop as it is written without an agreement, with the same results: BatchNorm's statistics are
    averaged, the metrics summed, each by one all_reduce, and nothing is checked.
    """

    def average_buffers(self) -> None:
        """Over ranks."""

        def mean_(values: torch.Tensor) -> None:
            dist.all_reduce(values)
            values /= RANKS

        average_statistics(self.model, mean_)

    def agree(self, epoch: int, train: MetricSums, test: MetricSums, measurements: Any) -> Any:
        """As all ranks: by their sums."""
        sums = torch.tensor([*astuple(train), *astuple(test)], dtype=torch.float64)
        dist.all_reduce(sums)
        values = sums.tolist()
        return super().agree(epoch, _metrics(values[:3]), _metrics(values[3:]), measurements)


def _metrics(values: Sequence[float]) -> MetricSums:
    return MetricSums(values[0], int(values[1]), int(values[2]))


class Endless:
    """Digits of which nobody knows how many there are."""

    def __init__(self, inner: ShardedTask) -> None:
        self.inner = inner
        self.train_batches, self.test_batches = inner.train_batches, inner.test_batches

    def announce(self, epoch: int) -> None:
        """Unknown."""


def together(call: Callable[[], object]) -> float:
    """Collective: every rank, same order. Seconds from a common beginning to this rank's end.

    That is a moment on the clock, which ranks of one machine share: they leave a barrier up to 1 ms apart, as
    long as some of what is measured takes.
    """
    moment = torch.tensor([time.perf_counter() + PAUSE], dtype=torch.float64)
    dist.broadcast(moment, src=0)
    begun = float(moment)
    time.sleep(max(0.0, begun - time.perf_counter()))
    call()
    return time.perf_counter() - begun


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Collective: every rank, same order. Seconds of each side, after some rounds more.

    In an order drawn anew each round: a side is slower after one that leaves more behind.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    drawn = random.Random(0)
    for count in range(SETTLING + rounds):
        for name in drawn.sample(list(sides), len(sides)):
            seconds = together(sides[name])
            if count >= SETTLING:
                found[name].append(seconds)
    return found


def exchanges(rank: int, rounds: int) -> dict[str, Any]:
    """One exchange of sixteen slots, as many bytes gathered bare, and what the earlier system did."""
    stages = (Stage.DORMANT, Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED)
    slots = tuple(
        SlotRecord(f"r0c{at}", stages[at % 4], "conv_light" if at % 4 else None, 1, 3, 0.5, 1.0, 1, 2)
        for at in range(SLOTS)
    )
    measured = tuple(
        SlotMeasurement(0.1 * at, 1.0, rank * 0.5) if at % 4 else SlotMeasurement() for at in range(SLOTS)
    )
    record = AgreementRecord(
        run_id=1,
        config_digest=2,
        epoch=3,
        steps=4,
        slots=slots,
        growth_rng=5,
        fingerprint=6,
        measurements=measured,
    )
    mine, rows = torch.zeros(ROW_BYTES, dtype=torch.uint8), torch.zeros(RANKS * ROW_BYTES, dtype=torch.uint8)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    group = dist.new_group()

    def broadcasts() -> None:
        for slot in slots:
            held = [{"slot": slot.slot_id, "passed": True, "score": 0.5}] if rank == 0 else [None]
            dist.broadcast_object_list(held, src=0, group=group)

    with Agreement(dist.group.WORLD, AgreementConfig(deadline=60.0)) as agreement:
        sides = {
            "exchange": lambda: agreement.exchange(record),
            "all_gather": lambda: gather(rows, mine, group=group),
            "all_gather again": lambda: gather(rows, mine, group=group),
            "broadcasts": broadcasts,
        }
        return in_turn(sides, rounds)


def epochs(rank: int, rounds: int) -> dict[str, Any]:
    """An epoch of digits: agreed, unchecked, without a word, and with as many batches as there happen to be.

    And what two rounds between the ranks take that carry nothing, as an agreed epoch has at the least.
    """
    config = TrainConfig.from_dict({"epochs": 10**6, "host": {"width": 8, "blocks": 2}})
    task = load_digits_task(batch_size=config.batch_size, seed=0, rank=rank, world_size=RANKS)
    kinds: dict[str, tuple[type[Trainer], Any]] = {
        "agreed": (Trainer, task),
        "unchecked": (Unchecked, task),
        "unchecked again": (Unchecked, task),
        "silent": (Silent, task),
        "no length": (Trainer, Endless(task)),
    }
    trainers = {
        name: kind(build_model(config), data, Waiting(), config, group=dist.group.WORLD)
        for name, (kind, data) in kinds.items()
    }
    number = dict.fromkeys(trainers, 0)

    def epoch_of(name: str) -> Callable[[], object]:
        def run() -> None:
            number[name] += 1
            trainers[name].run_epoch(number[name])

        return run

    for name, trainer in trainers.items():
        length = -1 if name == "no length" else task.announce(1)
        trainer._announced = tuple((each, length) for each in range(RANKS))
    copies, rows = torch.zeros(RANKS), torch.zeros(RANKS)

    def two_rounds() -> None:
        for _ in range(2):
            dist.all_to_all_single(rows, copies)

    return in_turn({**{name: epoch_of(name) for name in trainers}, "two rounds": two_rounds}, rounds)


def growth(rank: int, rounds: int) -> dict[str, Any]:
    """Sixteen times the smallest host: a germination up to the first step, and DDP built bare.

    It is built around the model that has grown, and broadcasts rank 0's, as a loop without an agreement would
    have it that has put in a seed. Building that seed, which is larger than the host, is not part of that; it
    is of what stands beside it.
    """
    config = TrainConfig.from_dict({"epochs": 10**6, "host": {"width": 64, "blocks": 3}})
    task = load_digits_task(batch_size=config.batch_size, seed=0, rank=rank, world_size=RANKS)
    trainer = Trainer(build_model(config), task, Waiting(), config, group=dist.group.WORLD)
    slot = trainer.model.slots["r0c2"]
    group = dist.group.WORLD

    def grow() -> None:
        agreed = trainer.agree(1, MetricSums(), MetricSums(), ())
        trainer.decide(agreed)

        def step() -> None:
            trainer.growth.apply(Decision((Germinate("r0c2", "conv_light"),)), trainer._signals, agreed)
            trainer.start(2, trainer.wrap())

        seconds.append(together(step))

    def vacate() -> None:
        slot.prune(0)
        while slot.stage is not Stage.DORMANT:
            slot.tick()

    def bare() -> None:
        DistributedDataParallel(trainer.model, process_group=group)

    def build() -> None:
        slot.commit("conv_light", slot.prepare("conv_light", torch.Generator()))

    def build_and_wrap() -> None:
        build()
        bare()

    seconds: list[float] = []
    names = ("bare wrap", "bare wrap again", "built and wrapped")
    found: dict[str, list[float]] = {"growth": seconds, **{name: [] for name in names}}
    build()
    for _ in range(rounds + SETTLING):
        found["bare wrap"].append(together(bare))
        vacate()
        grow()
        found["bare wrap again"].append(together(bare))
        vacate()
        found["built and wrapped"].append(together(build_and_wrap))
    parameters = sum(each.numel() for each in trainer.model.parameters())
    return {"parameters": parameters, **{name: values[SETTLING:] for name, values in found.items()}}


def missing(rank: int, rounds: int) -> dict[str, Any]:
    """Seconds past the deadline until this rank raised; the last rank, or the first, stays away."""
    found: dict[str, list[float]] = {}
    for away in (RANKS - 1, 0):
        agreement = Agreement(dist.group.WORLD, AgreementConfig(deadline=DEADLINE))
        dist.barrier()
        begun = time.perf_counter()
        if rank == away:
            time.sleep(DEADLINE + 0.8)
            found[f"rank {away} missing"] = [0.0]
        else:
            try:
                agreement.exchange(
                    AgreementRecord(
                        run_id=1, config_digest=2, epoch=3, steps=4, slots=(), growth_rng=5, fingerprint=6
                    )
                )
            except AgreementDeadline:
                found[f"rank {away} missing"] = [time.perf_counter() - begun - DEADLINE]
        agreement.close()
        dist.barrier()
    return found


def on_ranks(body: Body, rounds: int) -> dict[str, list[float]]:
    """Each measurement of the slowest rank."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=run_rank, args=(body, rank, rounds, Path(folder) / "store", theirs)
            )
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
        name: [max(values) for values in zip(*(answer[name] for answer in answers), strict=True)]
        if isinstance(answers[0][name], list)
        else [float(answers[0][name])]
        for name in answers[0]
    }


def run_rank(body: Body, rank: int, rounds: int, store: Path, end: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(store), RANKS),  # type: ignore[attr-defined]
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=120),
    )
    end.send(body(rank, rounds))
    end.recv()


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Median of the ratios of neighbours, and the range that holds it with 95 %."""
    ratios = sorted(mine / theirs for mine, theirs in zip(one, other, strict=True))
    margin, middle = round(0.98 * math.sqrt(len(ratios))), len(ratios) // 2
    return {
        "ratio": statistics.median(ratios),
        "least": ratios[max(0, middle - margin)],
        "most": ratios[min(len(ratios) - 1, middle + margin)],
    }


# What is compared: the measurement, both sides, and the most (or, below 0, the least) that the ratio may be.
PAIRS = (
    ("exchange", "all_gather again", "all_gather", None),
    ("exchange", "exchange", "all_gather", 1.3),
    ("exchange", "broadcasts", "exchange", -10.0),
    ("epoch", "unchecked again", "unchecked", None),
    ("epoch", "agreed", "unchecked", 1.02),
    ("epoch", "agreed", "silent", None),
    ("epoch", "two rounds", "silent", None),
    ("epoch", "no length", "agreed", None),
    ("growth", "bare wrap again", "bare wrap", None),
    ("growth", "growth", "bare wrap", 1.3),
    ("growth", "growth", "built and wrapped", None),
)
BODIES: dict[str, tuple[Body, float]] = {
    "exchange": (exchanges, 4.0),
    "epoch": (epochs, 0.4),
    "growth": (growth, 0.5),
    "missing": (missing, 1.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=BODIES, default=list(BODIES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {
        name: on_ranks(BODIES[name][0], max(5, round(BODIES[name][1] * options.rounds)))
        for name in options.only
    }
    result: dict[str, Any] = {"ranks": RANKS, "seconds": {}, "ratios": {}}
    good = True
    for name, sides in found.items():
        for side, values in sides.items():
            result["seconds"][f"{name}, {side}"] = statistics.median(values)
    for name, one, other, limit in PAIRS:
        if name not in found:
            continue
        figures = ratio(found[name][one], found[name][other])
        result["ratios"][f"{one} / {other}"] = figures
        fine = limit is None or (figures["ratio"] <= limit if limit > 0 else figures["ratio"] >= -limit)
        good = good and fine
        said = "" if limit is None else f"  at most {limit:g}" if limit > 0 else f"  at least {-limit:g}"
        medians = [1e3 * statistics.median(found[name][side]) for side in (one, other)]
        print(
            f"{one:>16} / {other:16}{medians[0]:9.3f} ms /{medians[1]:9.3f} ms {figures['ratio']:9.3f} "
            f"({figures['least']:.3f} to {figures['most']:.3f}){said}{'' if fine else '  MISSED'}",
            flush=True,
        )
    for side, values in found.get("missing", {}).items():
        good = good and max(values) <= LATE
        said = "" if max(values) <= LATE else "  MISSED"
        print(f"{side}: {max(values):.3f} s past the deadline (at most {LATE}){said}")
    if "growth" in found:
        print(f"growth step and bare wrap of {found['growth']['parameters'][0]:.0f} parameters")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
