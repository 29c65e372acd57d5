"""Two launches of torchrun that share no process id, no host name and no clock, as those of two hosts do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.stress

FAULTS = {
    "skips": ("mismatch", "dist.barrier()"),
    "sleeps": ("frozen", "time.sleep(1000)"),
}
# Of a machine that was started days after the other, say.
APART = 500_000


def unshared(node: int, command: list[str]) -> list[str]:
    clocks = [f"--monotonic={node * APART + 1000}", f"--boottime={node * APART + 1000}"]
    named = f'hostname node{node} && exec "$@"'
    apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--time", *clocks]
    return [*apart, "sh", "-c", named, "sh", *command]


@pytest.fixture(autouse=True)
def needs_namespaces() -> None:
    allowed = subprocess.run(unshared(0, ["true"]), capture_output=True, text=True, check=False, timeout=30)
    if allowed.returncode:
        pytest.skip(f"no namespaces of its own here: {allowed.stderr.strip()}")


@pytest.mark.parametrize("fault", FAULTS)
def test_two_launches_that_share_nothing_find_the_same(fault: str, tmp_path: Path) -> None:
    kind, instead = FAULTS[fault]
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, time
            import torch
            import torch.distributed as dist
            from esper import lockstep

            dist.init_process_group("gloo")
            rank = dist.get_rank()
            lockstep.start(patience=5, run_dir=os.environ["RUN"])
            x = torch.ones(4)
            for _ in range(600):
                dist.all_reduce(x)
            if rank == 2:
                {instead}  # guilty
            try:
                dist.all_reduce(x)
            except lockstep.LockstepError as error:
                with open(os.environ["RUN"] + f".{{rank}}", "w") as file:
                    file.write(f"{{error.diagnosis.kind}} {{error.diagnosis.guilty}}\\n{{error}}")
                raise
            """
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launches = []
    for node in (0, 1):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}",
            "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}", str(script),
        ]  # fmt: skip
        environment = {**os.environ, "RUN": str(tmp_path / f"node{node}"), "OMP_NUM_THREADS": "1"}
        with open(tmp_path / f"log{node}", "w") as log:
            launches.append(
                subprocess.Popen(
                    unshared(node, command), env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )
    try:
        for launch in launches:
            launch.wait(100)
    finally:
        for node, launch in enumerate(launches):
            if launch.poll() is None:
                os.killpg(launch.pid, signal.SIGKILL)
                launch.wait()
            sys.stdout.write(f"-- node {node}\n{(tmp_path / f'log{node}').read_text()}")
    lines = enumerate(script.read_text().splitlines(), 1)
    number = next(at for at, line in lines if line.endswith("# guilty"))
    for rank in (0, 1, 3):
        said = (tmp_path / f"node{rank // 2}.{rank}").read_text()
        assert said.startswith(f"{kind} (2,)\nrank 2 ")
        assert f"program.py:{number}" in said
    for node in (0, 1):
        assert (tmp_path / f"log{node}").read_text().count("lockstep: rank 2 ") == 1
