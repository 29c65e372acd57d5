"""Two launches of torchrun for one job: on one machine, in two networks, with nothing in common at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = pytest.mark.stress

FAULTS = {
    "skips": ("mismatch", "dist.barrier()"),
    "sleeps": ("frozen", "time.sleep(1000)"),
}
NODES = (0, 1)
# Of a machine that was started days after the other, say.
APART = 500_000


@dataclass(frozen=True)
class Ground:
    """Where the two launches run: what goes before each one's command, and how they find each other."""

    before: Callable[[int], list[str]]
    address: str = "127.0.0.1"
    environment: Callable[[int], dict[str, str]] = field(default=lambda node: {})
    sentences: int = 1  # one host's ranks print one, together


@contextmanager
def one_machine() -> Iterator[Ground]:
    yield Ground(lambda node: [])


@contextmanager
def own_networks() -> Iterator[Ground]:
    """Each launch in a network of its own; a cable joins the two."""
    names = [f"ddp{os.getpid()}n{node}" for node in NODES]
    ends = [f"ddp{node}" for node in NODES]
    commands = [["ip", "netns", "add", name] for name in names]
    commands.append(
        ["ip", "link", "add", ends[0], "netns", names[0], "type", "veth", "peer", ends[1], "netns", names[1]]
    )
    for node, (name, end) in enumerate(zip(names, ends, strict=True)):
        commands.append(["ip", "-n", name, "addr", "add", f"10.77.0.{node + 1}/24", "dev", end])
        commands += [["ip", "-n", name, "link", "set", one, "up"] for one in (end, "lo")]
    try:
        for command in commands:
            needed(command)
        yield Ground(
            lambda node: ["ip", "netns", "exec", names[node]],
            "10.77.0.1",
            lambda node: {"GLOO_SOCKET_IFNAME": ends[node]},
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextmanager
def nothing_shared() -> Iterator[Ground]:
    """No process id, no host name and no clock, as of two hosts."""

    def before(node: int) -> list[str]:
        clocks = [f"--monotonic={node * APART + 1000}", f"--boottime={node * APART + 1000}"]
        named = f'hostname node{node} && exec "$@"'
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--time", *clocks]
        return [*apart, "sh", "-c", named, "sh"]

    needed([*before(0), "true"])
    yield Ground(before, sentences=2)


def needed(command: list[str]) -> None:
    """What only root may do, and not everywhere."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if done.returncode:
        pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")


@pytest.mark.parametrize("where", [one_machine, own_networks, nothing_shared])
@pytest.mark.parametrize("fault", FAULTS)
def test_two_launches_find_the_same(
    fault: str, where: Callable[[], AbstractContextManager[Ground]], tmp_path: Path
) -> None:
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
    with where() as ground:
        said = "".join(launched(ground, script, tmp_path))
    lines = enumerate(script.read_text().splitlines(), 1)
    number = next(at for at, line in lines if line.endswith("# guilty"))
    for rank in (0, 1, 3):
        found = next(tmp_path.glob(f"*.{rank}")).read_text()
        assert found.startswith(f"{kind} (2,)\nrank 2 ")
        assert f"program.py:{number}" in found
    assert said.count("lockstep: rank 2 ") == ground.sentences


def launched(ground: Ground, script: Path, folder: Path) -> list[str]:
    """What each of the two has printed, once both are over."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launches = []
    for node in NODES:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}",
            "--nproc-per-node=2", f"--master-addr={ground.address}", f"--master-port={port}", str(script),
        ]  # fmt: skip
        run = folder / ("run" if ground.sentences == 1 else f"node{node}")  # one host has one folder
        environment = {**os.environ, "RUN": str(run), "OMP_NUM_THREADS": "1", **ground.environment(node)}
        with open(folder / f"log{node}", "w") as log:
            launches.append(
                subprocess.Popen(
                    [*ground.before(node), *command],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    try:
        for launch in launches:
            launch.wait(100)
    finally:
        for launch in launches:
            if launch.poll() is None:
                os.killpg(launch.pid, signal.SIGKILL)
                launch.wait()
        said = [(folder / f"log{node}").read_text() for node in NODES]
        sys.stdout.write("\n-- the other\n".join(said))
    return said
