"""`esper history`, `plot`, `eval` and `doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.cli import main
from tests.esper.cli.test_train import EAGER

RUN = "run"


def esper(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a run showed."""
    Path("eager.toml").write_text(EAGER)
    assert esper("train", "--epochs", "6", "--config", "eager.toml", "--out", RUN) == 0
    return capsys.readouterr().out.splitlines()


def test_history_says_what_was_done_and_why(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert esper("history", RUN, "--all") == 0
    every = capsys.readouterr().out.splitlines()
    assert every == [line for line in trained if line.startswith(("epoch ", "    "))]
    assert esper("history", RUN) == 0
    told = capsys.readouterr().out.splitlines()
    assert set(told) < set(every)
    assert [line for line in told if line.startswith("      ")] == [
        line for line in every if line.startswith("      ")
    ]


def test_plot_draws_the_run_again(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path(RUN, "run.png").unlink()
    assert esper("plot", RUN) == 0
    assert Path(RUN, "run.png").read_bytes().startswith(b"\x89PNG")
    assert esper("plot", RUN, "--to", "other.svg") == 0
    assert "<svg" in Path("other.svg").read_text()
    assert capsys.readouterr().out == f"{RUN}/run.png\nother.svg\n"


def test_eval_comes_to_what_the_run_did(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert esper("eval", RUN) == 0
    first, *others = capsys.readouterr().out.splitlines()
    accuracy = next(line for line in trained if line.startswith("6 epochs: ")).split()[3]
    assert first.startswith(f"{RUN}/checkpoints/epoch-000006.checkpoint: accuracy {accuracy}, loss ")
    assert len(others) == 1
    assert others[0].startswith("  without r0c0 ")


@pytest.mark.parametrize("command", ["history", "plot", "eval"])
def test_what_is_no_run_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert esper(command, "nowhere") == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"esper {command}: nowhere/log.jsonl: it can't be read (No such file or directory); "
    )
    assert said.endswith("name the folder of a run\n")


def test_doctor_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert esper("doctor") == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert told["torch"] == torch.__version__
    assert "gloo" in told["backends"]
    assert told["fork"] == told["pidfd"] == "works"
    assert told["interception"].startswith("works, ")
