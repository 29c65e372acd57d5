"""What lockstep costs: a collective at one rank, and a step of digits training at four, with it and without.

    .venv/bin/python ci/bench/lockstep.py [--rounds N] [--json FILE]

Blocks in each state alternate within one run, in the same processes, so that the machine's drift and the
place of their memory meet all; medians with their spread (10th to 90th percentile) are printed, by the wall
clock and by the calling thread's CPU time. A floor is measured beside, the bounce of torch's dispatcher
through a Python kernel that does nothing, and the noise: the bare state a second time.

While ranks are recorded this process watches them, as `esper.lockstep run` would, and takes processor time.
Between the states only torch's kernels and the model's forward change: what is patched in torch's classes
stays, since an interpreter whose types are patched forgets what it knows of them, and a program under
lockstep never changes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import selectors
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
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_group
from torch.nn.parallel import DistributedDataParallel

from esper.distributed.replicate import replicate
from esper.lockstep.proof.finding import Patience
from esper.lockstep.rank.intercept import Interception
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.ledger import Ledger
from esper.lockstep.run.apart import ApartWatch
from esper.lockstep.run.supervisor import Supervisor
from esper.training import TrainConfig, build_model
from esper.training.epoch import train_on
from esper.training.optimizer import make_optimizer
from esper.training.tasks import Batch, load_digits_task

CALLS = 400
RANKS = 4
BLOCK = 8  # steps between two changes
SETTLING = 2  # steps after a change that don't count
GENERATIONS = 4
FIRST_ROUNDS = 4  # don't count
STATES = ("bare", "bare again", "empty kernel", "recorded")
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
        self._bare_forward: Any = DistributedDataParallel.forward
        interception = Interception(Recorder(Ledger(run_dir, rank, world_size)))
        interception.install()
        interception.begin("bench")
        self._kernels = interception.kernels
        self._kernels.uninstall()

    @contextmanager
    def __call__(self, state: str, model: DistributedDataParallel | None = None) -> Iterator[None]:
        library = empty_kernel() if state == "empty kernel" else None
        if state == "recorded":
            self._kernels.install()
            self._kernels.attach()
        elif model is not None:
            vars(model)["forward"] = MethodType(self._bare_forward, model)
        try:
            yield
        finally:
            if state == "recorded":
                self._kernels.uninstall()
            elif model is not None:
                del vars(model)["forward"]
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
    orders = Random(0)  # who follows whom matters: what a state leaves in the caches is its successor's
    for state in itertools.chain.from_iterable(orders.sample(STATES, len(STATES)) for _ in range(rounds)):
        with switch(state):
            for _ in range(20):
                dist.all_reduce(tensor)
            for _ in range(CALLS):
                clock = Clock()
                dist.all_reduce(tensor)
                clock.stop(found, state)
    dist.destroy_process_group()
    return found


def steps(rank: int, run_dir: Path, orders: Connection) -> None:
    """In a rank: for each state that is ordered a block of training steps, answered by the mean of a step's
    times.
    """
    torch.set_num_threads(1)
    switch = Switch(run_dir, rank, RANKS)
    dist.init_process_group(
        "gloo", store=FileStore(str(run_dir / "store"), RANKS), rank=rank, world_size=RANKS
    )
    config = TrainConfig()
    task = load_digits_task(batch_size=config.batch_size, seed=0, rank=rank, world_size=RANKS)
    batches = list(task.train_batches(1))
    model = replicate(build_model(config), _get_default_group())
    optimizer = make_optimizer(model.parameters(), config.optimizer)

    def blocks() -> Iterator[Batch]:
        """Batches, and the clock: a step begins where its batch is taken and ends where the next one is."""
        following = itertools.cycle(batches)
        while (state := orders.recv()) is not None:
            with switch(state, model):
                dist.barrier()
                yield from itertools.islice(following, SETTLING)
                found, clock = no_times(), Clock()
                yield from itertools.islice(following, BLOCK)
                clock.stop(found, state, BLOCK)
            orders.send([found[of][state][0] for of in CLOCKS])

    train_on(model, blocks(), optimizer, clip=config.optimizer.clip, after_backward=lambda: None)
    os._exit(0)


def training(rounds: int, run_dir: Path) -> tuple[Times, float]:
    """Seconds of a digits step at four ranks, means over the ranks, since they end each step together; and
    the seconds of CPU that watching them took for each.
    """
    means, watching = no_times(), []
    for generation in range(GENERATIONS):
        folder = run_dir / f"generation{generation}"
        folder.mkdir()
        times, seconds = lifetime(max(2, rounds // GENERATIONS), folder, Random(generation))
        watching.append(seconds)
        for of, state in itertools.product(CLOCKS, STATES):
            means[of][state] += times[of][state]
    return means, statistics.median(watching)


def lifetime(rounds: int, run_dir: Path, orders: Random) -> tuple[Times, float]:
    """Of one set of ranks."""
    context = get_context("fork")
    ranks: list[Connection] = []
    processes = []
    for rank in range(RANKS):
        ours, theirs = context.Pipe()
        process = context.Process(target=steps, args=(rank, run_dir, theirs))
        process.start()
        theirs.close()  # so that the end of a rank is seen here
        ranks.append(ours)
        processes.append(process)
    watch = Watch(run_dir, [process.pid or 0 for process in processes])
    means = no_times()
    for count in range(FIRST_ROUNDS + rounds):
        for state in orders.sample(STATES, len(STATES)):
            for one in ranks:
                one.send(state)
            if state == "recorded":
                watch.until_all_answer(ranks)
            found = [one.recv() for one in ranks]
            if count >= FIRST_ROUNDS:
                for of, times in zip(CLOCKS, zip(*found, strict=True), strict=True):
                    means[of][state].append(statistics.fmean(times))
    for one in ranks:
        one.send(None)
    for process in processes:
        process.join()
    return means, watch.cpu / ((FIRST_ROUNDS + rounds) * (SETTLING + BLOCK))


class Watch:
    """What `esper.lockstep run` does while its ranks run."""

    def __init__(self, run_dir: Path, pids: list[int]) -> None:
        patience = Patience(30.0, 30.0)
        self._supervisor = Supervisor(run_dir, pids, patience=patience)
        self._apart = ApartWatch(self._supervisor.view, pids, patience, self._supervisor.compiled_in_all)
        self.cpu = 0.0  # seconds

    def until_all_answer(self, ranks: list[Connection]) -> None:
        """Look at the ranks until all have sent something."""
        begun = time.thread_time()
        with selectors.EpollSelector() as selector:
            # One answer ends it, since they end together: `run` is woken by nothing that a healthy rank does.
            selector.register(ranks[0], selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in self._supervisor.wait(selector):
                    selector.unregister(key.fileobj)
                found = self._supervisor.poll() or self._supervisor.broken
                assert found is None, found
                self._apart.stuck(time.monotonic())
        self.cpu += time.thread_time() - begun


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
    parser.add_argument("--rounds", type=int, default=600, help="blocks of 8 steps in each state")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # The ranks are forked first: gloo's threads of the one-rank part must not be there then.
        train, watching = training(options.rounds, Path(folder))
        one = collective(max(1, options.rounds // 60), Path(folder))
    result = {
        "collective": report("all_reduce at one rank", one),
        "step": report(f"digits step at {RANKS} ranks", train),
    }
    result["step"]["watching_us"] = watching * 1e6
    print(f"watching them: {watching * 1e6:.1f} us of CPU a step")
    added = max(result["collective"][f"{of}, recorded"]["added_us"] for of in CLOCKS)
    share = result["step"]["wall clock, recorded"]["ratio"]
    print(f"a collective: {added:.1f} us more by the worse clock (at most 25)")
    print(f"a step: {share:.4f} of a bare one (at most 1.01)")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if added <= 25 and share <= 1.01 else 1


if __name__ == "__main__":
    sys.exit(main())
