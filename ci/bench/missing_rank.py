"""How soon a rank that does not come to an agreement is named where the job runs under lockstep.

    .venv/bin/python ci/bench/missing_rank.py [--times N] [--json FILE]

One of four ranks ends, enters something else, sleeps, spins or is stopped instead of the exchange; before and
after, the agreement's deadline is longer or shorter than lockstep's patience. The time is that from the
moment at which the others wait to the sentence: lockstep's verdict, or the first of the program's own errors
that carries it. For a rank that is gone or elsewhere at most 0.5 s, for one that may still come
min(patience, deadline) + 0.5 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RANKS = 4
PATIENCE, DEADLINE = 2.0, 1.0
MARGIN = 0.5
# What rank 2 does, (patience, deadline), how long it may take.
PROVED = [(what, (PATIENCE, 60.0), MARGIN) for what in ("ends", "enters", "dies")]
SUSPECTED = [
    (what, (patience, deadline), min(patience, deadline) + MARGIN)
    for what in ("sleeps", "spins", "stops")
    for patience, deadline in ((PATIENCE, 60.0), (60.0, DEADLINE))
]
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

import torch
import torch.distributed as dist

from esper.distributed import Agreement, AgreementConfig, AgreementRecord
from esper.errors import AgreementDeadline

how, deadline, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
agreement = Agreement(dist.group.WORLD, AgreementConfig(deadline=deadline))
record = AgreementRecord(run_id=1, config_digest=2, epoch=3, steps=4, slots=(), growth_rng=5, fingerprint=6)
for _ in range(5):
    agreement.exchange(record)
dist.barrier()


def spins():
    while not (folder / "named").exists():
        pass


if rank == 2:
    (folder / "begun").write_text(f"{time.monotonic()} {os.getpid()}")
    if how == "ends":
        os._exit(0)
    elif how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "enters":
        dist.all_reduce(torch.ones(1))
    elif how == "sleeps":
        while not (folder / "named").exists():
            time.sleep(0.05)
    elif how == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        spins()
    os._exit(0)
try:
    agreement.exchange(record)
except AgreementDeadline as error:
    (folder / f"raised-{rank}").write_text(f"{time.monotonic()} {error}")
    while len(list(folder.glob("raised-*"))) < 3:
        time.sleep(0.01)
    if how == "stops" and rank == 0:
        os.kill(int((folder / "begun").read_text().split()[1]), signal.SIGKILL)
    (folder / "named").touch()
    os._exit(1)
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    good, found = True, {}
    for what, (patience, deadline), most in (*PROVED, *SUSPECTED):
        name = f"rank 2 {what}, patience {patience:g} s, deadline {deadline:g} s"
        seconds = found[name] = [named_after(what, patience, deadline) for _ in range(options.times)]
        fine = max(seconds) <= most
        good = good and fine
        print(
            f"{name}: named after {statistics.median(seconds):.3f} s, at worst {max(seconds):.3f} s "
            f"(at most {most:g}){'' if fine else '  MISSED'}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if good else 1


def named_after(what: str, patience: float, deadline: float) -> float:
    """Seconds; infinite where rank 2 was not named, or not by all."""
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        script = folder / "program.py"
        script.write_text(PROGRAM)
        words = ["--nproc", str(RANKS), "--patience", str(patience), "--"]
        words += [str(script), what, str(deadline), given]
        with subprocess.Popen(
            [sys.executable, "-m", "esper.lockstep", "run", *words], stderr=subprocess.PIPE, text=True
        ) as run:
            assert run.stderr is not None
            verdicts = [time.monotonic() for line in run.stderr if line.startswith("rank 2 ")]
        begun = float((folder / "begun").read_text().split()[0])
        errors = [path.read_text().split(" ", 1) for path in folder.glob("raised-*")]
    if deadline > patience:
        return verdicts[0] - begun if verdicts else float("inf")
    told = [float(at) - begun for at, text in errors if "\nlockstep: rank 2 is late" in text]
    return max(told) if len(told) == RANKS - 1 else float("inf")


if __name__ == "__main__":
    sys.exit(main())
