"""The plugin's options: command line, environment and ini share one description each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_esper_ddp.launch import Place

BACKENDS = ("gloo", "nccl", "auto")
ISOLATIONS = ("pool", "fresh")
STARTS = ("fork", "spawn")


@dataclass(frozen=True)
class Option:
    """One knob: `name` gives --ddp-NAME, the ini key ddp_NAME and the variable PYTEST_DDP_NAME, in this
    order.
    """

    name: str
    default: str
    metavar: str
    help: str
    parse: Callable[[str], Any]

    @property
    def flag(self) -> str:
        return f"--ddp-{self.name.replace('_', '-')}"

    @property
    def key(self) -> str:
        return f"ddp_{self.name}"

    @property
    def variable(self) -> str:
        return f"PYTEST_DDP_{self.name.upper()}"


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if not sizes or min(sizes) < 2:
        raise ValueError("integers >= 2, separated by commas (one rank cannot diverge)")
    return sizes


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return text

    return parse


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError("a number of seconds > 0")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**64:  # what torch takes
        raise ValueError
    return value


def _slots(text: str) -> int | None:
    if text == "auto":
        return None
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _rank(text: str) -> int | None:
    if text == "any":
        return None
    value = int(text)
    if value < 0:
        raise ValueError
    return value


OPTIONS = (
    Option(
        "world_size",
        "2",
        "N[,M...]",
        "ranks of tests that name none; several run each such test at each size",
        _sizes,
    ),
    Option("backend", "gloo", "|".join(BACKENDS), "backend of the default group", _one_of(*BACKENDS)),
    Option("timeout", "30", "SECONDS", "when a test on ranks is ended", _seconds),
    Option(
        "isolation", "pool", "|".join(ISOLATIONS), "whether ranks live on between tests", _one_of(*ISOLATIONS)
    ),
    Option(
        "start",
        "fork",
        "|".join(STARTS),
        "how ranks are made: forked from a process that has all loaded, or each a new one, which takes "
        "seconds; tests whose modules start threads or CUDA when they are imported are always spawned",
        _one_of(*STARTS),
    ),
    Option("seed", "0", "N", "what the ranks' random generators start from at every test", _seed),
    Option(
        "slots",
        "auto",
        "N|auto",
        "ranks that run tests at one time, over all sessions and workers of a user on this machine; "
        "a larger world runs alone; auto: twice the processors, or the largest world of the session where "
        "that is more",
        _slots,
    ),
    Option(
        "debug_rank",
        "any",
        "R|any",
        "the rank in which breakpoint(), --pdb and --trace prompt; any: the first that fails, at "
        "breakpoints one after the other",
        _rank,
    ),
)
_ACCEPTED = {
    "world_size": "integers >= 2, separated by commas",
    "seed": "an integer from 0 to 2**64 - 1",
    "slots": "an integer >= 1, or auto",
    "debug_rank": "a rank, or any",
    "timeout": "a number of seconds > 0",
}


@dataclass(frozen=True)
class Settings:
    """The resolved options of a session."""

    world_sizes: tuple[int, ...]
    backend: str
    timeout: float
    isolation: str
    start: str
    seed: int
    slots: int | None = None  # None: auto
    debug_rank: int | None = None  # None: any

    def header(self) -> str:
        """One line for the head of the session's output."""
        sizes = ",".join(map(str, self.world_sizes))
        return (
            f"ddp: world-size {sizes}, backend {self.backend}, timeout {self.timeout:g} s, "
            f"isolation {self.isolation}, start {self.start}, seed {self.seed}, slots {self.slots or 'auto'}"
        )


def add_options(parser: pytest.Parser) -> None:
    """Declare every option, as a flag and as an ini key."""
    group = parser.getgroup("ddp", "tests on several ranks")
    for option in OPTIONS:
        text = f"{option.help} (default {option.default}; ini {option.key}, environment {option.variable})"
        group.addoption(option.flag, dest=option.key, default=None, metavar=option.metavar, help=text)
        parser.addini(option.key, text, default=None)


def settings_of(config: pytest.Config, place: Place | None = None) -> Settings:
    """Resolve flag over environment over ini. Raises pytest.UsageError naming the value and where it came
    from. Launched ranks are as many as they are.
    """
    here = {} if place is None else {"world_size": str(place.world_size)}
    values = {
        option.name: _resolve(config, option, here.get(option.name, option.default)) for option in OPTIONS
    }
    return Settings(
        world_sizes=values["world_size"],
        backend=values["backend"],
        timeout=values["timeout"],
        isolation=values["isolation"],
        start=values["start"],
        seed=values["seed"],
        slots=values["slots"],
        debug_rank=values["debug_rank"],
    )


def _resolve(config: pytest.Config, option: Option, default: str) -> Any:
    given = (
        (option.flag, config.getoption(option.key)),
        (option.variable, os.environ.get(option.variable)),
        (f"ini key {option.key}", config.getini(option.key)),
        ("default", default),
    )
    source, text = next((source, str(value)) for source, value in given if value not in (None, ""))
    try:
        return option.parse(text.strip())
    except ValueError as error:
        accepted = _ACCEPTED.get(option.name) or str(error)
        raise pytest.UsageError(f"{source}={text}: must be {accepted}") from None
