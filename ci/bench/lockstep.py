"""What lockstep costs: a collective at one rank, and a step of digits training at four, with it and without.

    .venv/bin/python ci/bench/lockstep.py [--rounds N] [--json FILE]

Blocks in each state alternate within one run, so that the machine's drift meets all; medians with their
spread (10th to 90th percentile) are printed, by the wall clock and by the calling thread's CPU time. A floor
is measured beside: the bounce of torch's dispatcher through a Python kernel that does nothing.

The steps of each state are those of four ranks of its own, which wait while the others run: a process that
changed its state would pay for the change, since an interpreter whose types are patched forgets what it knows
of them, and a program under lockstep never changes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_group

from esper.distributed.replicate import replicate
from esper.lockstep.rank.intercept import Interception
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.ledger import Ledger
from esper.training import TrainConfig, build_model
from esper.training.epoch import train_on
from esper.training.optimizer import make_optimizer
from esper.training.tasks import Batch, load_digits_task

CALLS = 400
RANKS = 4
BLOCK = 8  # steps between two changes
GENERATIONS = 8
SETTLING = 4  # rounds of blocks before the first that counts
STATES = ("bare", "empty kernel", "recorded")
# A collective waits for threads of gloo, which wake sooner or later; the caller's own time is steadier.
CLOCKS = {"wall clock": time.perf_counter, "CPU of the calling thread": time.thread_time}
Times = dict[str, dict[str, list[float]]]  # by clock and state


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and percentiles in microseconds."""
    ordered = sorted(seconds)
    tenths = statistics.quantiles(ordered, n=10)
    return {"median": statistics.median(ordered) * 1e6, "p10": tenths[0] * 1e6, "p90": tenths[-1] * 1e6}


class Switch:
    """Puts a process into one of the states that are compared."""

    def __init__(self, run_dir: Path, rank: int, world_size: int) -> None:
        self._interception = Interception(Recorder(Ledger(run_dir, rank, world_size)))

    @contextmanager
    def __call__(self, state: str) -> Iterator[None]:
        if state == "recorded":
            self._interception.install()
        library = empty_kernel() if state == "empty kernel" else None
        try:
            yield
        finally:
            if state == "recorded":
                self._interception.uninstall()
            if library is not None:
                library._destroy()


def empty_kernel() -> Any:
    """A Python kernel for all_reduce that does nothing but redispatch: what any interception in Python
    costs.
    """
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
    overload = torch.ops.c10d.allreduce_.default
    library: Any = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
    library.impl(
        overload,
        lambda keys, *args: overload.redispatch(keys & below, *args),
        "BackendSelect",
        with_keyset=True,
    )
    return library


def collective(rounds: int, run_dir: Path) -> Times:
    """Seconds of one all_reduce at one rank."""
    dist.init_process_group("gloo", store=FileStore(str(run_dir / "one"), 1), rank=0, world_size=1)
    tensor, switch, found = torch.ones(1), Switch(run_dir, 0, 1), no_times()
    for state in itertools.chain.from_iterable(itertools.repeat(STATES, rounds)):
        with switch(state):
            for _ in range(20):
                dist.all_reduce(tensor)
            for _ in range(CALLS):
                clock = Clock()
                dist.all_reduce(tensor)
                clock.stop(found, state)
    dist.destroy_process_group()
    return found


def steps(rank: int, state: str, run_dir: Path, orders: Connection) -> None:
    """In a rank of one state: a block of training steps for each order, answered by the mean of a step's
    times.
    """
    torch.set_num_threads(1)
    folder = run_dir / state.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    dist.init_process_group(
        "gloo", store=FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS
    )
    config = TrainConfig()
    task = load_digits_task(batch_size=config.batch_size, seed=0, rank=rank, world_size=RANKS)
    batches = list(task.train_batches(1))

    def blocks() -> Iterator[Batch]:
        """Batches, and the clock: a step begins where its batch is taken and ends where the next one is."""
        following = itertools.cycle(batches)
        while orders.recv():
            dist.barrier()
            yield next(following)  # the first finds the processor's caches cold
            found, clock = no_times(), Clock()
            yield from itertools.islice(following, BLOCK)
            clock.stop(found, state, BLOCK)
            orders.send([found[of][state][0] for of in CLOCKS])

    with Switch(folder, rank, RANKS)(state):
        model = replicate(build_model(config), _get_default_group())
        optimizer = make_optimizer(model.parameters(), config.optimizer)
        train_on(model, blocks(), optimizer, clip=config.optimizer.clip, after_backward=lambda: None)
    os._exit(0)


def training(rounds: int, run_dir: Path) -> Times:
    """Seconds of a digits step at four ranks: means over the ranks, since they end each step together.

    Two sets of ranks in one state differ by some per cent for as long as they live (where their memory lies),
    so there are `GENERATIONS` of them.
    """
    means = no_times()
    for generation in range(GENERATIONS):
        folder = run_dir / f"generation{generation}"
        folder.mkdir()
        one = lifetime(max(1, rounds // GENERATIONS), folder, Random(generation))
        for of, state in itertools.product(CLOCKS, STATES):
            means[of][state] += one[of][state]
    return means


def lifetime(rounds: int, run_dir: Path, orders: Random) -> Times:
    """Of one set of ranks in each state."""
    context = get_context("fork")
    ranks: dict[str, list[Connection]] = {state: [] for state in STATES}
    processes = []
    for state, rank in itertools.product(STATES, range(RANKS)):
        ours, theirs = context.Pipe()
        process = context.Process(target=steps, args=(rank, state, run_dir, theirs))
        process.start()
        theirs.close()  # so that the end of a rank is seen here
        ranks[state].append(ours)
        processes.append(process)
    means = no_times()
    for count in range(SETTLING + rounds):
        for state in orders.sample(STATES, len(STATES)):
            for one in ranks[state]:
                one.send(True)
            found = [one.recv() for one in ranks[state]]
            if count >= SETTLING:
                for of, times in zip(CLOCKS, zip(*found, strict=True), strict=True):
                    means[of][state].append(statistics.fmean(times))
    for one in itertools.chain.from_iterable(ranks.values()):
        one.send(False)
    for process in processes:
        process.join()
    return means


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._begun = [read() for read in CLOCKS.values()]

    def stop(self, found: Times, state: str, steps: int = 1) -> None:
        """Add the seconds since then, by each clock, divided by `steps`."""
        for (of, read), begun in zip(CLOCKS.items(), self._begun, strict=True):
            found[of][state].append((read() - begun) / steps)


def no_times() -> Times:
    return {of: {state: [] for state in STATES} for of in CLOCKS}


def compare(times: dict[str, list[float]], state: str) -> dict[str, float]:
    """What `state` adds to the bare blocks beside its own, and its ratio to them: medians, and the range
    that holds the ratio's median with 95 % (order statistics).
    """
    pairs = list(zip(times[state], times["bare"], strict=True))
    ratios = sorted(one / bare for one, bare in pairs)
    margin = round(0.98 * math.sqrt(len(ratios)))
    middle = len(ratios) // 2
    return {
        "added_us": statistics.median(one - bare for one, bare in pairs) * 1e6,
        "ratio": statistics.median(ratios),
        "least": ratios[max(0, middle - margin)],
        "most": ratios[min(len(ratios) - 1, middle + margin)],
    }


def report(what: str, times: Times) -> dict[str, Any]:
    """Print the figures of one part, and return them."""
    result: dict[str, Any] = {}
    for of in CLOCKS:
        print(f"{what}, {of}")
        for state in STATES:
            figures = spread(times[of][state]) | compare(times[of], state)
            result[f"{of}, {state}"] = figures
            print(
                f"  {state:13}{figures['median']:9.1f} us ({figures['p10']:.1f} to {figures['p90']:.1f})"
                f"{figures['added_us']:+8.1f} us   ratio {figures['ratio']:.4f}"
                f" ({figures['least']:.4f} to {figures['most']:.4f})"
            )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300, help="blocks of 8 steps in each state")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # The ranks are forked first: gloo's threads of the one-rank part must not be there then.
        train = training(options.rounds, Path(folder))
        one = collective(max(1, options.rounds // 30), Path(folder))
    result = {
        "collective": report("all_reduce at one rank", one),
        "step": report(f"digits step at {RANKS} ranks", train),
    }
    added = max(result["collective"][f"{of}, recorded"]["added_us"] for of in CLOCKS)
    share = result["step"]["wall clock, recorded"]["ratio"]
    print(f"a collective: {added:.1f} us more by the worse clock (at most 25)")
    print(f"a step: {share:.4f} of a bare one (at most 1.01)")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if added <= 25 and share <= 1.01 else 1


if __name__ == "__main__":
    sys.exit(main())
