"""Configured values are named when they are refused."""

import math

import pytest

from esper.checks import check_int, check_number
from esper.errors import ConfigError


def test_a_good_value_comes_back_typed() -> None:
    assert check_int("a.b", 2, 2) == 2
    assert check_number("a.b", 1, 0.0, 1.0) == 1.0
    assert type(check_number("a.b", 1, 0.0, 1.0)) is float


@pytest.mark.parametrize("value", [1, 2.0, "2", None, True])
def test_what_is_no_int_or_too_small_is_refused(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_int("a.b", value, 2)
    assert (caught.value.key, caught.value.value) == ("a.b", value)
    assert caught.value.accepted == "an int of at least 2"


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_what_is_no_number_or_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"must be a number in \[0, 1\]") as caught:
        check_number("a.b", value, 0.0, 1.0)
    assert caught.value.value is value


def test_an_open_range_is_said_as_one() -> None:
    with pytest.raises(ConfigError, match="a finite number of at least 0"):
        check_number("a.b", -1.0, 0.0)
    with pytest.raises(ConfigError, match=r"must be a finite number$"):
        check_number("a.b", math.inf)
