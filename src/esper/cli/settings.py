"""A run's config, from the task's preset, a file, and what the command line says, in that order."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper.errors import ConfigError, DataError
from esper.training import TrainConfig, preset
from esper.training.tasks import TaskName


def make_config(file: Path | None, given: Mapping[str, Any]) -> TrainConfig:
    """`given`: nested settings of the command line. Raises ConfigError with the path of a key, and the file
    that it is in; DataError for a file that is no TOML or can't be read.
    """
    read = {} if file is None else _read(file)
    task = given.get("task", read.get("task", TaskName.DIGITS))
    named = [one.value for one in TaskName if one is not TaskName.OWN]
    if task not in named:
        raise ConfigError("task", task, f"one of {', '.join(named)}")
    defaults = {"controller": "heuristic", **preset(TaskName(task))}
    try:
        TrainConfig.from_dict(_merged(defaults, read))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.key}", error.value, error.accepted) from None
    return TrainConfig.from_dict(_merged(_merged(defaults, read), given))


def _read(file: Path) -> dict[str, Any]:
    fix = "give a file of TOML, as docs/training.md has it"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(str(file), f"it can't be read ({error.strerror})", fix) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(file), f"it is no TOML ({error})", fix) from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = (
            _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
        )
    return merged
