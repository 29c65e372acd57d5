"""A healthy job says nothing and leaves nothing, however it works and however it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.esper.lockstep.watchdog.jobs import Job, job, pids, take_away, wait_for

LONG = pytest.mark.stress


def assert_silent(done: Job, statuses: Sequence[int] | None = None) -> None:
    assert done.said == ""
    assert done.err == ("",) * len(done.err)
    assert done.statuses == tuple(statuses or (0,) * len(done.err))
    assert done.run_folders
    assert [folder for folder in done.run_folders if folder.exists()] == []


def test_what_healthy_programs_do(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        import contextlib, subprocess
        from datetime import timedelta
        if rank == 1:
            time.sleep(1.2)  # below the patience
        dist.barrier()
        if rank == 0:
            time.sleep(1.2)  # evaluates alone
        dist.broadcast(x, 0)
        pair = dist.new_group([0, 1])
        if rank < 2:
            for _ in range(20):
                dist.all_reduce(x, group=pair)
        for _ in range(20):  # a pipeline
            if rank > 0:
                dist.recv(x, rank - 1)
            if rank < world - 1:
                dist.send(x, rank + 1)
        with contextlib.suppress(RuntimeError):  # given up, and mended
            if rank == 0:
                dist.irecv(x, 1).wait(timedelta(milliseconds=200))
        if rank == 0:
            subprocess.run(["true"], check=True)
        loader = torch.utils.data.DataLoader(list(range(8)), num_workers=2)
        for _ in loader:
            pass
        model = DDP(torch.nn.Linear(2, 2), process_group=dist.new_group())
        for _ in range(20):
            model(torch.ones(1, 2)).sum().backward()
        if (child := os.fork()) == 0:
            __import__("atexit")._run_exitfuncs()
            os._exit(0)
        os.waitpid(child, 0)
        torch.multiprocessing.get_context("fork").Process(target=time.sleep, args=(99,), daemon=True).start()
        assert dog.running
        dist.barrier(group=dist.new_group())
        """,
        start="patience=3",
    )
    assert_silent(done)


ENDS = {
    "destroys": "dist.barrier(); dist.destroy_process_group()",
    "does nothing": "dist.barrier()",
    "sys.exit": "dist.barrier(); sys.exit(0)",
    "one after the other": "dist.barrier(); time.sleep(rank * 1.5)",
    "a thread lives on": "threading.Thread(target=time.sleep, args=(2 * rank,)).start()",
    "stops": "lockstep.stop(); assert not dog.running; dist.barrier()",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "one after the other" else LONG) for name in ENDS]
)
def test_ends(name: str, tmp_path: Path) -> None:
    done = job(tmp_path, f"dist.all_reduce(x)\n{ENDS[name]}", start="patience=1")
    assert [err for err in done.err if "destroy_process_group() was not called" not in err and err] == []
    assert_silent(done)


def test_processes_that_end_themselves_leave_only_their_ledgers(tmp_path: Path) -> None:
    done = job(tmp_path, "dist.barrier(); os._exit(0)")
    take_away(done)
    assert done.said == ""
    assert done.err == ("", "", "")
    assert done.statuses == (0, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_is_nobodys_fault(number: signal.Signals, tmp_path: Path) -> None:
    def interrupt(folder: Path) -> None:
        wait_for(folder, "ready", 3)
        for pid in pids(folder):
            os.kill(pid, number)

    done = job(
        tmp_path,
        """
        note("ready")
        while True:
            dist.all_reduce(x)
            time.sleep(0.01)
        """,
        meanwhile=interrupt,
    )
    assert done.said == ""
    assert "LockstepError" not in "".join(done.err)
    assert set(done.statuses) <= {-number, 1}
    for folder in done.run_folders:
        assert number == signal.SIGTERM or not folder.exists()
    take_away(done)


@LONG
def test_a_job_that_is_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    def stop(folder: Path) -> None:
        ranks = pids(folder)
        for number, seconds in ((signal.SIGSTOP, 10.0), (signal.SIGCONT, 0.0)):
            for pid in ranks:
                os.kill(pid, number)
            time.sleep(seconds)

    done = job(
        tmp_path,
        """
        end = time.monotonic() + 16
        for _ in range(2 ** 40):
            x.fill_(float(time.monotonic() > end))
            dist.all_reduce(x)
            if x[0]:
                break
            time.sleep(0.05)
        """,
        start="patience=3",
        meanwhile=stop,
    )
    assert_silent(done)


@LONG
def test_groups_that_are_made_anew(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        dist.barrier()
        dist.destroy_process_group()
        time.sleep(0.7 * rank)
        place = "file://" + os.environ["ESPER_TEST_NOTES"] + "/again"  # or it finds the first one's addresses
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
        for _ in range(100):
            dist.all_reduce(x)
            time.sleep(0.02)
        """,
        start="patience=3",
    )
    assert_silent(done)


def test_start_again(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        global dog
        before = []
        second = lockstep.start()
        assert dog.running and not second.running
        second.stop()
        assert dog.running
        dist.barrier()
        for _ in range(3):
            lockstep.stop()
            assert not dog.running
            dist.barrier()
            dog = lockstep.start(patience=3)
            note.begin(rank, world)
            assert dog.running
            dist.barrier()
            __import__("gc").collect()
            before.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
        assert before[1] == before[2], before
        lockstep.stop()
        with lockstep.start() as inner:
            assert inner.running
            dist.barrier()
        assert not inner.running
        """,
        start="patience=3",
    )
    told = {err.count("lockstep: ") for err in done.err}
    assert told == {1}
    assert all("it has been called before, and watches already" in err for err in done.err)
    assert done.statuses == (0, 0, 0)
    assert [folder for folder in done.run_folders if folder.exists()] == []


@LONG
@pytest.mark.parametrize("seconds", [30.0])
def test_thousands_of_collectives_a_second(seconds: float, tmp_path: Path) -> None:
    done = job(
        tmp_path,
        f"""
        end = time.monotonic() + {seconds}
        count, over = 0, False
        while not over:
            for _ in range(500):
                dist.all_reduce(x)
            count += 500
            x.fill_(float(time.monotonic() > end and count > 1 << 15))  # four times what the ring holds
            dist.all_reduce(x)
            over = x[0] > world - 1
        """,
        ranks=4,
        start="patience=3",
        within=seconds + 500.0,
    )
    assert_silent(done)


@LONG
def test_ten_minutes_of_training(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        model = DDP(torch.nn.Linear(64, 64))
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        end = time.monotonic() + 600
        over = False
        while not over:
            for _ in range(20):
                optimizer.zero_grad()
                model(torch.randn(8, 64)).sum().backward()
                optimizer.step()
                time.sleep(0.005)
            if rank == 0:
                time.sleep(0.05)
            x.fill_(float(time.monotonic() > end))
            dist.all_reduce(x)
            over = bool(x[0])
        """,
        ranks=4,
        start="patience=3",
        within=700.0,
    )
    assert_silent(done)


@LONG
def test_who_does_not_lead_keeps_up(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        for _ in range(3000):
            dist.all_reduce(x)
        readers, end = dog._thread._watch._readers, time.monotonic() + 10
        def behind():
            return max(one.written() - one.position for one in readers)
        while behind() > 2048 and time.monotonic() < end:
            time.sleep(0.05)
        note("behind", behind())
        dist.barrier()
        """,
        ranks=2,
    )
    assert_silent(done)
    assert max(done.notes("behind").values()) <= 2048
