"""Checks of configured values: each hands the value back, typed, or raises ConfigError naming its key."""

import math

from esper.errors import ConfigError


def check_int(key: str, value: object, least: int) -> int:
    """`value` as an int of at least `least`; a bool is none."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise ConfigError(key, value, f"an int of at least {least}")


def check_number(key: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a finite number in [`least`, `most`]; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(key, value, _range(least, most))
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(key, value, _range(least, most))
    return float(value)


def _range(least: float, most: float) -> str:
    if math.isfinite(least) and math.isfinite(most):
        return f"a number in [{least:g}, {most:g}]"
    return f"a finite number of at least {least:g}" if math.isfinite(least) else "a finite number"
