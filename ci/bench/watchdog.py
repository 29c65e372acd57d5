"""How soon `lockstep.start()` says what is wrong, what torch alone says, and what watching costs.

    .venv/bin/python ci/bench/watchdog.py [--rounds N] [--faults NAME ...] [--torch SECONDS] [--cost SECONDS]
                                          [--json FILE]

In each round one of four ranks does something else than the others' `all_reduce`. Seconds are from that
moment to the sentence (the verdict's file, which is written before it is printed) and to the last
`LockstepError`; a rank that is only late is judged after the patience, 3 s here. Ranks are forked from a
process that has torch loaded, and their store is its, as under torchrun.

`--torch SECONDS`: the same once without lockstep, with a time-out of the group of so many seconds where
torch's default is 30 minutes; what it prints first, and when. `--cost SECONDS`: digits training at four ranks
with and without watching in turn, and the processor time of the watchdogs' threads alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.esper.lockstep.watchdog.jobs import Job, job, take_away  # noqa: E402

RANKS, GUILTY, CORES = 4, 2, 2
PATIENCE = 3.0
AT_MOST_PROVED, AT_MOST_SUSPECTED, AT_MOST_BEATS = 3.0, PATIENCE + 3.0, 0.002


@dataclass(frozen=True)
class Fault:
    kind: str
    body: str
    suspected: bool = False
    others: str = "dist.all_reduce(x)"


FAULTS = {
    "enters another collective": Fault("mismatch", "dist.broadcast(x, 0)"),
    "another reduce operation": Fault("mismatch", "dist.all_reduce(x, dist.ReduceOp.MAX)"),
    "another dtype": Fault("mismatch", "dist.all_reduce(x.int())"),
    "skips one": Fault("mismatch", "dist.barrier()"),
    "destroys the group": Fault("missing", "dist.destroy_process_group(); time.sleep(1000)"),
    "SIGKILL": Fault("crashed", "os.kill(os.getpid(), signal.SIGKILL)"),
    "SIGKILL within one": Fault(
        "crashed",
        "threading.Timer(0.05, lambda: (note.fault(), os.kill(os.getpid(), signal.SIGKILL))).start()",
        others="while True: dist.all_reduce(large)",
    ),
    "exits with 0": Fault("exited", "sys.exit(0)"),
    "exits with 5": Fault("exited", "os._exit(5)"),
    "raises": Fault("raised", "raise ValueError('boom')"),
    "SIGSTOP": Fault("frozen", "os.kill(os.getpid(), signal.SIGSTOP)", suspected=True),
    "sleeps": Fault("frozen", "time.sleep(1000)", suspected=True),
    "spins": Fault("stalled", "while True: pass", suspected=True),
    "keeps the GIL": Fault("stalled", "sum(__import__('itertools').repeat(0))", suspected=True),
    "waits in the store": Fault(
        "frozen", "dist.distributed_c10d._get_default_store().get('never')", suspected=True
    ),
}
PROGRAM = """
large = torch.ones(1 << 20)
for _ in range(20):
    dist.all_reduce(x)
if rank == {guilty}:
    time.sleep(0.2)  # the others wait
    note.fault()
    {body}
{others}
time.sleep(1000)
"""
BARE = """\
import os, signal, sys, threading, time
from datetime import timedelta
import torch
import torch.distributed as dist
from tests.esper.lockstep.watchdog.notes import note
dist.init_process_group("gloo", timeout=timedelta(seconds={seconds}))
rank = note.rank = dist.get_rank()
x = torch.ones(4)
def main():
    PROGRAM
try:
    main()
except BaseException as error:
    note.error(error)
    raise
"""
# In turn with and without; `note("cost", ...)` has seconds of a step by state, and those of the threads.
COST = """
import itertools, statistics
from esper.distributed.replicate import replicate
from esper.training import TrainConfig, build_model
from esper.training.epoch import train_on
from esper.training.optimizer import make_optimizer
from esper.training.tasks import load_digits_task
torch.set_num_threads(1)
lockstep.stop()
config = TrainConfig()
task = load_digits_task(batch_size=config.batch_size, seed=0, rank=rank, world_size=world)
following = itertools.cycle(list(task.train_batches(1)))
model = replicate(build_model(config), dist.group.WORLD)
optimizer = make_optimizer(model.parameters(), config.optimizer)

def cpu():
    found = 0
    for one in threading.enumerate():
        if one.name == "esper.lockstep watchdog":
            with open(f"/proc/self/task/{one.native_id}/schedstat") as file:
                found = int(file.read().split()[0]) / 1e9
    return found

def late(end):
    flag = torch.tensor([float(time.monotonic() > end)])
    dist.broadcast(flag, 0)
    return bool(flag[0])

def blocks():
    dog = lockstep.start(patience=60)  # its thread alone, once it has settled
    yield from itertools.islice(following, 100)
    end, used, begun, steps = time.monotonic() + SECONDS / 2, cpu(), time.perf_counter(), 0
    while not late(end):
        yield from itertools.islice(following, 20)
        steps += 20
    own, wall = cpu() - used, time.perf_counter() - begun
    assert dog.running
    dog.stop()
    dist.barrier()
    states, number, end = {"bare": [], "watched": []}, 0, time.monotonic() + SECONDS / 2
    while not late(end):
        for state in (("bare", "watched"), ("watched", "bare"))[number % 2]:
            dog = lockstep.start(patience=60) if state == "watched" else None
            dist.barrier()
            yield from itertools.islice(following, 10)
            begun = time.perf_counter()
            yield from itertools.islice(following, STEPS)
            taken = time.perf_counter() - begun
            if number:
                states[state].append(taken / STEPS)
            dist.barrier()
            if dog is not None:
                assert dog.running
                dog.stop()
            dist.barrier()
        number += 1
    note("cost", {"states": states, "own": own, "wall": wall, "steps": steps})

train_on(model, blocks(), optimizer, clip=config.optimizer.clip, after_backward=lambda: None)
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--faults", nargs="*", choices=list(FAULTS), default=list(FAULTS), metavar="NAME")
    parser.add_argument("--torch", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--cost", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds} must be an integer >= 1")
    result: dict[str, Any] = {"faults": {}}
    good = True
    for name in options.faults:
        figures = result["faults"][name] = named(FAULTS[name], options.rounds)
        if options.torch:
            figures["torch"] = alone(FAULTS[name], options.torch)
        good = good and figures["fine"]
        print(line(name, figures), flush=True)
    if options.cost:
        result["cost"] = cost(options.cost)
        good = good and result["cost"]["beats"] <= AT_MOST_BEATS
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


def named(fault: Fault, rounds: int) -> dict[str, Any]:
    """Of all rounds: seconds to the sentence and to the last error, and what went wrong."""
    sentences, raised, kinds = [], [], set()
    wrong = hangs = 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            body = PROGRAM.format(guilty=GUILTY, body=fault.body, others=fault.others)
            patience = PATIENCE if fault.suspected else 300.0
            try:
                done = job(Path(folder), body, ranks=RANKS, start=f"patience={patience}", shown=False)
            except subprocess.TimeoutExpired:
                hangs += 1
                continue
            try:
                (run,) = done.run_folders
                verdict = run / "verdict.json"
                found = json.loads(verdict.read_text())["diagnoses"][0] if verdict.exists() else None
                errors = [error for error in done.notes("error").values() if "diagnosis" in error]
                if found is None or found["guilty"] != [GUILTY] or len(errors) < RANKS - 1:
                    wrong += 1
                    continue
                begun = done.notes("fault")[GUILTY]
                ahead = time.time() - time.monotonic()
                sentences.append(verdict.stat().st_mtime - ahead - begun)
                raised.append(max(error["at"] for error in errors) - begun)
                kinds.add(found["kind"])
            finally:
                take_away(done)
    limit = AT_MOST_SUSPECTED if fault.suspected else AT_MOST_PROVED
    return {
        "kinds": sorted(kinds),
        "sentence": spread(sentences),
        "raised": spread(raised),
        "wrong": wrong,
        "hangs": hangs,
        "fine": not wrong and not hangs and spread(sentences)["worst"] <= limit,
    }


def spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"median": math.inf, "worst": math.inf}
    return {"median": statistics.median(seconds), "worst": max(seconds)}


def alone(fault: Fault, seconds: float) -> dict[str, Any]:
    """What torch prints without lockstep, of the first rank that prints, and after how long; None: nothing,
    and the job was ended from outside.
    """
    program = PROGRAM.format(guilty=GUILTY, body=fault.body, others=fault.others).replace("\n", "\n    ")
    head = BARE.replace("{seconds}", str(seconds)).replace("PROGRAM", program.strip())
    with tempfile.TemporaryDirectory() as folder:
        try:
            done: Job = job(
                Path(folder), "", ranks=RANKS, start="", head=head, within=seconds + 40.0, shown=False
            )
        except subprocess.TimeoutExpired:
            return {"after": None, "text": None}
        begun = done.notes("fault")[GUILTY]
        errors = [one for rank, one in done.notes("error").items() if rank != GUILTY]
    if not errors:
        return {"after": None, "text": None}
    first = min(errors, key=lambda one: float(one["at"]))
    return {"after": first["at"] - begun, "text": f"{first['type']}: {first['text'].partition(chr(10))[0]}"}


def line(name: str, figures: dict[str, Any]) -> str:
    sentence, raised = figures["sentence"], figures["raised"]
    text = (
        f"{name:26}{', '.join(figures['kinds']):10} sentence {sentence['median']:.2f} s, at worst "
        f"{sentence['worst']:.2f}; all raised {raised['median']:.2f} s, at worst {raised['worst']:.2f}; "
        f"wrong {figures['wrong']}, hangs {figures['hangs']}{'' if figures['fine'] else '  MISSED'}"
    )
    if (torch := figures.get("torch")) is not None:
        after = "never" if torch["after"] is None else f"{torch['after']:.1f} s"
        text += f"\n{'':26}torch alone: {after}: {torch['text']}"
    return text


def cost(seconds: float) -> dict[str, float]:
    """Ratio of a watched step to one that is not, and the share of the processors that the threads take."""
    steps = 60
    body = COST.replace("SECONDS", str(seconds)).replace("STEPS", str(steps))
    with tempfile.TemporaryDirectory() as folder:
        done = job(Path(folder), body, ranks=RANKS, start="patience=60", within=seconds + 60.0, shown=False)
        notes = done.notes("cost")
    if len(notes) < RANKS:
        raise SystemExit("\n".join(done.err))
    bare, watched = (
        list(map(statistics.fmean, zip(*(note["states"][state] for note in notes.values()), strict=True)))
        for state in ("bare", "watched")
    )
    ratios = sorted(one / other for one, other in zip(watched, bare, strict=True))
    middle, margin = len(ratios) // 2, round(0.98 * math.sqrt(len(ratios)))
    wall = statistics.fmean(note["wall"] for note in notes.values())
    result = {
        "bare_us": statistics.median(bare) * 1e6,
        "watched_us": statistics.median(watched) * 1e6,
        "ratio": statistics.median(ratios),
        "least": ratios[max(0, middle - margin)],
        "most": ratios[min(len(ratios) - 1, middle + margin)],
        "blocks": float(len(ratios)),
        "beats": sum(note["own"] for note in notes.values()) / wall / CORES,
    }
    print(
        f"digits step at {RANKS} ranks: {result['bare_us']:.0f} us, watched {result['watched_us']:.0f} us, "
        f"ratio {result['ratio']:.4f} ({result['least']:.4f} to {result['most']:.4f}), {len(ratios)} blocks "
        f"of {steps}\nheartbeats: {result['beats'] * 100:.3f} % of {CORES} processors (at most 0.2)"
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
