"""scikit-learn's bundled handwritten digits: 1,797 real pictures of 8 x 8, ten classes, no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esper.errors import DataError
from esper.training.tasks.task import ShardedTask

TEST_SHARE = 5  # every fifth picture is for evaluation


def load_digits_task(*, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> ShardedTask:
    """The digits (N, 1, 8, 8) in [0, 1]: 1,437 to train on, 360 to evaluate on; one split for every seed.

    Raises DataError without scikit-learn.
    """
    rows = _rows()
    pictures = torch.from_numpy(rows[:, :-1]).float().div_(16.0).view(-1, 1, 8, 8)
    classes = torch.from_numpy(rows[:, -1]).long()
    for_test = torch.arange(len(classes)) % TEST_SHARE == 0
    return ShardedTask(
        train=(pictures[~for_test], classes[~for_test]),
        test=(pictures[for_test], classes[for_test]),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def _rows() -> Any:
    """The digits (1797, 65): 64 pixels of 0 to 16, and the class."""
    installed = find_spec("sklearn")
    if installed is None or not installed.submodule_search_locations:
        raise DataError("digits", "scikit-learn is not installed", "install pytest-esper-ddp[train]")
    # `load_digits` reads this file, too, but scikit-learn takes longer to import than torch's own start, on
    # each rank.
    file = Path(installed.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if file.is_file():
        return np.loadtxt(file, delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
