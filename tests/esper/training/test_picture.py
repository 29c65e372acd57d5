"""The picture says what the log says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from esper.errors import BadState, DataError
from esper.lifecycle import Stage
from esper.training import History, draw_run, save_picture
from esper.training.picture import COLOURS
from tests.esper.training.lives import tiny_trainer


@pytest.fixture(scope="module")
def history() -> History:
    """Eighteen epochs; one seed kept, one pruned, one under way; the last but two undone."""
    run = tiny_trainer(epochs=18).run()
    undone = replace(run.epochs[15], panicking=(0,), loss=float("nan"))
    return History((*run.epochs[:15], undone, *run.epochs[16:]), run.final)


def test_the_log_survives_as_text(history: History) -> None:
    again = History.from_json(history.to_json())
    assert again.same_as(history)
    assert again.epochs[0] == history.epochs[0]
    assert again.table() == history.table()


@pytest.mark.parametrize(
    ("text", "where"), [("{", "history"), ("[]", "history"), ('{"type": "History", "epochs": []}', "history")]
)
def test_a_foreign_log_is_refused_by_name(text: str, where: str) -> None:
    with pytest.raises(BadState) as caught:
        History.from_json(text)
    assert caught.value.where == where


def test_a_log_with_a_foreign_value_names_its_place(history: History) -> None:
    text = history.to_json().replace('"alpha_target": 1.0', '"alpha_target": "full"', 1)
    with pytest.raises(BadState, match=r"history\.epochs\[\d+\]\.records\[0\]\.alpha_target"):
        History.from_json(text)


def numbers(data: Any) -> list[float]:
    return [float(each) for each in data]


def test_each_panel_has_the_numbers_of_its_epochs(history: History) -> None:
    accuracy, stages, alpha = draw_run(history).axes
    assert numbers(accuracy.lines[0].get_xdata()) == list(range(1, 19))
    assert numbers(accuracy.lines[0].get_ydata()) == [result.accuracy for result in history.epochs]
    assert numbers(accuracy.lines[1].get_xdata()) == [16]

    drawn = {str(line.get_label()): numbers(line.get_ydata()) for line in alpha.lines}
    assert sorted(drawn) == ["r0c0", "r0c1"]  # r0c2 never had a seed
    assert drawn["r0c1"] == [result.records[1].alpha for result in history.epochs]

    bars = [bar for bar in stages.patches if isinstance(bar, Rectangle)]
    for row in range(3):
        painted: list[object] = []
        for bar in sorted(bars, key=Rectangle.get_x):
            if round(bar.get_y() + 0.4) == row:
                painted += [bar.get_facecolor()] * round(bar.get_width())
        assert painted == [to_rgba(COLOURS[result.records[row].stage]) for result in history.epochs]
    assert [text.get_text() for text in stages.texts] == ["conv_light", "attention", "norm"]
    assert [label.get_text() for label in stages.get_yticklabels()] == ["r0c0", "r0c1", "r0c2"]


def test_every_stage_has_a_colour_of_its_own() -> None:
    assert len({COLOURS[stage] for stage in Stage}) == len(Stage)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_it_is_written_in_the_format_of_its_name(tmp_path: Path, history: History, ending: str) -> None:
    path = tmp_path / f"run.{ending}"
    save_picture(history, path)
    assert path.read_bytes()[:5] == {"png": b"\x89PNG\r", "svg": b"<?xml"}[ending]


def test_without_epochs_or_matplotlib_it_says_what_would_help(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="it has no epochs"):
        draw_run(History())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        DataError, match=r"matplotlib: it is not installed; install pytest-esper-ddp\[train\]"
    ):
        draw_run(history)
