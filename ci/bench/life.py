"""How long the tests' miniature life takes on pooled ranks: ten epochs of two steps, a whole lifecycle.

    .venv/bin/python ci/bench/life.py [--rounds N] [--json FILE]

pytest runs it `--rounds` times on the same ranks, two of them and then four, with lockstep watching as in any
test. A time is from a barrier until the slowest rank has made, run and closed its trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RANKS = (2, 4)
MOST = 0.3  # seconds
SETTLING = 3  # a world's first tests import what the later ones have
FILE = """
import os
import time

import pytest
import torch.distributed as dist

from tests.integration.miniature import miniature


@pytest.mark.parametrize("number", range({count}))
@pytest.mark.ddp(world_size={ranks})
def test_life(ddp, number):
    dist.barrier()
    begun = time.perf_counter()
    with miniature(ddp.rank, {ranks}) as trainer:
        trainer.run()
    took = time.perf_counter() - begun
    with open(os.environ["SECONDS"] + str(ddp.rank), "a") as seconds:
        seconds.write(f"{{took}}\\n")
"""


def lives(ranks: int, rounds: int) -> list[float]:
    """Seconds of each life, of the slowest rank."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "test_life.py"
        file.write_text(FILE.format(count=SETTLING + rounds, ranks=ranks))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", name]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "SECONDS": str(folder / "seconds")},
            stdout=sys.stderr,
            check=True,
        )
        each = [
            [float(line) for line in (folder / f"seconds{rank}").read_text().split()] for rank in range(ranks)
        ]
    return [max(values) for values in zip(*each, strict=True)][SETTLING:]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for ranks in RANKS:
        seconds = sorted(lives(ranks, options.rounds))
        median = statistics.median(seconds)
        result[str(ranks)] = {"median": median, "least": seconds[0], "most": seconds[-1]}
        print(
            f"{ranks} ranks: {median:.3f} s ({seconds[0]:.3f} to {seconds[-1]:.3f}), at most {MOST}"
            f"{'' if median <= MOST else '  MISSED'}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(each["median"] <= MOST for each in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
