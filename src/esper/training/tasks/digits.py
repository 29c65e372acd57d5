"""scikit-learn's bundled handwritten digits: 1,797 real pictures of 8 x 8, ten classes, no download."""

from __future__ import annotations

import torch

from esper.errors import DataError
from esper.training.tasks.task import ShardedTask

TEST_SHARE = 5  # every fifth picture is for evaluation


def load_digits_task(*, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> ShardedTask:
    """The digits (N, 1, 8, 8) in [0, 1]: 1,437 to train on, 360 to evaluate on; one split for every seed.

    Raises DataError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits", "scikit-learn is not installed", "install pytest-esper-ddp[train]"
        ) from error
    digits = load_digits()
    pictures = torch.from_numpy(digits.images).float().div_(16.0).unsqueeze(1)
    classes = torch.from_numpy(digits.target).long()
    for_test = torch.arange(len(classes)) % TEST_SHARE == 0
    return ShardedTask(
        train=(pictures[~for_test], classes[~for_test]),
        test=(pictures[for_test], classes[for_test]),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
