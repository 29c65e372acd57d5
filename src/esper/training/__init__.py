"""Training a growing model: one loop for one process and for many."""

from esper.training.build import build_controller, build_model, build_task
from esper.training.callbacks import AfterEpoch, Callback
from esper.training.checkpoint import Checkpoints
from esper.training.compile import CompileConfig, CompileMode, CompileState, StepCompiler
from esper.training.config import HostConfig, HostName, OptimizerConfig, OptimizerName, TrainConfig
from esper.training.growth import Growth, PreparedAction
from esper.training.history import EpochResult, History
from esper.training.learning import Learner, Lesson
from esper.training.picture import draw_run, save_picture
from esper.training.policies import load_policy, resume_policy, save_policy
from esper.training.presets import preset
from esper.training.shortcuts import Trained, train_heuristic, train_ppo
from esper.training.trainer import Controller, Trainer

__all__ = [
    "AfterEpoch",
    "Callback",
    "Checkpoints",
    "CompileConfig",
    "CompileMode",
    "CompileState",
    "Controller",
    "EpochResult",
    "Growth",
    "History",
    "HostConfig",
    "HostName",
    "Learner",
    "Lesson",
    "OptimizerConfig",
    "OptimizerName",
    "PreparedAction",
    "StepCompiler",
    "TrainConfig",
    "Trained",
    "Trainer",
    "build_controller",
    "build_model",
    "build_task",
    "draw_run",
    "load_policy",
    "preset",
    "resume_policy",
    "save_picture",
    "save_policy",
    "train_heuristic",
    "train_ppo",
]
