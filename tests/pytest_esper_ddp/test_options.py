"""Flag over environment over ini, and what is said of a wrong value."""

from __future__ import annotations

from dataclasses import astuple
from typing import cast

import pytest

from pytest_esper_ddp.options import OPTIONS, Settings, settings_of

WRONG = [
    ("world_size", "1", "integers >= 2, separated by commas"),
    ("world_size", "0", "integers >= 2, separated by commas"),
    ("world_size", "2,1", "integers >= 2, separated by commas"),
    ("world_size", "two", "integers >= 2, separated by commas"),
    ("world_size", "2,,4", "integers >= 2, separated by commas"),
    ("world_size", "2.5", "integers >= 2, separated by commas"),
    ("backend", "mpi", "one of gloo, nccl, auto"),
    ("timeout", "0", "a number of seconds > 0"),
    ("timeout", "-1", "a number of seconds > 0"),
    ("timeout", "nan", "a number of seconds > 0"),
    ("timeout", "soon", "a number of seconds > 0"),
    ("isolation", "none", "one of pool, fresh"),
    ("start", "thread", "one of fork, spawn"),
    ("seed", "x", "an integer from 0 to 2**64 - 1"),
    ("seed", "-1", "an integer from 0 to 2**64 - 1"),
    ("seed", str(2**64), "an integer from 0 to 2**64 - 1"),
    ("slots", "0", "an integer >= 1, or auto"),
    ("slots", "many", "an integer >= 1, or auto"),
    ("debug_rank", "-1", "a rank, or any"),
    ("debug_rank", "first", "a rank, or any"),
]


class Config:
    """What options are read from."""

    def __init__(self, flags: dict[str, str] | None = None, ini: dict[str, str] | None = None) -> None:
        self.flags, self.ini = flags or {}, ini or {}

    def getoption(self, key: str) -> str | None:
        return self.flags.get(key)

    def getini(self, key: str) -> str | None:
        return self.ini.get(key)


def resolve(flags: dict[str, str] | None = None, ini: dict[str, str] | None = None) -> Settings:
    return settings_of(cast(pytest.Config, Config(flags, ini)))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)


def test_the_options_are_these() -> None:
    assert [(option.flag, option.key, option.variable, option.default) for option in OPTIONS] == [
        ("--ddp-world-size", "ddp_world_size", "PYTEST_DDP_WORLD_SIZE", "2"),
        ("--ddp-backend", "ddp_backend", "PYTEST_DDP_BACKEND", "gloo"),
        ("--ddp-timeout", "ddp_timeout", "PYTEST_DDP_TIMEOUT", "30"),
        ("--ddp-isolation", "ddp_isolation", "PYTEST_DDP_ISOLATION", "pool"),
        ("--ddp-start", "ddp_start", "PYTEST_DDP_START", "fork"),
        ("--ddp-seed", "ddp_seed", "PYTEST_DDP_SEED", "0"),
        ("--ddp-slots", "ddp_slots", "PYTEST_DDP_SLOTS", "auto"),
        ("--ddp-debug-rank", "ddp_debug_rank", "PYTEST_DDP_DEBUG_RANK", "any"),
    ]


def test_what_holds_when_nothing_is_given() -> None:
    assert astuple(resolve()) == ((2,), "gloo", 30.0, "pool", "fork", 0, None, None)


def test_the_header_shows_every_option() -> None:
    settings = resolve({"ddp_world_size": "2, 4", "ddp_timeout": "1.50", "ddp_seed": "7"})
    assert settings.header() == (
        "ddp: world-size 2,4, backend gloo, timeout 1.5 s, isolation pool, start fork, seed 7, slots auto"
    )
    assert resolve({"ddp_slots": "8"}).header().endswith(", slots 8")


def test_the_flag_comes_before_the_environment_and_that_before_ini(monkeypatch: pytest.MonkeyPatch) -> None:
    ini = {"ddp_seed": "1"}
    assert resolve(ini=ini).seed == 1
    monkeypatch.setenv("PYTEST_DDP_SEED", "2")
    assert resolve(ini=ini).seed == 2
    assert resolve({"ddp_seed": "3"}, ini).seed == 3


def test_an_empty_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DDP_SEED", "")
    assert resolve(ini={"ddp_seed": "5"}).seed == 5


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG)
def test_a_wrong_value_is_named_with_its_source(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, accepted: str
) -> None:
    option = next(option for option in OPTIONS if option.name == name)
    with pytest.raises(pytest.UsageError) as caught:
        resolve({option.key: value})
    assert str(caught.value) == f"{option.flag}={value}: must be {accepted}"
    with pytest.raises(pytest.UsageError) as caught:
        resolve(ini={option.key: value})
    assert str(caught.value) == f"ini key {option.key}={value}: must be {accepted}"
    monkeypatch.setenv(option.variable, value)
    with pytest.raises(pytest.UsageError) as caught:
        resolve()
    assert str(caught.value) == f"{option.variable}={value}: must be {accepted}"
