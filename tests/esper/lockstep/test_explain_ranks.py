"""What is explained of real ranks is what was said while they lived, and of the killed nothing is made up."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from esper.lockstep.postmortem.explain import Explanation, explain
from tests.esper.lockstep.launching import SCHEMA, Outcome, launch

# The folder is removed with its run, but not what is linked from elsewhere.
_HEAD = """\
import os, signal, sys, threading, time
from pathlib import Path
import torch
import torch.distributed as dist

def beat():
    from esper.lockstep.rank.intercept import installed
    while True:
        installed().recorder.ledger.heartbeat()
        time.sleep(0.02)

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
x = torch.ones(4)
mapped = [line.split()[-1] for line in open("/proc/self/maps")]
(own,) = {path for path in mapped if path.endswith(f"rank{rank}.ledger")}
for path in Path(own).parent.glob(f"rank{rank}.*"):
    os.link(path, Path(sys.argv[1]) / path.name)
dist.all_reduce(x)
"""


@pytest.fixture
def kept() -> Iterator[Path]:
    """A folder beside those of runs."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="kept.", dir=base))
    yield folder
    shutil.rmtree(folder)


def both(folder: Path, kept: Path, body: str, nproc: int = 3) -> tuple[Outcome, Explanation]:
    outcome = launch(folder, body, str(kept), nproc=nproc, head=_HEAD)
    found = explain(kept)
    jsonschema.validate(json.loads(json.dumps(found.report.to_json())), SCHEMA)
    return outcome, found


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (
            "mismatch",
            """
            if rank == 1:
                dist.broadcast(x, 0)
            else:
                dist.all_reduce(x)
            """,
        ),
        (
            "wait_cycle",
            """
            one, other = dist.new_group(), dist.new_group()
            dist.all_reduce(x, group=one if rank == 1 else other)
            """,
        ),
        (
            "missing",
            """
            if rank != 1:
                dist.all_reduce(x)
            """,
        ),
        (
            "raised",
            """
            if rank == 1:
                raise ValueError("corrupt sample 812")
            dist.all_reduce(x)
            """,
        ),
    ],
)
def test_the_sentence_is_the_one_of_those_who_were_there(
    tmp_path: Path, kept: Path, kind: str, body: str
) -> None:
    outcome, found = both(tmp_path, kept, body)
    assert (found.report.verdict, found.status) == (outcome.verdict, outcome.status) == ("diverged", 3)
    (diagnosis,) = json.loads(json.dumps(found.report.to_json()))["diagnoses"]
    assert diagnosis["kind"] == kind
    for name in ("kind", "guilty", "group", "sequence", "guilty_at"):
        assert diagnosis[name] == outcome.diagnosis[name]
    # More may have come to wait after it was said who is guilty.
    assert set(diagnosis["waiting"].pop("ranks")) >= set(outcome.diagnosis["waiting"].pop("ranks"))
    assert diagnosis["waiting"] == outcome.diagnosis["waiting"]
    assert diagnosis["message"].splitlines()[0] == outcome.diagnosis["message"].splitlines()[0]


def test_of_ranks_that_all_ended_well_is_said_so(tmp_path: Path, kept: Path) -> None:
    outcome, found = both(tmp_path, kept, "dist.barrier()\ndist.destroy_process_group()\n")
    assert (outcome.verdict, found.report.verdict) == ("clean", "clean")


@pytest.mark.parametrize(
    "body",
    [
        # All at once, in the midst of their work.
        """
    threading.Thread(target=beat, daemon=True).start()
    end = time.monotonic() + 0.3
    try:
        while time.monotonic() < end:
            dist.all_reduce(x)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)
    """,
        # One, which breaks the others' calls; they end by that, and are killed on their way.
        """
    threading.Thread(target=beat, daemon=True).start()
    for _ in range(50):
        dist.all_reduce(x)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(x)
    """,
    ],
    ids=["all", "one"],
)
def test_of_ranks_that_were_killed_nobody_is_accused(tmp_path: Path, kept: Path, body: str) -> None:
    outcome, found = both(tmp_path, kept, body)
    assert outcome.status != 0  # whoever lives has seen a process end
    assert (found.report.verdict, found.report.diagnoses) == ("inconclusive", ())
    assert "late:" not in found.text
