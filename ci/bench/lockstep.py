"""What lockstep costs: a collective at one rank, and a step of digits training at four, with it and without.

    .venv/bin/python ci/bench/lockstep.py [--rounds N] [--json FILE]

Blocks with and without it alternate within one run, so that the machine's drift meets both; medians and
their spread (10th to 90th percentile) are printed. Floors are measured beside: the bounce of the dispatcher
through an empty Python kernel, and a collective without any.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from esper.control import HeuristicController
from esper.lockstep.intercept import Interception
from esper.lockstep.ledger import Ledger
from esper.lockstep.recorder import Recorder
from esper.training import TrainConfig, Trainer, build_model
from esper.training.tasks import load_digits_task

CALLS = 400
RANKS = 4


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and percentiles in microseconds."""
    ordered = sorted(seconds)
    tenths = statistics.quantiles(ordered, n=10)
    return {"median": statistics.median(ordered) * 1e6, "p10": tenths[0] * 1e6, "p90": tenths[-1] * 1e6}


def collective(rounds: int, run_dir: Path) -> dict[str, dict[str, float]]:
    """Microseconds of one all_reduce at one rank: bare, through an empty kernel, recorded."""
    dist.init_process_group("gloo", store=FileStore(str(run_dir / "one"), 1), rank=0, world_size=1)
    tensor = torch.ones(1)
    found: dict[str, list[float]] = {"bare": [], "empty kernel": [], "recorded": []}

    def block(name: str) -> None:
        for _ in range(20):
            dist.all_reduce(tensor)
        for _ in range(CALLS):
            begun = time.perf_counter()
            dist.all_reduce(tensor)
            found[name].append(time.perf_counter() - begun)

    interception = Interception(Recorder(Ledger(run_dir, 0, 1)))
    for _ in range(rounds):
        block("bare")
        with_kernel(lambda: block("empty kernel"))
        interception.install()
        block("recorded")
        interception.uninstall()
    dist.destroy_process_group()
    return {name: spread(seconds) for name, seconds in found.items()}


def with_kernel(body: Callable[[], None]) -> None:
    """Run `body` with a Python kernel for all_reduce that does nothing but redispatch."""
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
    overload = torch.ops.c10d.allreduce_.default
    library: Any = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
    library.impl(
        overload,
        lambda keys, *args: overload.redispatch(keys & below, *args),
        "BackendSelect",
        with_keyset=True,
    )
    try:
        body()
    finally:
        library._destroy()


def steps(rank: int, rounds: int, run_dir: Path, answer: Connection) -> None:
    """In a rank: seconds of each epoch's training, recorded and not in turn; answers with those of a step."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=FileStore(str(run_dir / "four"), RANKS), rank=rank, world_size=RANKS
    )
    config = TrainConfig.from_dict(
        {"optimizer": {"name": "adam", "lr": 0.01}, "heuristic": {"plateau_points": -200.0}}
    )
    task = load_digits_task(batch_size=config.batch_size, seed=0, rank=rank, world_size=RANKS)
    trainer = Trainer(
        build_model(config), task, HeuristicController(config.heuristic), config, group=dist.group.WORLD
    )
    interception = Interception(Recorder(Ledger(run_dir, rank, RANKS)))
    batches = task.announce(1)
    found: dict[str, list[float]] = {"off": [], "on": []}
    for epoch in range(1, 2 * rounds + 3):
        recorded = epoch % 2 == 0
        if recorded:
            interception.install()
        dist.barrier()
        begun = time.perf_counter()
        trainer.train_epoch(epoch)
        seconds = (time.perf_counter() - begun) / batches
        if recorded:
            interception.uninstall()
        if epoch > 2:
            found["on" if recorded else "off"].append(seconds)
    answer.send(found)
    trainer.close()
    os._exit(0)


def training(rounds: int, run_dir: Path) -> dict[str, Any]:
    """A step at four ranks with lockstep over one without: the ratio of neighbouring epochs, median and
    spread.
    """
    context = get_context("fork")
    ends, processes = [], []
    for rank in range(RANKS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=steps, args=(rank, rounds, run_dir, theirs))
        process.start()
        ends.append(ours)
        processes.append(process)
    found = [end.recv() for end in ends]
    for process in processes:
        process.join()
    pairs = [on / off for one in found for on, off in zip(one["on"], one["off"], strict=True)]
    return {
        "off": spread([seconds for one in found for seconds in one["off"]]),
        "on": spread([seconds for one in found for seconds in one["on"]]),
        "ratio of medians": statistics.median(found[0]["on"]) / statistics.median(found[0]["off"]),
        "ratio of neighbours": statistics.median(pairs),
        "quartiles of ratio": statistics.quantiles(pairs, n=4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # The ranks are forked first: gloo's threads of the one-rank part must not be there then.
        train = training(options.rounds, Path(folder))
        one = collective(options.rounds, Path(folder))
    added = one["recorded"]["median"] - one["bare"]["median"]
    result = {"collective_us": one, "added_us": added, "training_step": train}
    for name, figures in one.items():
        around = f"({figures['p10']:.1f} to {figures['p90']:.1f})"
        print(f"all_reduce at one rank, {name:13} {figures['median']:7.1f} us {around}")
    print(f"added by recording                     {added:7.1f} us (at most 25)")
    off, on = train["off"]["median"] / 1000, train["on"]["median"] / 1000
    print(f"digits step at {RANKS} ranks, off {off:.2f} ms, on {on:.2f} ms")
    low, middle, high = train["quartiles of ratio"]
    print(f"on / off, neighbouring epochs: {middle:.4f} (quartiles {low:.4f} to {high:.4f}; at most 1.01)")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if added <= 25 else 1


if __name__ == "__main__":
    sys.exit(main())
