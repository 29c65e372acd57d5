"""Training a growing model: one loop for one process and for many."""

from esper.training.build import build_model
from esper.training.config import HostConfig, OptimizerConfig, OptimizerName, TrainConfig
from esper.training.history import EpochResult, History
from esper.training.trainer import Controller, PreparedAction, Trainer

__all__ = [
    "Controller",
    "EpochResult",
    "History",
    "HostConfig",
    "OptimizerConfig",
    "OptimizerName",
    "PreparedAction",
    "TrainConfig",
    "Trainer",
    "build_model",
]
