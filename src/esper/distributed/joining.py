"""How ranks meet at a store in which an earlier attempt of the same job may have left its words.

torchrun starts a job's ranks anew when one has died, but up to torch 2.13 at least its agent keeps the store
that it made for the first attempt. `init_process_group` looks for the other ranks' addresses there, under the
same keys each time, and so a rank that comes first finds those of processes which are gone: it has
"Connection refused", or waits for its group's whole time-out, half an hour.

So the ranks first agree on a name that nobody has used before, and keep all their keys under it. What is left
of earlier attempts can't be told from what is new by looking at it, not even by the number of restarts, which
each node counts for itself. An answer to a question that has just been made up can: each rank asks with a
random word, the first one answers, and goes on once every rank has read its answer.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from esper.distributed.divergence import ranks_text
from esper.errors import AgreementDeadline

METHOD = "esper"
# torch's own for gloo.
TIMEOUT = timedelta(minutes=30)
# How often the first rank looks whether others have asked.
_POLL = 0.005
# How much later than its own time-out the first rank's list of those who are missing may come.
_MARGIN = timedelta(seconds=1)


def join_job(backend: str | None = None, *, timeout: timedelta = TIMEOUT, **options: Any) -> None:
    """Collective: every rank, same order. `init_process_group` for a job that may be started again.

    Rank and world size are those of the launcher's environment, as with `env://`; `timeout` is the default
    group's, and how long to wait for ranks; `options` are the other keywords of `init_process_group`. Raises
    AgreementDeadline when ranks did not come.
    """
    dist.init_process_group(
        backend,
        init_method=f"{METHOD}://",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
        **options,
    )


def unused_name(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Collective: every rank, same order. A name that all ranks have and no process before them had.

    Raises AgreementDeadline, the same on every rank, when ranks did not come in time.
    """
    name = _asked(store, rank, timeout) if rank else _answering(store, world_size, timeout)
    # The first rank may have begun to wait only just before this one would have given up.
    told = _awaited(store, f"{name}/missing", timeout + _MARGIN) if name else None
    missing: list[int] = json.loads(told or "[0]")
    if name and not missing:
        return name
    who = f"{ranks_text(missing)} of {world_size} did not come"
    raise AgreementDeadline(
        f"joining the job was called off after {timeout.total_seconds():g} s: {who}", guilty=missing
    )


def _asked(store: Store, rank: int, timeout: timedelta) -> str | None:
    question = secrets.token_hex(8)
    store.set(f"question/{rank}", question)
    name = _awaited(store, f"answer/{question}", timeout)
    if name:
        store.set(f"{name}/{rank}", "here")
    return name


def _answering(store: Store, world_size: int, timeout: timedelta) -> str:
    name = secrets.token_hex(8)
    until = time.monotonic() + timeout.total_seconds()
    missing = list(range(1, world_size))
    while missing := [rank for rank in missing if not _answered(store, name, rank)]:
        if time.monotonic() >= until:
            break
        time.sleep(_POLL)
    store.set(f"{name}/missing", json.dumps(missing))
    return name


def _answered(store: Store, name: str, rank: int) -> bool:
    """Whether `rank` has read the answer to its question; nobody reads those to processes that are gone."""
    if store.check([f"{name}/{rank}"]):
        return True
    if store.check([f"question/{rank}"]):
        store.set(f"answer/{store.get(f'question/{rank}').decode()}", name)
    return False


def _awaited(store: Store, key: str, timeout: timedelta) -> str | None:
    try:
        store.wait([key], timeout)
    except RuntimeError:
        return None
    return store.get(key).decode()


def _meet(url: str, timeout: timedelta = TIMEOUT, **options: Any) -> Iterator[tuple[Store, int, int]]:
    store, rank, world_size = next(rendezvous(url.replace(METHOD, "env", 1), timeout=timeout, **options))
    within = PrefixStore(METHOD, store)
    yield PrefixStore(unused_name(within, rank, world_size, timeout), within), rank, world_size


register_rendezvous_handler(METHOD, _meet)  # type: ignore[no-untyped-call]
