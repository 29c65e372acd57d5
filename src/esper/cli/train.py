"""`esper train`: one run, on one process or on each rank that torchrun has started."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from esper.control.names import ControllerName
from esper.errors import (
    CheckpointRefused,
    ConfigError,
    DataError,
    EsperError,
    GrowthFailed,
    NoCheckpoint,
    TrainingDiverged,
)

RUNS = "esper-runs"
_CHECKPOINT_EVERY = 10
# Raised by all ranks alike.
_ON_ALL = (GrowthFailed, NoCheckpoint, TrainingDiverged)
# Not from where they are defined: `esper --help` takes no second to load torch.
_TASKS = ("digits", "pydoc", "cifar10")


def add_commands(commands: Any) -> None:
    """Add `train`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a network that grows",
        description="Train a network that grows, on this process or on every rank that torchrun has started: "
        "torchrun --nproc-per-node 4 -m esper train ...",
    )
    controllers = [name.value for name in ControllerName if name is not ControllerName.OWN]
    add = parser.add_argument
    add("--task", choices=_TASKS, help="what to train on (digits)")
    add("--controller", choices=controllers, help="who decides what grows (heuristic)")
    add(
        "--policy",
        type=Path,
        metavar="FILE",
        help="what ppo goes by: policy.checkpoint of a run; without it a policy is learned first",
    )
    add("--epochs", type=int, metavar="N", help="how many, those before a resume included")
    add("--slots", type=int, metavar="N", help="blocks of the host, each of which has a slot (2)")
    add("--seed", type=int, metavar="N", help="of weights, batches and growth (0)")
    add("--config", type=Path, metavar="FILE", help="settings as TOML; options go before it")
    add("--data-dir", type=Path, metavar="DIR", help="where cifar10 lies")
    add("--compile", action="store_true", default=None, help="compile training steps")
    add("--out", type=Path, metavar="DIR", help=f"the run's folder ({RUNS}/TASK-CONTROLLER-SEED-NUMBER)")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="where checkpoints lie (OUT/checkpoints)")
    add(
        "--checkpoint-every",
        type=int,
        default=_CHECKPOINT_EVERY,
        metavar="N",
        help=f"epochs between two checkpoints ({_CHECKPOINT_EVERY})",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint, which --out or --checkpoint-dir has",
    )
    add("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (cuda if there is one)")
    parser.set_defaults(do=train)


def train(options: argparse.Namespace) -> int:
    """Run it; the exit status."""
    from esper.cli.settings import make_config

    try:
        config = make_config(options.config, _given(options))
        if options.resume and options.out is None and options.checkpoint_dir is None:
            raise DataError("--resume", "nothing says from where", "add --out DIR of the run")
        if options.policy is not None and config.controller is not ControllerName.PPO:
            raise ConfigError("--policy", str(options.policy), "left out, or given with --controller ppo")
        if options.checkpoint_every < 1:
            raise ConfigError("--checkpoint-every", options.checkpoint_every, "an int of at least 1")
    except EsperError as error:
        return _refuse(error, 2)
    from esper.cli.run import run

    try:
        return run(
            config,
            out=options.out,
            data_dir=options.data_dir,
            checkpoint_dir=options.checkpoint_dir,
            checkpoint_every=options.checkpoint_every,
            resume=options.resume,
            device=options.device,
            policy=options.policy,
        )
    except (CheckpointRefused, ConfigError, DataError, NoCheckpoint) as error:
        return _refuse(error, 2)
    except (EsperError, OSError) as error:
        return _refuse(error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _refuse(error: Exception, status: int) -> int:
    rank = os.environ.get("RANK", "0")
    if isinstance(error, _ON_ALL) and rank != "0":
        return status  # which the first one says
    where = f"rank {rank}: " if "RANK" in os.environ and not isinstance(error, _ON_ALL) else ""
    sys.stderr.write(f"esper train: {where}{error}\n")
    return status


def _given(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("task", "controller", "epochs", "seed")}
    given["host"] = None if options.slots is None else {"blocks": options.slots}
    given["compile"] = None if options.compile is None else {"enabled": True}
    return {name: value for name, value in given.items() if value is not None}
