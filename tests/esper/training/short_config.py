"""A run that is short enough for tests and long enough for a whole lifecycle."""

from __future__ import annotations

from typing import Any

from esper.training import TrainConfig

# At 4 ranks slot r0c0 is fossilised by the decision of epoch 8 (seeds 0 to 3) or 9 (seed 4), and the accuracy
# of the last epoch was above that of the same host without seeds for each of these seeds (by 1 to 30 points).
SHORT: dict[str, Any] = {
    "epochs": 20,
    "optimizer": {"name": "adam", "lr": 0.01},
    "slot": {"tempo": 2},
    "gates": {"min_training_epochs": 2, "min_blending_epochs": 2},
    "heuristic": {
        "blueprints": ["conv_light"],
        "plateau_epochs": 1,
        "plateau_points": 5.0,
        "stable_epochs": 1,
        "stable_fall": 0.5,
    },
}


def short_config(**changes: Any) -> TrainConfig:
    """The short run, with `changes` on its top level."""
    return TrainConfig.from_dict({**SHORT, **changes})
