"""How long a verdict takes, and how long until all is over after it: each proved kind on real ranks.

    .venv/bin/python ci/bench/verdict.py [--rounds N] [--kinds KIND ...] [--deaf] [--json FILE]

`seconds` is the report's: from the moment the collective was decidable to the verdict. What follows is seen
from outside: pidfds of the ranks and of the command, and the report's size. A rank notes the time right
before its decisive call, so the verdict came `seconds` after the last note; the call itself, less than a
millisecond, is counted to what follows.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RANKS = 3
AT_MOST = 0.15

HEAD = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from esper import lockstep
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, x = dist.get_rank(), torch.ones(4)
one, other = dist.new_group(), dist.new_group()
def note():
    with open(f"{sys.argv[1]}/note{rank}.new", "w") as file:
        file.write(repr(time.monotonic()))
    os.rename(file.name, f"{sys.argv[1]}/note{rank}")
dist.all_reduce(x)
time.sleep(0.2)
"""
DECISIVE = {
    "crashed": "note()\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ndist.all_reduce(x)",
    "raised": "note()\nif rank == 1: raise ValueError('corrupt sample')\ndist.all_reduce(x)",
    "exited": "note()\nif rank == 1: os._exit(0)\ndist.all_reduce(x)",
    "group": "note()\ndist.new_group([0, 2] if rank in (0, 2) else [1])\ndist.barrier()",
    "order": """
for name in ["mid", "stem"] if rank == 1 else ["stem", "mid"]:
    with lockstep.tag(name):
        note()
        dist.all_reduce(x)
""",
    "mismatch": "note()\ndist.all_reduce(x, op=dist.ReduceOp.MAX if rank == 1 else dist.ReduceOp.SUM)",
    "peer": """
note()
if rank == 1: dist.send(x, 2)
elif rank == 2: dist.recv(x, 0)
dist.barrier()
""",
    "wait_cycle": "note()\ndist.all_reduce(x, group=one if rank == 1 else other)",
    "missing": "note()\nif rank == 1: dist.destroy_process_group(); time.sleep(60)\ndist.all_reduce(x)",
    "model": """
parts = {name: torch.nn.Linear(4, 4) for name in (["b", "a"] if rank == 1 else ["a", "b"])}
note()
torch.nn.parallel.DistributedDataParallel(torch.nn.ModuleDict(parts))
""",
    "drift": "lockstep.watch('alpha', lambda: rank == 1)\nnote()\ndist.barrier()",
}
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def measure(kind: str, folder: Path, deaf: bool) -> dict[str, float]:
    """Seconds to the verdict, and from there to the report, the last rank's end and the command's."""
    script, report = folder / "program.py", folder / "report.json"
    script.write_text(HEAD + (DEAF if deaf else "") + DECISIVE[kind] + "\ntime.sleep(60)\n")
    words = ["--nproc", str(RANKS), "--report", str(report), "--", str(script), str(folder)]
    with subprocess.Popen(
        [sys.executable, "-m", "esper.lockstep", "run", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    ) as process:
        watched = {os.pidfd_open(process.pid): "command"}
        while len(ranks := ranks_of(process.pid)) < RANKS:
            if process.poll() is not None:
                raise SystemExit(f"{kind}: the command ended with status {process.returncode}")
            time.sleep(0.01)
        watched |= {os.pidfd_open(rank): "ranks" for rank in ranks}
        at: dict[str, float] = {}
        poll = select.poll()
        for one in watched:
            poll.register(one, select.POLLIN)
        while watched:
            ended = poll.poll(0.5)
            now = time.monotonic()
            for one, _ in ended:
                poll.unregister(one)
                at[watched.pop(one)] = now  # the last rank's end stays
                os.close(one)
            if "report" not in at and report.stat().st_size:
                at["report"] = time.monotonic()
    (diagnosis,) = json.loads(report.read_text())["diagnoses"]
    if (diagnosis["kind"], process.returncode) != (kind, 3):
        raise SystemExit(f"{kind}: found {diagnosis['kind']}, status {process.returncode}")
    notes = [float(path.read_text()) for path in folder.glob("note?")]
    verdict = max(notes) + diagnosis["seconds"]
    return {"seconds": diagnosis["seconds"], **{name: moment - verdict for name, moment in at.items()}}


def ranks_of(command: int) -> list[int]:
    """The ranks among a command's children."""
    children = Path(f"/proc/{command}/task/{command}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"esper.lockstep.rank" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=DECISIVE, default=list(DECISIVE))
    parser.add_argument("--deaf", action="store_true", help="ranks that ignore SIGTERM")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, list[dict[str, float]]] = {}
    good = True
    for kind in options.kinds:
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                result.setdefault(kind, []).append(measure(kind, Path(folder), options.deaf))
        rounds = result[kind]
        middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        over = [max(one["ranks"], one["report"]) for one in rounds]
        fine = statistics.median(over) <= AT_MOST
        good = good and fine
        ms = {name: f"{seconds * 1000:6.1f}" for name, seconds in middle.items()}
        print(
            f"{kind:10}  verdict {ms['seconds']} ms; then ranks gone {ms['ranks']}, report {ms['report']}"
            f" (worst of both {max(over) * 1000:.1f}), command gone {ms['command']} ms"
            f"{'' if fine else '  MISSED'}",
            flush=True,
        )
    print(f"report written and ranks gone at most {AT_MOST * 1000:.0f} ms after the verdict, in the median")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
