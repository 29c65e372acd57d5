"""Ranks that can't see each other's processes and ledgers, as those of several hosts can't: what they tell
each other goes through the job's store.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.esper.lockstep.watchdog.faults import DISAGREEMENTS, FAULTS, disagree, elsewhere
from tests.esper.lockstep.watchdog.jobs import job

LONG = pytest.mark.stress
USUAL = ("skips", "sleeps")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in USUAL else LONG) for name in FAULTS])
def test_a_rank_that_is_elsewhere_is_named_on_every_host(name: str, tmp_path: Path) -> None:
    elsewhere(name, tmp_path, per_host=2)


@pytest.mark.stress
@pytest.mark.parametrize("name", ["killed", "exits 0", "exits 5", "raises"])
def test_the_only_rank_of_a_host_is_named(name: str, tmp_path: Path) -> None:
    """Where it ends, nobody is left there who could tell the others."""
    elsewhere(name, tmp_path, per_host=1)


def test_the_host_that_led_is_named_where_its_only_rank_is_killed(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        store = dist.distributed_c10d._get_default_store()
        while not store.check([f"esper.lockstep/0/0/ends/{host}" for host in range(world)]):
            time.sleep(0.01)
        for _ in range(20):
            dist.all_reduce(x)
        if rank == 0:
            note.fault()
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(x)  # innocent
        """,
        ranks=3,
        start="patience=60",
        per_host=1,
    )
    errors = done.notes("error")
    assert errors.keys() == {1, 2}
    for error in errors.values():
        assert error["type"] == "LockstepError"
        diagnosis = error["diagnosis"]
        assert (diagnosis["kind"], diagnosis["guilty"]) == ("crashed", [0])
        assert diagnosis["guilty_at"]["0"]["detail"].startswith("its connections are closed; host0 ")
        assert diagnosis["waiting"]["ranks"] == [1, 2]
        assert diagnosis["waiting"]["site"].endswith(done.line("innocent"))
        assert error["at"] - done.notes("fault")[0] < 3.0


@pytest.mark.stress
@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_ranks_that_disagree_raise_on_every_host(name: str, tmp_path: Path) -> None:
    disagree(name, tmp_path, per_host=1)


def test_a_healthy_job_of_several_hosts_is_left_alone(tmp_path: Path) -> None:
    """Ranks late for most of the patience, a group of some, an error that is caught, ends one after the
    other.
    """
    done = job(
        tmp_path,
        """
        some = dist.new_group([0, 2])
        for step in range(600):
            dist.all_reduce(x)
        if rank != 1:
            dist.all_reduce(x, group=some)
        if rank == 2:
            time.sleep(2.0)
        dist.barrier()
        try:
            dist.all_reduce(x, op="none")
        except Exception:
            pass
        if rank == 0:
            dist.send(x, 2)
        elif rank == 2:
            time.sleep(1.0)
            dist.recv(x, 0)
        dist.barrier()
        time.sleep(0.7 * rank)
        """,
        start="patience=3",
        per_host=2,
    )
    assert done.statuses == (0, 0, 0)
    assert done.said == ""
    assert "".join(done.err) == ""
    assert done.notes("error") == {}


@pytest.mark.stress
def test_a_host_that_is_stopped_is_named_after_the_patience(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        store = dist.distributed_c10d._get_default_store()
        while not store.check(["esper.lockstep/0/0/ends/1"]):  # it has told of itself
            time.sleep(0.01)
        dist.all_reduce(x)
        if rank >= 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(x)
        """,
        ranks=4,
        start="patience=6",
        per_host=2,
    )
    errors = done.notes("error")
    for rank in (0, 1):
        diagnosis = errors[rank]["diagnosis"]
        assert (diagnosis["kind"], diagnosis["guilty"]) == ("frozen", [2, 3])
        assert diagnosis["guilty_at"]["2"]["state"] == "silent"
        assert diagnosis["guilty_at"]["3"]["detail"].startswith("nothing was heard of host1 for ")
