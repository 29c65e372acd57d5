"""`python -m esper.lockstep run` on real ranks: status, report and sentence of each kind."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.esper.lockstep.launching import command, launch, started


def test_a_healthy_program_is_clean(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        dist.all_reduce(x)  # last
        assert sys.argv[1:] == ["--epochs", "3"], sys.argv
        dist.destroy_process_group()
        """,
        "--epochs",
        "3",
        warm=False,
    )
    assert (outcome.status, outcome.verdict) == (0, "clean"), outcome.text
    for end in outcome.report["ranks"]:
        assert (end["exit"], end["signal"]) == (0, None)
        assert end["last"] == {"op": "all_reduce", "site": outcome.at("last")}


def test_what_runs_after_the_script_is_part_of_the_program(tmp_path: Path) -> None:
    """Handlers at exit, and threads that keep the process alive, still issue collectives, rank by rank,
    whether the script gets to its end or leaves.
    """
    outcome = launch(
        tmp_path,
        """
        import atexit, threading
        group = dist.new_group()
        def late(seconds, group):
            time.sleep(seconds)
            dist.all_reduce(torch.ones(1), group=group)
        atexit.register(late, 0.2 * rank, None)
        thread = threading.Thread(target=late, args=(0.2 * (1 - rank), group))
        thread.start()
        if rank == 1:
            sys.exit(0)
        """,
        warm=False,
    )
    assert (outcome.status, outcome.verdict) == (0, "clean"), outcome.text


def test_a_forked_childs_end_is_not_its_parents(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        if rank == 1:
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.3)
        dist.all_reduce(x)
        dist.destroy_process_group()
        """,
    )
    assert (outcome.status, outcome.verdict) == (0, "clean"), outcome.text


def test_a_functional_collective_that_is_not_waited_in_yet_holds_nobody(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        import torch.distributed._functional_collectives as functional
        group = dist.new_group()
        dist.barrier()
        if rank == 0:
            y = functional.all_reduce(x, "sum", dist.group.WORLD)
            time.sleep(0.3)  # asleep, though not in the collective
            dist.all_reduce(x, group=group)
        else:
            dist.all_reduce(x, group=group)
            y = functional.all_reduce(x, "sum", dist.group.WORLD)
        assert (y + 0).sum() > 0
        dist.destroy_process_group()
        """,
    )
    assert (outcome.status, outcome.verdict) == (0, "clean"), outcome.text


def test_functional_collectives_that_wait_for_each_other_are_a_cycle(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        import torch.distributed._functional_collectives as functional
        group = dist.new_group()
        mine = dist.group.WORLD if rank == 0 else group
        y = functional.all_reduce(x, "sum", mine)
        print((y + 0).sum())
        """,
    )
    assert (outcome.status, outcome.verdict) == (3, "diverged")
    assert (outcome.diagnosis["kind"], outcome.diagnosis["guilty"]) == ("wait_cycle", [0, 1])


def test_a_scripts_own_status_is_passed_on(tmp_path: Path) -> None:
    outcome = launch(tmp_path, "dist.barrier()\nsys.exit(7 * rank)")
    assert (outcome.status, outcome.verdict) == (7, "failed")
    assert [end["exit"] for end in outcome.report["ranks"]] == [0, 7]


@pytest.mark.parametrize(
    ("end", "kind", "state", "detail"),
    [
        ("raise ValueError('bad sample')", "raised", "raised", "ValueError: bad sample"),
        ("sys.exit(0)", "exited", "exited", "status 0"),
        ("os._exit(9)", "exited", "exited", "status 9"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "crashed", "killed", "SIGKILL"),
    ],
)
def test_a_rank_that_is_gone(tmp_path: Path, end: str, kind: str, state: str, detail: str) -> None:
    outcome = launch(
        tmp_path,
        f"""
        dist.all_reduce(x)
        if rank == 1:
            {end}  # guilty
        dist.all_reduce(x)  # waiting
        dist.destroy_process_group()
        """,
    )
    assert (outcome.status, outcome.verdict) == (3, "diverged")
    diagnosis = outcome.diagnosis
    assert (diagnosis["kind"], diagnosis["guilty"]) == (kind, [1])
    assert (diagnosis["group"], diagnosis["sequence"]) == ("default", 1)
    waiting, at = diagnosis["waiting"], diagnosis["guilty_at"]["1"]
    assert (waiting["op"], waiting["dtype"], waiting["shape"]) == ("all_reduce", "float32", [4])
    assert waiting["ranks"] == [0]
    assert waiting["site"] == outcome.at("waiting")
    assert (at["state"], at["detail"]) == (state, detail)
    if kind != "crashed":
        assert at["site"] == outcome.at("guilty")
    assert diagnosis["message"] in outcome.text


def test_a_skipped_collective_that_leads_to_another(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        if rank != 1:
            dist.all_reduce(x)  # waiting
        dist.barrier()  # guilty
        dist.destroy_process_group()
        """,
        nproc=3,
    )
    diagnosis = outcome.diagnosis
    assert (outcome.status, diagnosis["kind"], diagnosis["guilty"]) == (3, "mismatch", [1])
    assert diagnosis["waiting"]["ranks"] == [0, 2]
    assert diagnosis["waiting"]["site"] == outcome.at("waiting")
    at = diagnosis["guilty_at"]["1"]
    assert (at["state"], at["op"], at["site"]) == ("in_collective", "barrier", outcome.at("guilty"))


def test_a_skipped_last_collective_is_missing(tmp_path: Path) -> None:
    outcome = launch(tmp_path, "if rank == 0:\n    dist.all_reduce(x)  # waiting\n")
    diagnosis = outcome.diagnosis
    assert (outcome.status, diagnosis["kind"], diagnosis["guilty"]) == (3, "missing", [1])
    assert diagnosis["waiting"]["site"] == outcome.at("waiting")


def test_a_group_destroyed_early_is_missing(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        dist.barrier()
        if rank == 1:
            dist.destroy_process_group()  # guilty
            time.sleep(60)
        dist.all_reduce(x)  # waiting
        """,
    )
    diagnosis = outcome.diagnosis
    assert (outcome.status, diagnosis["kind"], diagnosis["guilty"]) == (3, "missing", [1])
    at = diagnosis["guilty_at"]["1"]
    assert (at["op"], at["site"]) == ("destroy_process_group", outcome.at("guilty"))
    assert diagnosis["seconds"] < 1.0


def test_a_wait_across_two_groups_is_a_cycle(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        one, other = dist.new_group(), dist.new_group()
        first, second = (one, other) if rank == 0 else (other, one)
        dist.all_reduce(x, group=first)  # both
        dist.all_reduce(x, group=second)
        """,
    )
    diagnosis = outcome.diagnosis
    assert (outcome.status, diagnosis["kind"], diagnosis["guilty"]) == (3, "wait_cycle", [0, 1])
    assert {at["site"] for at in diagnosis["guilty_at"].values()} == {outcome.at("both")}
    assert diagnosis["seconds"] < 1.0


def test_a_cycle_beside_a_helper_thread_is_judged_by_patience(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        import threading
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        one, other = dist.new_group(), dist.new_group()
        dist.all_reduce(x, group=one if rank == 0 else other)
        """,
        patience=0.5,
    )
    assert (outcome.status, outcome.diagnosis["kind"]) == (3, "stalled")


def test_a_rank_stopped_inside_a_collective_is_frozen(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        import threading
        stop = lambda: os.kill(os.getpid(), signal.SIGSTOP)
        if rank == 1:
            threading.Timer(0.2, stop).start()
        else:
            time.sleep(1.0)
        dist.all_reduce(x)
        """,
        patience=1.0,
    )
    assert (outcome.status, outcome.diagnosis["kind"], outcome.diagnosis["guilty"]) == (3, "frozen", [1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_ranks_and_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    script, up = tmp_path / "program.py", tmp_path / "up"
    os.mkfifo(up)
    # The second word of a rank's command line is where its ledger lies.
    script.write_text(
        "import sys, time\n"
        "words = open('/proc/self/cmdline').read().split('\\0')\n"
        f"open({str(up)!r}, 'w').write(words[words.index('esper.lockstep.rank') + 1])\n"
        "time.sleep(60)\n"
    )
    with started("--nproc", "1", "--", str(script)) as process:
        ledgers = Path(up.read_text())
        assert (ledgers / "rank0.ledger").is_file()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert not ledgers.exists()


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGKILL,),
        pytest.param((signal.SIGINT, signal.SIGTERM, signal.SIGINT), marks=pytest.mark.stress),
    ],
)
def test_however_it_is_ended_nobody_and_nothing_stays(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    """The ranks take no SIGTERM, and have children; `started` sees whether one of them is left."""
    script, up = tmp_path / "program.py", tmp_path / "up"
    os.mkfifo(up)
    script.write_text(
        "import os, signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "words = open('/proc/self/cmdline').read().split('\\0')\n"
        "if os.environ['RANK'] == '0':\n"
        f"    open({str(up)!r}, 'w').write(words[3])\n"
        "time.sleep(60)\n"
    )
    with started("--nproc", "2", "--", str(script)) as process:
        ledgers = Path(up.read_text())
        assert (ledgers / "rank0.ledger").is_file()
        for number in numbers:
            process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == (-9 if numbers == (signal.SIGKILL,) else 128 + process.returncode % 128)
    end = time.monotonic() + 5.0
    while ledgers.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nproc", "2"], "no script: "),
        (["--nproc", "2", "--", "none.py"], "script 'none.py' is no file"),
        (["--nproc", "2", "--", "/"], "script '/' is no file"),
        (["--nproc", "0", "--", __file__], "--nproc=0 must be an integer >= 1"),
        (["--nproc", "two", "--", __file__], "argument --nproc: invalid int value: 'two'"),
        (
            ["--nproc", "2", "--patience", "0", "--", __file__],
            "--patience=0.0 must be a number of seconds > 0",
        ),
        (
            ["--nproc", "2", "--patience", "nan", "--", __file__],
            "--patience=nan must be a number of seconds > 0",
        ),
        (
            ["--nproc", "2", "--compile-patience", "-1", "--", __file__],
            "--compile-patience=-1.0 must be a number of seconds >= 0",
        ),
        (
            ["--nproc", "2", "--report", "/none/r.json", "--", __file__],
            "--report '/none/r.json': No such file or directory",
        ),
        (["--nproc", "-1", "--", __file__], "--nproc=-1 must be an integer >= 1"),
        (["--nproc", "2.5", "--", __file__], "argument --nproc: invalid int value: '2.5'"),
        (["--nproc", "2", "--", ""], "script '' is no file; give the path of a Python script"),
        (["--nproc", "2", "--", "x" * 5000], "can't be read (File name too long)"),
        (["--nproc", "2", "--report", "/", "--", __file__], "--report '/': Is a directory"),
        (["--nproc", "2", "--report", "/proc/r", "--", __file__], "--report '/proc/r': No such file"),
        (["--bogus", "--nproc", "2", "--", __file__], "unrecognized arguments: --bogus"),
        ([], "the following arguments are required: --nproc"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], said: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    *usage, last = done.stderr.splitlines()
    assert all(re.match("usage:|  ", line) for line in usage), done.stderr
    assert said in last
