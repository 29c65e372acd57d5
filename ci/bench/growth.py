"""Is growing worth it? The host alone, all seeds from the start, a controller that draws, and the heuristic.

    .venv/bin/python ci/bench/growth.py [--tasks digits,pydoc] [--seeds N] [--epochs N]
        [--policy RUN] [--json FILE] [--figure FILE]

`--policy`: the folder of a run of `esper train --controller ppo` on that one task, whose policy is compared,
too, and how it was learned is shown beside; its seeds are none of those that it is compared by.

Equal epochs and seeds, each task's preset, one process, one thread. Accuracy, in points, and loss are means
over a run's last five epochs, as those of one epoch move by some points. A row is the mean over the seeds and
its standard error. Runs of one seed begin with the same host and see the same data in the same order, so what
one way is ahead of another by is the mean of their differences seed by seed, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import torch

from esper.cli.policy import LESSONS
from esper.control import IdleController
from esper.distributed.growth import birth_generator
from esper.lifecycle import Stage
from esper.training import (
    TrainConfig,
    Trainer,
    build_controller,
    build_model,
    build_task,
    load_policy,
    preset,
)
from esper.training.environments import fresh_policy
from esper.training.policies import NAME
from esper.training.tasks import TaskName

WAYS = ("none", "oracle", "random", "heuristic", "ppo")
TITLES = {
    "none": "host alone",
    "oracle": "all seeds from the start",
    "random": "random controller",
    "heuristic": "heuristic controller",
    "ppo": "learned policy",
}
LAST = 5  # epochs


class Run(NamedTuple):
    """What one run came to."""

    accuracy: float  # points
    loss: float
    added: int  # parameters
    seconds: float


def train(task: TaskName, way: str, seed: int, epochs: int | None, policy: Path | None) -> Run:
    """One run."""
    named = "none" if way == "oracle" else way
    settings = {**preset(task), "controller": named, "seed": seed}
    config = TrainConfig.from_dict(settings if epochs is None else {**settings, "epochs": epochs})
    model = build_model(config)
    host = sum(parameter.numel() for parameter in model.parameters())
    if way == "oracle":
        grow_all(model, config)
    learned = None
    if way == "ppo":
        assert policy is not None
        learned = fresh_policy(config)
        load_policy(policy / NAME, learned)
    controller = IdleController() if way == "oracle" else build_controller(config, learned)
    begun = time.perf_counter()
    with Trainer(model, build_task(config), controller, config) as trainer:
        history = trainer.run()
    seconds = time.perf_counter() - begun
    last = history.epochs[-LAST:]
    return Run(
        statistics.fmean(result.accuracy for result in last),
        statistics.fmean(result.loss for result in last),
        sum(parameter.numel() for parameter in model.parameters()) - host,
        seconds,
    )


def grow_all(model: Any, config: TrainConfig) -> None:
    """Put the heuristic's first blueprint into every slot, for good."""
    blueprint = config.heuristic.blueprints[0]
    for slot_id, slot in model.slots.items():
        slot.commit(blueprint, slot.prepare(blueprint, birth_generator(config.seed, slot_id, 1)))
        while slot.stage is not Stage.FOSSILIZED:
            slot.advance()
            while slot.record().ticks_left:
                model.tick()


def compared(task: TaskName, seeds: int, epochs: int | None, policy: Path | None) -> dict[str, list[Run]]:
    """The runs of each way, one a seed."""
    ways = WAYS if policy is not None else WAYS[:-1]
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for seed in range(seeds):
        for way in ways:
            run = train(task, way, seed, epochs, policy)
            runs[way].append(run)
            sys.stderr.write(f"{task} {way} seed {seed}: {run}\n")
    return runs


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def rows(task: TaskName, runs: dict[str, list[Run]]) -> Iterator[str]:
    """The table, in Markdown."""
    yield f"| {task} | accuracy (points) | loss | parameters added | seconds |"
    yield "|---|---|---|---|---|"
    for way, ones in runs.items():
        accuracy, loss, added, seconds = (
            spread([float(getattr(one, name)) for one in ones]) for name in Run._fields
        )
        yield (
            f"| {TITLES[way]} | {accuracy[0]:.2f} +- {accuracy[1]:.2f} | {loss[0]:.4f} +- {loss[1]:.4f} "
            f"| {added[0]:.0f} | {seconds[0]:.1f} |"
        )


def leads(runs: dict[str, list[Run]]) -> Iterator[str]:
    """By how much the controllers are ahead, in points of accuracy."""
    for way in ("heuristic", "ppo"):
        for other in ("none", "oracle", "random"):
            if way in runs:
                pairs = zip(runs[way], runs[other], strict=True)
                mean, error = spread([one.accuracy - against.accuracy for one, against in pairs])
                yield f"{TITLES[way]} over {TITLES[other]}: {mean:+.2f} +- {error:.2f} points"


def draw(found: dict[TaskName, dict[str, list[Run]]], policy: Path | None, path: Path) -> None:
    """Accuracy by way, with error bars; each run a point. And how the policy came to be."""
    from matplotlib.figure import Figure

    parts = len(found) + (policy is not None)
    figure = Figure(figsize=(4.5 * parts, 3.6), layout="constrained")
    every = list(figure.subplots(1, parts, squeeze=False)[0])
    if policy is not None:
        lessons = [json.loads(line) for line in (policy / LESSONS).read_text().splitlines()]
        numbers = [lesson["number"] for lesson in lessons]
        axes = every[-1]
        axes.set_title(f"while it is learned ({lessons[0]['episodes']} runs an update)")
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
        for side, name, label, color in (
            (axes, "reward", "mean reward of a run", "#225ea8"),
            (axes.twinx(), "accuracy", "mean accuracy at a run's end (points)", "#41b6c4"),
        ):
            side.plot(numbers, [lesson[name] for lesson in lessons], "o-", color=color, markersize=4)
            side.set_ylabel(label, color=color)
    for axes, (task, runs) in zip(every, found.items(), strict=False):
        for place, ones in enumerate(runs.values()):
            values = [one.accuracy for one in ones]
            mean, error = spread(values)
            axes.plot([place] * len(values), values, "o", color="#7fcdbb", markersize=4, zorder=1)
            axes.errorbar(place, mean, error, fmt="_", color="#225ea8", markersize=18, capsize=5, zorder=2)
        axes.set_xticks(range(len(runs)), [fill(TITLES[way], 12) for way in runs], fontsize=8)
        axes.set_xlim(-0.6, len(runs) - 0.4)
        axes.set_title(str(task))
        axes.set_ylabel("accuracy (points)")
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Train them all and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="digits,pydoc")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--policy", type=Path, metavar="RUN")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[TaskName, dict[str, list[Run]]] = {}
    for task in map(TaskName, options.tasks.split(",")):
        found[task] = compared(task, options.seeds, options.epochs, options.policy)
        print("\n".join([*rows(task, found[task]), "", *leads(found[task]), ""]))
    if options.json is not None:
        plain = {
            task: {way: [one._asdict() for one in ones] for way, ones in runs.items()}
            for task, runs in found.items()
        }
        options.json.write_text(json.dumps(plain, indent=1) + "\n")
    if options.figure is not None:
        draw(found, options.policy, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
