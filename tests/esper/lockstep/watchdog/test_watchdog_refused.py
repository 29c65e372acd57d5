"""What keeps `lockstep.start()` from watching is said in one sentence, and the program runs on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.esper.lockstep.watchdog.jobs import job

# What is done before, `start`'s arguments, what is said. BLOCKED stands for a file, ROOM for a folder.
CASES = {
    "no group": ("dist.destroy_process_group()", "", "no process group: call lockstep.start() after"),
    "patience 0": ("", "patience=0", "patience=0: it is at least two heartbeats, 1 s"),
    "patience nan": ("", "patience=float('nan')", "patience=nan: it is at least two heartbeats, 1 s"),
    "a file": ("", "run_dir='BLOCKED'", "run_dir 'BLOCKED': "),
    "below a file": ("", "run_dir='BLOCKED/below'", "run_dir 'BLOCKED/below': Not a directory"),
    "no room": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "run_dir='ROOM'",
        "it needs",
    ),
}
HEAD = """\
import os, signal, sys, time
import torch
import torch.distributed as dist
from esper import lockstep
from tests.esper.lockstep.watchdog.notes import note
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
note.rank = rank
{start}
x = torch.ones(1)
"""


def test_everything_that_is_refused_at_start(tmp_path: Path) -> None:
    blocked, room = tmp_path / "file", tmp_path / "room"
    blocked.touch()
    room.mkdir()
    cases = [name for name in CASES if name != "no group"]
    body = ""
    for name in cases:
        before, arguments, _ = CASES[name]
        body += (
            f"sys.stderr.write('-- {name}\\n')\n{before}\nassert not lockstep.start({arguments}).running\n"
        )
    body += "dist.all_reduce(x)\nassert x[0] == 2\ndist.destroy_process_group()\n"
    body += "sys.stderr.write('-- no group\\n')\nassert not lockstep.start().running\n"
    body += "note('folder', None)\n"
    body = body.replace("BLOCKED", str(blocked)).replace("ROOM", str(room))
    done = job(tmp_path / "job", body, ranks=2, start="", head=HEAD)
    assert done.statuses == (0, 0)
    for rank, err in enumerate(done.err):
        said = dict(part.split("\n", 1) for part in err.split("-- ")[1:])
        assert said.keys() == {*cases, "no group"}
        for name, text in said.items():
            expected = CASES[name][2].replace("BLOCKED", str(blocked)).replace("ROOM", str(room))
            whose = "" if name == "no group" else f"rank {rank}: "
            assert text.startswith(f"lockstep: {whose}not watching: "), text
            assert expected in text, text
            assert text.count("\n") == 1, text
    assert list(room.iterdir()) == []


def test_arguments_of_another_type_are_errors(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        for error, arguments in (
            (TypeError, {"patience": "3"}), (TypeError, {"patience": True}), (ValueError, {"action": "kill"})
        ):
            try:
                lockstep.start(**arguments)
            except error as found:
                assert repr(next(iter(arguments.values()))) in str(found), found
            else:
                raise AssertionError(arguments)
        lone = lockstep.start()
        assert not lone.running
        """,
        ranks=1,
        start="",
        head=HEAD,
    )
    assert done.statuses == (0,)
    assert done.err == ("",)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder takes root")
def test_a_folder_of_others_is_not_used(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs"
    run_dir.mkdir()
    done = job(
        tmp_path / "job",
        f"""
        from pathlib import Path
        from unittest.mock import patch
        import uuid
        run_dir = Path({str(run_dir)!r})
        elsewhere = run_dir.parent / "elsewhere"
        for number, make in enumerate((
            lambda path: (path.mkdir(mode=0o700), os.chown(path, 12345, 12345)),
            lambda path: (path.mkdir(), path.chmod(0o755)),
            lambda path: (elsewhere.mkdir(mode=0o700), path.symlink_to(elsewhere)),
        )):
            run = uuid.UUID(int=number + (number + 1 << 96))
            if rank == 0:
                make(run_dir / f"attempt-0-{{run.hex[:8]}}")
            dist.barrier()
            with patch("uuid.uuid4", lambda: run):
                assert not lockstep.start(run_dir=run_dir).running
        """,
        ranks=2,
        start="",
        head=HEAD.replace("{start}", ""),
    )
    assert done.statuses == (0, 0)
    for err in done.err:
        assert err.count("not watching: run_dir ") == 3
        assert err.count("is open to others, or not this user's") == 3
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_rank_that_never_starts_is_named_by_the_others(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        if rank != 1:
            lockstep.start(patience=1)
        time.sleep(2.5)
        dist.all_reduce(x)
        """,
        start="",
        head=HEAD,
    )
    assert done.statuses == (0, 0, 0)
    assert done.err == ("lockstep: not watching yet: rank 1 did not call lockstep.start() in 1 s\n", "", "")


@pytest.mark.stress
def test_starts_at_different_places_are_told(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        if rank == 0:
            lockstep.start(patience=1)
        dist.all_reduce(x)
        if rank == 1:
            lockstep.start(patience=1)
        dist.barrier()
        time.sleep(1.5)
        dist.barrier()
        """,
        ranks=2,
        start="",
        head=HEAD,
    )
    assert done.statuses == (0, 0)
    sentence = (
        "lockstep.start() came after 0 collectives on rank 0 and after 1 on rank 1: "
        "it belongs at the same place on every rank"
    )
    assert "".join(done.err).count("lockstep: ") == 1
    assert sentence in done.err[0]


def test_a_store_of_one_process_is_refused(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        dist.destroy_process_group()
        from torch.testing._internal.distributed.fake_pg import FakeStore
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        assert not lockstep.start().running
        """,
        ranks=1,
        start="",
        head=HEAD,
    )
    assert done.statuses == (0,)
    (err,) = done.err
    assert err.startswith(
        "lockstep: rank 0: not watching: the job's store (Store): no second connection to it"
    )
    assert err.count("\n") == 1


@pytest.mark.stress
def test_a_store_that_went_with_rank_0_holds_nobody_for_long(tmp_path: Path) -> None:
    done = job(
        tmp_path,
        """
        at = os.environ["ESPER_TEST_NOTES"] + "/again"
        dist.destroy_process_group()
        if rank == 0:
            store = dist.TCPStore("127.0.0.1", 0, world, True, wait_for_workers=False)
            with open(at + ".unfinished", "w") as file:
                file.write(str(store.port))
            os.rename(at + ".unfinished", at)
        while not os.path.exists(at):
            time.sleep(0.01)
        if rank != 0:
            store = dist.TCPStore("127.0.0.1", int(open(at).read()), world, False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        dist.barrier()
        if rank == 0:
            os._exit(0)
        time.sleep(0.5)
        assert not lockstep.start().running
        """,
        start="",
        head=HEAD,
    )
    assert done.statuses == (0, 0, 0)
    for rank in (1, 2):
        said = [line for line in done.err[rank].splitlines() if line.startswith("lockstep: ")]
        assert len(said) == 1
        assert said[0].startswith(
            f"lockstep: rank {rank}: not watching: the job's store (TCPStore): no second"
        )
