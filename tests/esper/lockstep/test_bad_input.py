"""Scripts, machines and users that `run` can't count on: a sentence or the script's own status, never a hang,
and nobody left behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from esper.lockstep.errors import InterceptionUnavailable, StartError
from tests.esper.lockstep.launching import SCHEMA, command, launch, started, warm_command

stress = pytest.mark.stress

JOIN = """
import os, signal, sys, time
import torch
import torch.distributed as dist
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
"""
# Ends in a mismatch that only a verdict ends.
CONTRADICT = """
if rank == 1:
    dist.barrier()
dist.all_reduce(x)
time.sleep(60)
"""


@dataclass(frozen=True)
class Ran:
    status: int
    text: str
    out: str
    report: dict[str, Any]

    @property
    def kinds(self) -> list[tuple[str, list[int]]]:
        return [(one["kind"], one["guilty"]) for one in self.report["diagnoses"]]


def run(
    folder: Path,
    text: str,
    nproc: int = 2,
    patience: float = 20.0,
    prepare: Callable[[], object] | None = None,
    warm: bool = True,
    **environment: str,
) -> Ran:
    """Run a script that makes its group itself, or none; the report is valid, and no process is left."""
    script, report = folder / "program.py", folder / "report.json"
    script.write_text(text)
    words = ["--nproc", str(nproc), "--report", str(report), "--patience", str(patience), "--", str(script)]
    assert not (warm and environment), "what an interpreter reads when it starts"
    done = warm_command(*words, prepare=prepare) if warm else command(*words, prepare=prepare, **environment)
    document = json.loads(report.read_text())
    jsonschema.validate(document, SCHEMA)
    return Ran(done.returncode, done.stderr, done.stdout, document)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that the kernel gives nobody by chance, and on which rank 0 may listen."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# The command line.


def without_roots_rights() -> None:
    for right in (1, 2):  # to read and to search what its mode does not allow
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)


def test_a_script_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("")
    script.chmod(0)
    done = command("--nproc", "2", "--", str(script), prepare=without_roots_rights)
    assert done.returncode == 2
    assert f"script {str(script)!r} can't be read (Permission denied)" in done.stderr.splitlines()[-1]


def test_an_earlier_runs_report_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    script, report, up = tmp_path / "program.py", tmp_path / "report.json", tmp_path / "up"
    os.mkfifo(up)
    report.write_text('{"verdict": "clean"}')
    script.write_text(f"open({str(up)!r}, 'w').close()\nimport time; time.sleep(60)")
    with started("--nproc", "1", "--report", str(report), "--", str(script)):
        up.read_text()
        assert report.read_text() == ""


def test_a_report_that_finds_no_room_is_said_and_changes_no_status(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("import sys; sys.exit(7)")
    done = warm_command("--nproc", "1", "--report", "/dev/full", "--", str(script))
    assert (done.returncode, done.stderr) == (
        7,
        "--report '/dev/full' is not written: No space left on device\n",
    )


# The script.


def test_a_syntax_error_is_the_scripts_own_end(tmp_path: Path) -> None:
    ran = run(tmp_path, "def f(:\n")
    assert (ran.status, ran.report["verdict"]) == (1, "failed")
    assert ran.text.count("SyntaxError: invalid syntax") == 2
    assert "rank.py" not in ran.text


def test_a_script_without_torch_runs_as_it_is(tmp_path: Path) -> None:
    # One write: where streams are unbuffered, what print() writes word by word is torn by the other rank's.
    ran = run(tmp_path, "import os\nos.write(1, b'rank %s\\n' % os.environb[b'RANK'])\n")
    assert (ran.status, ran.report["verdict"], ran.text) == (0, "clean", "")
    assert sorted(ran.out.split()) == ["0", "1", "rank", "rank"]


@pytest.mark.parametrize(
    "how",
    [
        "init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=world",
        pytest.param("init_method=f'file://{folder}/meet', rank=rank, world_size=world", marks=stress),
        pytest.param("init_method=f'file://{folder}/meet?rank={rank}&world_size={world}'", marks=stress),
        pytest.param(
            "store=dist.FileStore(folder + '/meet', world), rank=rank, world_size=world", marks=stress
        ),
        pytest.param("init_method='env://'", marks=stress),
    ],
)
@pytest.mark.parametrize("ends", ["contradicts", "early"])
def test_however_it_joins_it_is_followed(tmp_path: Path, how: str, ends: str) -> None:
    early = "if rank == 1: sys.exit()" if ends == "early" else ""
    with reserved_port() as port:
        text = (
            f"{JOIN}folder, port = {str(tmp_path)!r}, {port}\n{early}\ndist.init_process_group('gloo', {how})"
        )
        ran = run(tmp_path, f"{text}\nx = torch.ones(4)\ndist.all_reduce(x)\n{CONTRADICT}")
    assert ran.status == 3, ran.text
    assert ran.kinds == ([("exited", [1])] if early else [("mismatch", [0, 1])])
    if early:
        assert ran.text.startswith("rank 1 exited before init_process_group #0 of the job\n")


@stress
@pytest.mark.parametrize("status", [0, 5])
def test_a_healthy_program_may_join_by_tcp_and_leave_as_it_likes(tmp_path: Path, status: int) -> None:
    with reserved_port() as port:
        ran = run(
            tmp_path,
            f"{JOIN}dist.init_process_group('gloo', 'tcp://127.0.0.1:{port}', rank=rank, world_size=world)\n"
            f"dist.barrier()\nos._exit({status})",
        )
    assert (ran.status, ran.report["verdict"]) == (status, "failed" if status else "clean"), ran.text


@pytest.mark.parametrize(
    "end",
    ["sys.exit(5)", pytest.param("os._exit(0)", marks=stress), pytest.param("1 / 0", marks=stress)],
)
def test_a_rank_that_ends_before_it_makes_a_group_is_named(tmp_path: Path, end: str) -> None:
    ran = run(tmp_path, f"{JOIN}if rank == 1: {end}\ndist.init_process_group('gloo')")
    assert ran.status == 3, ran.text
    assert ran.kinds == [("raised" if "/" in end else "exited", [1])]
    (diagnosis,) = ran.report["diagnoses"]
    assert diagnosis["waiting"]["site"] == f"{tmp_path / 'program.py'}:7"
    assert diagnosis["guilty_at"]["1"]["site"] == f"{tmp_path / 'program.py'}:6"


def test_a_job_of_some_of_the_ranks_waits_for_nobody_else(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        f"{JOIN}if rank == 0:\n"
        f"    dist.init_process_group('gloo', 'file://{tmp_path}/meet', rank=0, world_size=1)\n"
        "    time.sleep(0.3)\n    dist.barrier()\n",
    )
    assert (ran.status, ran.report["verdict"], ran.text) == (0, "clean", "")


def test_a_failure_that_leaves_the_others_waiting_where_nobody_sees_ends_them(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        f"{JOIN}if rank == 1: sys.exit(7)\n"
        "store = dist.TCPStore('127.0.0.1', int(os.environ['MASTER_PORT']), is_master=False)\n"
        "store.wait(['never'])",
        patience=0.5,
    )
    assert (ran.status, ran.report["verdict"], ran.kinds) == (7, "failed", [])
    assert ran.text == "rank 1 failed, and nothing was heard of rank 0 for 0.5 s since: ended\n"


@stress
def test_a_backend_that_nobody_has_is_no_divergence(tmp_path: Path) -> None:
    ran = run(tmp_path, f"{JOIN}dist.init_process_group('nonesuch')")
    assert (ran.status, ran.report["verdict"], ran.kinds) == (1, "failed", [])


@stress
def test_an_init_that_fails_and_is_tried_again_counts_once(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        f"{JOIN}if rank == 1:\n"
        "    try: dist.init_process_group('nonesuch', 'env://', store=dist.HashStore())\n"
        "    except Exception: pass\n"
        "dist.init_process_group('gloo')\ndist.barrier()\ndist.destroy_process_group()\n",
    )
    assert (ran.status, ran.report["verdict"]) == (0, "clean"), ran.text


@pytest.mark.parametrize("ends", [CONTRADICT, pytest.param("dist.barrier()", marks=stress)])
def test_children_of_a_rank_end_with_it(tmp_path: Path, ends: str) -> None:
    """They hold its output open, too: who reads it would wait for them."""
    outcome = launch(
        tmp_path,
        "import subprocess\n"
        "if os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\n"
        "subprocess.Popen(['sleep', '60'])\n" + ends,
    )
    assert outcome.status == (3 if ends == CONTRADICT else 0), outcome.text


def test_a_child_that_leaves_the_session_is_let_go(tmp_path: Path) -> None:
    up = tmp_path / "up"
    os.mkfifo(up)
    outcome = launch(
        tmp_path,
        f"""
        if rank == 0 and os.fork() == 0:
            os.setsid()
            for number in range(3):
                os.dup2(os.open("/dev/null", os.O_RDWR), number)
            # The mark by which a test finds what is left must not find this one.
            os.execve(sys.executable, [sys.executable, "-c", "open({str(up)!r}, 'w').write('alive')"], {{}})
        dist.barrier()
        dist.destroy_process_group()
        """,
    )
    assert outcome.status == 0, outcome.text
    assert up.read_text() == "alive"


@pytest.mark.parametrize(
    "how",
    [
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        pytest.param("[signal.signal(one, signal.SIG_IGN) for one in replaced]", marks=stress),
        pytest.param("[signal.signal(one, lambda *_: None) for one in replaced]", marks=stress),
    ],
)
@pytest.mark.parametrize("hangs", [CONTRADICT, "if rank == 0: dist.barrier()\ntime.sleep(60)"])
def test_signals_that_a_program_takes_away_keep_it_neither_from_a_verdict_nor_from_its_end(
    tmp_path: Path, how: str, hangs: str
) -> None:
    names = ("SIGTERM", "SIGINT", "SIGURG", "SIGUSR1", "SIGHUP")
    replaced = ", ".join(f"signal.{name}" for name in names)
    outcome = launch(tmp_path, f"replaced = [{replaced}]\n{how}\n{hangs}", patience=0.5)
    assert outcome.status == 3, outcome.text
    kind = "mismatch" if hangs == CONTRADICT else "frozen"
    assert (outcome.diagnosis["kind"], 1 in outcome.diagnosis["guilty"]) == (kind, True)


def test_all_files_closed_cost_the_program_nothing(tmp_path: Path) -> None:
    """What a daemon does first; a file of its own then has the number of one of ours."""
    mine = "own = [open(f'{sys.argv[0]}.{rank}.{n}', 'w+') for n in range(20)]"
    ran = run(
        tmp_path,
        f"{JOIN}import sys\nos.closerange(3, 65536)\n{mine}\ndist.init_process_group('gloo')\n"
        f"x = torch.ones(4)\ndist.all_reduce(x)\nassert not any(one.read() for one in own)\n{CONTRADICT}",
    )
    assert (ran.status, ran.kinds) == (3, [("mismatch", [0, 1])])


def test_whatever_else_a_program_throws_away_is_its_own_affair(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        f"""
        os.mkdir("{tmp_path}/gone%d" % rank)
        os.chdir("{tmp_path}/gone%d" % rank)
        os.rmdir("{tmp_path}/gone%d" % rank)
        os.environ.clear()
        for number in range(3):
            os.close(number)
        dist.all_reduce(x)
        """
        + CONTRADICT.replace("\n", "\n        "),
    )
    assert (outcome.status, outcome.diagnosis["kind"]) == (3, "mismatch")


@stress
def test_a_rank_out_of_memory_is_named(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        if rank == 1:
            import resource
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            big = bytearray(1 << 32)  # guilty
        dist.all_reduce(x)
        """,
    )
    assert (outcome.status, outcome.diagnosis["kind"], outcome.diagnosis["guilty"]) == (3, "raised", [1])
    assert outcome.diagnosis["guilty_at"]["1"]["detail"].startswith("MemoryError")


@pytest.mark.parametrize(
    ("at_the_end", "status"),
    [("dist.barrier()\nos._exit(0)", 0), pytest.param("os._exit(7)", 7, marks=stress)],
)
def test_all_ranks_may_leave_without_a_word(tmp_path: Path, at_the_end: str, status: int) -> None:
    outcome = launch(tmp_path, f"dist.all_reduce(x)\n{at_the_end}")
    assert (outcome.status, outcome.verdict) == (status, "failed" if status else "clean"), outcome.text


# The machine.


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))


def test_no_room_for_ledgers_is_said_once_and_decides_nothing(tmp_path: Path) -> None:
    ran = run(tmp_path, "raise SystemExit(5)", nproc=3, prepare=small_files_only)
    first, second = ran.text.splitlines()
    assert re.fullmatch(
        r"rank \d: ledger /.*/rank\d\.ledger: File too large; it needs \d+ bytes there", first
    )
    assert re.fullmatch("inconclusive: rank . ended with status 1 before its script began", second)
    assert (ran.status, ran.report["verdict"]) == (4, "inconclusive")


@pytest.mark.parametrize("ends", ["dist.barrier()\n", pytest.param(CONTRADICT, marks=stress)])
def test_a_disk_that_gets_full_costs_no_healthy_program_anything(tmp_path: Path, ends: str) -> None:
    outcome = launch(
        tmp_path,
        """
        import glob, resource
        from esper import lockstep
        dist.all_reduce(x)
        (table,) = glob.glob(f"{sys.orig_argv[3]}/rank{rank}.strings")
        limit = os.stat(table).st_size + 40
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for number in range(100):
            with lockstep.tag(f"a tag of its own {number}"):
                dist.all_reduce(x)
        assert os.stat(table).st_size <= limit
        """
        + ends.replace("\n", "\n        "),
    )
    if ends == CONTRADICT:  # nothing that is legible proves it, so patience would have to
        assert outcome.verdict != "clean"
    else:
        assert (outcome.status, outcome.verdict) == (0, "clean"), outcome.text


def closed_streams() -> None:
    os.closerange(0, 3)


def no_reader() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.dup2(writing, 2)


@pytest.mark.parametrize("streams", [closed_streams, no_reader])
def test_nobody_need_hear_the_verdict(tmp_path: Path, streams: Callable[[], None]) -> None:
    """Late ranks are shown before it, and a word that nobody took must not end the watch."""
    ran = run(
        tmp_path,
        f"{JOIN}dist.init_process_group('gloo')\nx = torch.ones(4)\ntime.sleep(0.9 * rank)\n{CONTRADICT}",
        prepare=streams,
        warm=streams is not closed_streams,  # which an interpreter finds when it starts
    )
    assert (ran.status, ran.kinds, ran.text) == (3, [("mismatch", [0, 1])], "")


# Torch.


def site(folder: Path, text: str) -> str:
    (folder / "sitecustomize.py").write_text(f"import os\nif 'RANK' in os.environ:\n    {text}\n")
    return str(folder)


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        (
            "import torch; del torch._C._dispatch_keyset_full_after",
            r"rank \d: torch 2\..* has no torch\._C\._dispatch_keyset_full_after: "
            r"lockstep can't see its collectives \(2\.13 has it\)",
        ),
        pytest.param(
            "import sys; sys.modules['torch'] = None",
            r"rank \d: no recording: import of torch halted; None in sys\.modules",
            marks=stress,
        ),
        pytest.param(
            "import sys, torch; del torch.distributed.distributed_c10d; "
            "sys.modules['torch.distributed.distributed_c10d'] = None",
            r"rank \d: torch 2\..* has no torch\.distributed\.distributed_c10d\._get_default_store: .*",
            marks=stress,
        ),
    ],
)
def test_a_torch_without_the_hooks_is_named_at_the_start(tmp_path: Path, lacks: str, said: str) -> None:
    ran = run(tmp_path, "raise SystemExit(5)", warm=False, PYTHONPATH=site(tmp_path, lacks))
    first, second = ran.text.splitlines()
    assert re.fullmatch(said, first)
    assert re.fullmatch("inconclusive: rank . ended with status 1 before its script began", second)
    assert (ran.status, ran.report["verdict"]) == (4, "inconclusive")


@stress
def test_a_rank_that_never_begins_is_not_blamed_on_the_script(tmp_path: Path) -> None:
    lost = "if os.environ['RANK'] == '1': os.kill(os.getpid(), 9)"
    ran = run(tmp_path, f"{JOIN}dist.init_process_group('gloo')", warm=False, PYTHONPATH=site(tmp_path, lost))
    assert ran.text == "inconclusive: rank 1 ended by signal 9 before its script began\n"
    assert (ran.status, ran.report["verdict"]) == (4, "inconclusive")


@pytest.mark.parametrize(
    "error", [StartError("rank 3", "Cannot allocate memory"), InterceptionUnavailable("torch._C.x", "2.5")]
)
def test_its_errors_cross_a_process(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
