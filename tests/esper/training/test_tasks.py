"""The tasks that come by name: what their batches are, and what is said of data that can't be used."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esper.errors import DataError
from esper.training.tasks import (
    ShardedTask,
    cifar10,
    load_cifar10_task,
    load_digits_task,
    load_pydoc_task,
)

IN_A_FILE = 20


def batches(task: ShardedTask, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(task.train_batches(epoch))


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    published, task = load_digits(), load_digits_task(batch_size=32, seed=0)
    pictures = torch.from_numpy(published.images).float().unsqueeze(1) / 16.0
    classes = torch.from_numpy(published.target)
    for (inputs, targets), chosen in ((task.test, slice(0, None, 5)), (task.train, None)):
        wanted = torch.arange(len(classes)) % 5 != 0 if chosen is None else chosen
        assert torch.equal(inputs, pictures[wanted])
        assert torch.equal(targets, classes[wanted])


def test_a_window_of_text_is_followed_by_the_same_one_byte_on() -> None:
    task = load_pydoc_task(batch_size=8, seed=0, context=16)
    inputs, targets = task.train
    assert inputs.shape == targets.shape == (len(inputs), 16)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs[1:, 0], targets[:-1, -1])
    assert bytes(inputs[:4].flatten().tolist()).isascii()


def test_text_for_evaluation_is_of_other_topics() -> None:
    task = load_pydoc_task(batch_size=8, seed=0)
    trained = {bytes(window.tolist()) for window in task.train[0]}
    assert not [window for window in task.test[0] if bytes(window.tolist()) in trained]


def test_an_epoch_of_text_is_a_part_that_changes_and_that_a_seed_fixes() -> None:
    tasks = [load_pydoc_task(batch_size=32, seed=seed) for seed in (0, 0, 1)]
    first, same, other = (batches(task, 1) for task in tasks)
    assert len(first) == tasks[0].announce(1) < len(tasks[0].train[0]) // 32
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert not torch.equal(first[0][0], batches(tasks[0], 2)[0][0])


@pytest.mark.parametrize("load", [load_digits_task, load_pydoc_task])
def test_ranks_share_an_epoch_and_the_evaluation(load: Callable[..., ShardedTask]) -> None:
    ranks = [load(batch_size=32, seed=0, rank=rank, world_size=4) for rank in range(4)]
    assert len({task.announce(1) for task in ranks}) == 1
    assert all(len(batches(task, 1)) == task.announce(1) for task in ranks)
    evaluated = sum(len(classes) for task in ranks for _, classes in task.test_batches())
    assert evaluated == len(ranks[0].test[1])


def test_an_evaluation_comes_in_parts_that_fit_into_memory() -> None:
    data = torch.zeros(2500, 1), torch.zeros(2500, dtype=torch.long)
    task = ShardedTask(train=data, test=data, batch_size=8, seed=0)
    assert [len(classes) for _, classes in task.test_batches()] == [1024, 1024, 452]


def pictures(number: int) -> tuple[Any, Any]:
    draw = np.random.default_rng(number)
    return draw.integers(0, 256, (IN_A_FILE, 3072), dtype=np.uint8), draw.integers(0, 10, IN_A_FILE)


def as_records(folder: Path) -> Path:
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows, labels = pictures(number)
        (folder / f"{name}.bin").write_bytes(np.hstack([labels[:, None].astype(np.uint8), rows]).tobytes())
    return folder


def as_pickles(folder: Path) -> Path:
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows, labels = pictures(number)
        content = {b"data": rows, b"labels": labels.tolist(), b"batch_label": b"one of them"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_IN_A_FILE", IN_A_FILE)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    ("write", "name"), [(as_records, "cifar-10-batches-bin"), (as_pickles, "cifar-10-batches-py")]
)
@pytest.mark.parametrize("inside", [False, True])
def test_both_layouts_of_cifar10_hold_the_same(
    write: Callable[[Path], Path], name: str, inside: bool, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    write(tmp_path / name)
    task = load_cifar10_task(tmp_path / name if inside else tmp_path, batch_size=10, seed=0)
    rows, labels = pictures(5)
    assert torch.equal(task.test[0], torch.from_numpy(rows).view(-1, 3, 32, 32))
    assert task.test[1].tolist() == labels.tolist()
    assert len(task.train[1]) == 5 * IN_A_FILE
    ((inputs, _),) = task.test_batches()
    assert inputs.dtype == torch.float32
    assert inputs[0, 0, 0, 0].item() == pytest.approx((rows[0, 0] / 255 - 0.4914) / 0.2470, abs=1e-5)


def evil() -> bytes:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch ran",)

    return pickle.dumps({b"data": Runs(), b"labels": []}, protocol=2)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no batch of pictures"),
        (evil(), "names posix.system"),
        (pickle.dumps({b"data": 1, b"labels": 2}, protocol=2), "in place of 20 pictures"),
        (
            pickle.dumps({b"data": pictures(0)[0], b"labels": [11] * IN_A_FILE}, protocol=2),
            "class 11, and there are 10",
        ),
    ],
    ids=["empty", "code", "shapes", "classes"],
)
def test_a_file_that_is_not_what_was_published_is_named(
    content: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (as_pickles(tmp_path) / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_3: .*{says}.*; unpack cifar"):
        load_cifar10_task(tmp_path, batch_size=10, seed=0)
    assert not Path("ran").exists()


@pytest.mark.usefixtures("small_files")
def test_files_that_are_cut_off_or_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither cifar-10-batches-bin nor cifar-10-batches-py"):
        load_cifar10_task(tmp_path, batch_size=10, seed=0)
    cut = as_records(tmp_path) / "data_batch_2.bin"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_2.bin: it has 61459 bytes in place of 61460"):
        load_cifar10_task(tmp_path, batch_size=10, seed=0)
    cut.unlink()
    with pytest.raises(DataError, match=r"data_batch_2.bin: it can't be read \(No such file"):
        load_cifar10_task(tmp_path, batch_size=10, seed=0)
