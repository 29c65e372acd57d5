"""`esper train` as a user has it: what is shown, what stays, stopping and going on, and wrong usage."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esper.cli import main
from esper.training import History
from esper.training.log import read_log

# Every epoch is a plateau and every gate lets pass: something is done in each epoch from the second on.
EAGER = """
[slot]
tempo = 1
[heuristic]
blueprints = ["norm"]
plateau_epochs = 1
plateau_points = 200.0
stable_epochs = 1
stable_fall = 1.0
stable_rise = 1.0
[gates]
min_improvement = -200.0
min_training_epochs = 1
min_blending_epochs = 1
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("eager.toml").write_text(EAGER)


def esper(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def history(folder: str | Path) -> History:
    return read_log(Path(folder))[1]


def test_a_run_is_shown_and_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert esper("train", "--epochs", "4", "--config", "eager.toml") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["epoch", "loss", "accuracy", "seconds", "slots"]
    assert [line.split()[0] for line in shown[1:] if line.startswith("    ") and line[4].isdigit()] == list(
        "1234"
    )
    assert any(line.startswith("      r0c0: germinate norm (a plateau: ") for line in shown)
    assert any(line.startswith("      r0c0: advance from GERMINATED, G1 passed") for line in shown)
    run = Path("esper-runs/digits-heuristic-0-1")
    assert {path.name.partition(".tfevents")[0] for path in run.iterdir()} == {
        "checkpoints", "events.out", "log.jsonl", "run.png",
    }  # fmt: skip
    assert (run / "run.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch-000004.checkpoint"]
    curves = EventAccumulator(str(run)).Reload()
    assert set(curves.Tags()["scalars"]) == {
        "train/loss", "test/accuracy", "model/parameters", "epoch/seconds",
        "alpha/r0c0", "alpha/r0c1", "stage/r0c0", "stage/r0c1",
    }  # fmt: skip
    points = [(one.step, one.value) for one in curves.Scalars("test/accuracy")]
    assert points == [(one.epoch, pytest.approx(one.accuracy)) for one in history(run).epochs]
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", *["epoch"] * 4, "end"]
    assert events[0]["config"]["task"] == "digits"
    assert events[-2]["parameters"] > events[1]["parameters"]
    assert len(history(run).epochs) == 4


def test_the_next_run_has_a_folder_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        assert esper("train", "--epochs", "1", "--controller", "none") == 0
        assert f"in esper-runs/digits-none-0-{number}: " in capsys.readouterr().out


def test_going_on_is_as_never_having_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    base = "train", "--config", "eager.toml"
    assert esper(*base, "--epochs", "6", "--out", "whole") == 0
    assert esper(*base, "--epochs", "3", "--out", "parts") == 0
    assert esper(*base, "--epochs", "6", "--out", "parts", "--resume") == 0
    assert "goes on from parts/checkpoints/epoch-000003.checkpoint" in capsys.readouterr().out
    assert history("whole").same_as(history("parts"))


def program(*words: str, **options: Any) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *words], stdout=pipe, stderr=pipe, text=True, **options)


def first_epoch(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:1] == ["1"]:
            return
    raise AssertionError(process.communicate()[1])


def test_ctrl_c_ends_with_a_checkpoint_after_the_epoch() -> None:
    with program("-m", "esper", "train", "--epochs", "10000", "--out", "run") as process:
        first_epoch(process)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    done = len(history("run").epochs)
    assert f"stopped after epoch {done} of 10000; --resume goes on" in said
    assert [path.name for path in Path("run/checkpoints").iterdir()] == [f"epoch-{done:06d}.checkpoint"]


def test_a_second_ctrl_c_ends_at_once() -> None:
    # An epoch of that many batches lasts longer than this test.
    Path("long.toml").write_text("batch_size = 1\n[host]\nwidth = 64\nblocks = 3\n")
    with program("-m", "esper", "train", "--config", "long.toml", "--out", "run") as process:
        log = Path("run/log.jsonl")
        while not (log.is_file() and log.stat().st_size):
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert "stopped" not in said


def test_ranks_of_torchrun_show_and_write_one_run() -> None:
    words = "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "esper", "train"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    options = "--epochs", "3", "--config", str(Path("eager.toml").resolve())
    with program(*words, *options, env=environment) as process:
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert said.count("r0c0: germinate norm") == 1
    assert said.count("3 epochs: accuracy") == 1
    run = Path("esper-runs/digits-heuristic-0-1")
    start = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert start["world_size"] == 2
    assert len(history(run).epochs) == 3


def test_ranks_that_are_told_different_things_say_which_once() -> None:
    each = f"exec {sys.executable} -m esper train --epochs 3 --out run --seed $RANK"
    words = "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", "bash", "-c", each
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with program(*words, env=environment) as process:
        said, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("config seed") == 1, errors
    assert errors.count("Traceback (most recent call last)") == 1  # torchrun's own
    assert said == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--epochs", "0"), "epochs=0 is not accepted: must be an int of at least 1"),
        (("--slots", "0"), "host.blocks=0 is not accepted: must be an int of at least 1"),
        (("--config", "no.toml"), "no.toml: it can't be read (No such file or directory)"),
        (("--config", "torn.toml"), "torn.toml: it is no TOML"),
        (
            ("--config", "key.toml"),
            "key.toml: optimizer.lrr=0.1 is not accepted: must be left out (did you mean lr?): ",
        ),
        (("--config", "type.toml"), "type.toml: epochs='ten' is not accepted: must be of type int"),
        (("--config", "task.toml"), "task='iris' is not accepted: must be one of digits, pydoc, cifar10"),
        (("--task", "cifar10"), "cifar10: it does not come along; say where it lies: --data-dir DIR"),
        (
            ("--task", "cifar10", "--data-dir", "none"),
            "none: neither cifar-10-batches-bin nor cifar-10-batches-py is there",
        ),
        (("--out", "torn.toml"), "torn.toml: no folder can be made there"),
        (("--out", "taken"), "taken: a run is in it already; --resume goes on with it"),
        (("--resume",), "--resume: nothing says from where; add --out DIR of the run"),
        (("--resume", "--out", "empty"), "no usable checkpoint in empty/checkpoints"),
        (("--checkpoint-every", "0"), "--checkpoint-every=0 is not accepted"),
        (("--device", "tpu"), "--device='tpu' is not accepted: must be cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "--device='cuda:99' is not accepted: must be one of the"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_has_one_sentence(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("torn.toml").write_text("epochs = \n")
    Path("key.toml").write_text("[optimizer]\nlrr = 0.1\n")
    Path("type.toml").write_text('epochs = "ten"\n')
    Path("task.toml").write_text('task = "iris"\n')
    Path("taken").mkdir()
    Path("taken/log.jsonl").touch()
    assert esper("train", *words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"esper train: {says}")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_run_of_another_task_or_config_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert esper("train", "--epochs", "1", "--out", "run") == 0
    capsys.readouterr()
    for words, says in (
        (("--controller", "none"), "controller='heuristic'"),
        (("--seed", "1"), "seed=0"),
        (("--task", "pydoc"), "another host"),
    ):
        assert esper("train", "--epochs", "2", "--out", "run", "--resume", *words) == 2
        assert says in capsys.readouterr().err


def test_a_disk_without_room_leaves_the_checkpoint_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert esper("train", "--epochs", "2", "--out", "run") == 0
    (kept,) = Path("run/checkpoints").iterdir()
    before = kept.read_bytes()
    room = len(before) // 2
    words = "-m", "esper", "train", "--epochs", "3", "--out", "run", "--resume"
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, room))
    with program(*words, preexec_fn=limit) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("esper train: [Errno 27] File too large")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == [kept.name]
    assert kept.read_bytes() == before


def test_ranks_that_are_started_again_go_on_in_the_same_folder() -> None:
    # The second attempt of a job of one: what torchrun tells it is all that differs.
    again = {**os.environ, "TORCHELASTIC_RESTART_COUNT": "1"}
    words = "-m", "esper", "train", "--controller", "none"
    for options, environment, says in (
        (("--epochs", "1"), again, "1 epoch: accuracy"),
        (
            ("--epochs", "2"),
            again,
            "goes on from esper-runs/digits-none-0-1/checkpoints/epoch-000001.checkpoint",
        ),
    ):
        with program(*words, *options, env=environment) as process:
            said, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert says in said
    assert [path.name for path in Path("esper-runs").iterdir()] == ["digits-none-0-1"]


LEARNING = """
epochs = 4
batch_size = 256
[gates]
min_training_epochs = 1
permissive = true
[ppo]
updates = 2
environments = 1
hidden = 8
"""


def test_a_policy_is_learned_shown_and_gone_by(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ppo.toml").write_text(LEARNING)
    base = "train", "--controller", "ppo", "--config", "ppo.toml"
    assert esper(*base, "--out", "first") == 0
    shown = capsys.readouterr().out
    assert "update 1 of 2: 1 runs to accuracy" in shown
    assert "4 epochs: accuracy" in shown
    lines = [json.loads(line) for line in Path("first/policy.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == [1, 2]
    assert {"entropy", "explained_variance", "kl"} <= lines[0]["update"].keys()
    assert esper(*base, "--out", "second", "--policy", "first/policy.checkpoint") == 0
    assert "update" not in capsys.readouterr().out
    assert history("first").same_as(history("second"))
    assert esper(*base, "--out", "first", "--resume", "--epochs", "4") == 0
    assert "learns on from first/policy.checkpoint, update 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--controller", "heuristic", "--policy", "there"), "--policy='there'"),
        (("--controller", "ppo", "--policy", "there"), "there is refused: it cannot be read"),
        (("--controller", "ppo", "--policy", "ppo.toml"), "ppo.toml is refused: it does not begin as one"),
    ],
)
def test_a_policy_that_is_none_is_one_sentence(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ppo.toml").write_text(LEARNING)
    assert esper("train", "--config", "ppo.toml", *words) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
