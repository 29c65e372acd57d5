"""What a named task is trained with where its user says nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from esper.training.tasks import TaskName

# Lives of some twenty epochs, so that two seeds may be kept within a run.
_SHORT: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "slot": {"tempo": 3, "embargoed_epochs": 2},
        "gates": {"min_training_epochs": 3, "max_training_epochs": 8, "min_blending_epochs": 3},
    }
)
# With Adam a loss falls by some percent an epoch long after accuracy has come to a plateau.
_PLATEAU: Mapping[str, Any] = MappingProxyType(
    {
        "plateau_epochs": 2,
        "plateau_points": 1.0,
        "stable_epochs": 2,
        "stable_fall": 0.2,
        "stable_rise": 0.1,
    }
)
# Some tens of updates are all that a machine without accelerators makes in minutes: each has to count, so it
# takes longer steps and more of them than where there are thousands.
_LEARNING: Mapping[str, Any] = MappingProxyType(
    {"lr": 3e-3, "passes": 8, "minibatches": 2, "tempos": [1, 3, 5], "target_kl": 0.05}
)
_PRESETS: Mapping[TaskName, Mapping[str, Any]] = MappingProxyType(
    {
        TaskName.DIGITS: {
            **_SHORT,
            "epochs": 60,
            "optimizer": {"name": "adam", "lr": 0.005},
            "heuristic": {**_PLATEAU, "blueprints": ["conv_light", "conv_small"]},
            "random": {"blueprints": ["conv_light", "conv_small"]},
            "ppo": {**_LEARNING, "blueprints": ["conv_light", "conv_small"]},
        },
        TaskName.PYDOC: {
            **_SHORT,
            "epochs": 40,
            # So small that it learns what it can in that time: a larger one would still be learning.
            "host": {"name": "gpt", "width": 16, "blocks": 2},
            "optimizer": {"name": "adam", "lr": 0.01},
            # A point is much of what the next byte can be foretold by. Most gradients are the embeddings'.
            "gates": {**_SHORT["gates"], "min_contribution": 0.1, "min_gradient_ratio": 0.02},
            "heuristic": {
                **_PLATEAU,
                "plateau_points": 1.5,
                "min_contribution": -0.2,  # what a seed is worth shows after some epochs of being held
                "blueprints": ["attention", "mlp"],
            },
            "random": {"blueprints": ["attention", "mlp"]},
            "ppo": {**_LEARNING, "blueprints": ["attention", "mlp"]},
            "governor": {"guess_loss": math.log(256)},
        },
        TaskName.CIFAR10: {
            **_SHORT,
            "epochs": 60,
            "batch_size": 64,
            "host": {"width": 16, "blocks": 3},
            "optimizer": {"name": "adam", "lr": 0.002},
            "heuristic": {**_PLATEAU, "blueprints": ["conv_light", "bottleneck"]},
            "random": {"blueprints": ["conv_light", "bottleneck"]},
            "ppo": {**_LEARNING, "blueprints": ["conv_light", "bottleneck"]},
        },
    }
)


def preset(task: TaskName) -> dict[str, Any]:
    """Settings as `TrainConfig.from_dict` takes them."""
    return {"task": str(task), **_PRESETS.get(task, {})}
