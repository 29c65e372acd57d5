"""The frames of an error that a person is shown: their own lines, not torch's and ours below them."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from pytest_esper_ddp.rank.traces import cut_plumbing


def of_a_collective() -> None:
    dist.all_reduce(torch.ones(1))  # there is no group


def of_a_layer() -> None:
    torch.nn.Sequential(torch.nn.Linear(2, 2))(torch.ones(3))


def of_a_hook() -> None:
    parameter = torch.ones(1, requires_grad=True)
    parameter.register_hook(lambda grad: of_a_collective())  # type: ignore[no-untyped-call]
    parameter.sum().backward()  # type: ignore[no-untyped-call]


def of_two() -> None:
    try:
        of_a_collective()
    except ValueError as error:
        raise KeyError("later") from error


def shown(fails: Callable[[], None]) -> list[list[str]]:
    """The functions on the way to the error, and to each one that it came from."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  its frames are what is asked for
        fails()
    cut_plumbing(caught.value)
    chain: list[BaseException] = [caught.value]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return [[frame.name for frame in traceback.extract_tb(one.__traceback__)] for one in chain]


def test_an_error_of_a_collective_ends_at_its_call() -> None:
    assert shown(of_a_collective) == [["shown", "of_a_collective"]]


def test_of_an_error_in_a_layer_it_is_shown_in_which() -> None:
    (names,) = shown(of_a_layer)
    assert names[:2] == ["shown", "of_a_layer"]
    assert names[-1] == "forward"


def test_what_torch_calls_of_the_users_stays() -> None:
    (names,) = shown(of_a_hook)
    assert names[:2] == ["shown", "of_a_hook"]
    assert "backward" in names
    assert names[-2:] == ["<lambda>", "of_a_collective"]


def test_so_does_what_it_came_from() -> None:
    assert shown(of_two) == [["shown", "of_two"], ["of_two", "of_a_collective"]]
