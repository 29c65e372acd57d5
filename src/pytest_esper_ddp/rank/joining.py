"""How a rank comes into the group of its world."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from esper.lockstep.rank.libc import libc
from pytest_esper_ddp.wire.messages import ForkWorld

# What a program would have without us: gloo's own default. Tests are ended by their time-out, not by the
# group's.
_GROUP_TIMEOUT = timedelta(minutes=30)
_LOOK_UP = "__nss_configure_lookup"  # glibc's
_SOURCES = Path("/etc/nsswitch.conf")


def join(world: ForkWorld, rank: int) -> None:
    """Make the default group, or say in the environment where an `env://` program can."""
    for name in (
        "RANK",
        "LOCAL_RANK",
    ):  # one by one: `update` asks what it was given, for 50 us in a new rank
        os.environ[name] = str(rank)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ[name] = str(world.world_size)
    # A launcher may have left it, and programs take it for the sign that they run under one.
    os.environ.pop("TORCHELASTIC_RUN_ID", None)
    if not world.init:
        os.environ.update(_meeting_place(world))
        return
    device = None
    if world.backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    with _names_from_files():
        store = TCPStore("127.0.0.1", world.store_port, wait_for_workers=False)
    dist.init_process_group(
        world.backend,
        store=PrefixStore(f"world{world.number}", store),
        rank=rank,
        world_size=world.world_size,
        timeout=_GROUP_TIMEOUT,
        device_id=device,
    )


def _meeting_place(world: ForkWorld) -> dict[str, str]:
    """What an env:// program finds where the group is left to the test: a store that already listens."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(world.store_port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


@contextmanager
def _names_from_files() -> Iterator[None]:
    """Names of hosts are looked for on this machine alone.

    A client of torch's store asks for the name of the address that it connects to. For loopback it does so in
    a form that no hosts file has, so a name server is asked: a millisecond, 5 s where the answer is lost.
    """
    usual = sources_of_names()
    if usual is None or threading.active_count() > 1:  # another thread may just need one
        yield
        return
    look_up = getattr(libc(), _LOOK_UP)
    look_up(b"hosts", b"files")
    try:
        yield
    finally:
        look_up(b"hosts", usual)


@cache
def sources_of_names() -> bytes | None:
    """Where the system looks for hosts, such as `files dns`; None where that can't be told or changed."""
    if not hasattr(libc(), _LOOK_UP):
        return None
    with suppress(OSError):
        for line in _SOURCES.read_bytes().splitlines():
            database, _, sources = line.partition(b"#")[0].partition(b":")
            if database.strip() == b"hosts" and sources.strip():
                return sources.strip()
    return None
