"""A run's log is read back as it was, also when the run was killed or went on from an earlier epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.errors import BadState, DataError
from esper.training import History, TrainConfig
from esper.training.log import NAME, RunLog, read_log
from tests.esper.training.lives import tiny_trainer


@pytest.fixture(scope="module")
def told() -> tuple[TrainConfig, History]:
    trainer = tiny_trainer()
    return trainer.config, trainer.run()


def part(history: History, epochs: int) -> History:
    return History(history.epochs[:epochs], history.final)


def write(folder: Path, told: tuple[TrainConfig, History], first: int, last: int) -> RunLog:
    config, history = told
    log = RunLog(folder)
    log.start(config, world_size=1, parameters=3, resumed=first - 1)
    for epoch in range(first, last + 1):
        log.epoch(part(history, epoch), parameters=3)
    return log


def test_what_was_written_is_read(told: tuple[TrainConfig, History], tmp_path: Path) -> None:
    config, history = told
    log = write(tmp_path, told, 1, len(history.epochs))
    assert read_log(tmp_path)[1].same_as(history)  # while it is being written, too
    log.end(1.0, stopped=False)
    log.close()
    assert read_log(tmp_path)[0] == config


def test_epochs_that_were_trained_again_count_once(told: tuple[TrainConfig, History], tmp_path: Path) -> None:
    epochs = len(told[1].epochs)
    write(tmp_path, told, 1, epochs).close()
    write(tmp_path, told, 3, 3).close()
    assert read_log(tmp_path)[1].same_as(part(told[1], 3))


def test_a_line_that_was_cut_off_is_left_out(told: tuple[TrainConfig, History], tmp_path: Path) -> None:
    write(tmp_path, told, 1, 3).close()
    path = tmp_path / NAME
    whole = path.read_bytes()
    for size in range(len(whole) - 2, whole[:-1].rfind(b"\n"), -97):
        path.write_bytes(whole[:size])
        assert read_log(tmp_path)[1].same_as(part(told[1], 2))


def test_a_line_that_is_none_is_named(told: tuple[TrainConfig, History], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the folder of a run"):
        read_log(tmp_path)
    write(tmp_path, told, 1, 3).close()
    path = tmp_path / NAME
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "}", *lines[2:]]))
    with pytest.raises(BadState, match=rf"{NAME}:2"):
        read_log(tmp_path)
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(BadState, match="begins with a start"):
        read_log(tmp_path)
    path.write_text("\n".join(lines).replace("esper.training/2", "esper.training/1"))
    with pytest.raises(BadState, match=rf"{NAME}:1 schema.*esper\.training/2"):
        read_log(tmp_path)
    path.write_text("")
    with pytest.raises(BadState, match="begins with a start"):
        read_log(tmp_path)
