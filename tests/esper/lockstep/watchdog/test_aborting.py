"""Which backends a verdict aborts, and in what order; that NCCL's threads wake of it takes GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import DebugLevel, HashStore, get_debug_level, set_debug_level
from torch.testing._internal.distributed import fake_pg  # noqa: F401  registers that backend

from esper.lockstep.watchdog.aborting import NCCL, Aborting, backends

CPU = torch.device("cpu")


@pytest.fixture
def job() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("job")
def test_one_backend_of_each_group_that_has_it_the_newest_first() -> None:
    assert dist.group.WORLD is not None
    groups = [dist.group.WORLD]
    # More than ten: by name the last would sort before the third.
    for backend in ("gloo", "fake", "cpu:gloo,cuda:fake", *["gloo"] * 9):
        groups.append(dist.new_group([0], backend=backend))
    level = get_debug_level()
    set_debug_level(DebugLevel.DETAIL)
    groups.append(dist.new_group([0], backend="gloo"))  # within a wrapper
    set_debug_level(level)
    dist.destroy_process_group(groups.pop(5))

    newest_first = [group._get_backend(CPU) for group in reversed(groups) if group is not groups[2]]
    found = backends("gloo")
    assert len(found) == len(newest_first) == 12
    assert all(one is other for one, other in zip(found, newest_first, strict=True))
    assert [one.name() for one in backends("fake")] == ["fake", "fake"]
    assert backends(NCCL) == []


@pytest.mark.usefixtures("job")
def test_an_abort_forgets_no_group() -> None:
    dist.new_group([0])
    aborting = Aborting(backends("gloo"))
    aborting.start()
    aborting.join(10.0)
    assert not aborting.is_alive()
    assert dist.get_world_size() == 1
    dist.all_reduce(torch.ones(1))
