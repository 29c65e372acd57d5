"""The convolutional host."""

import pytest
import torch
from torch import Tensor

from esper.errors import ConfigError
from esper.model import CnnHost, Host, SlotPoint


def test_it_is_a_host_with_a_slot_point_after_each_block() -> None:
    host = CnnHost(width=4, blocks=3)
    assert isinstance(host, Host)
    assert host.slot_points() == (SlotPoint("r0c0", 4), SlotPoint("r0c1", 8), SlotPoint("r0c2", 16))


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (5, 3), (1, 1)])
def test_any_picture_size_gives_logits(size: tuple[int, int]) -> None:
    assert CnnHost(in_channels=3, classes=7, blocks=4)(torch.randn(2, 3, *size)).shape == (2, 7)


def test_every_point_is_visited_in_order_with_its_channels() -> None:
    host = CnnHost(blocks=3)
    seen: list[SlotPoint] = []

    def visit(slot_id: str, h: Tensor) -> Tensor:
        seen.append(SlotPoint(slot_id, h.shape[1]))
        return h

    x = torch.randn(2, 1, 8, 8)
    host.eval()
    assert torch.equal(host(x, visit), host(x))
    assert tuple(seen) == host.slot_points()


def test_what_the_visitor_returns_goes_on() -> None:
    host = CnnHost().eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(host(x, lambda slot_id, h: torch.zeros_like(h)), host(torch.zeros(2, 1, 8, 8), _zeros))


def _zeros(slot_id: str, h: Tensor) -> Tensor:
    return torch.zeros_like(h)


def test_its_segments_one_after_another_are_its_forward() -> None:
    host = CnnHost(blocks=3).eval()
    h = x = torch.randn(2, 1, 8, 8)
    for index in range(4):
        h = host.segment(index, h)
    assert torch.equal(h, host(x))


@pytest.mark.parametrize("key", ["in_channels", "classes", "width", "blocks"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_a_size_that_is_none_is_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError) as caught:
        CnnHost(**{key: value})
    assert caught.value.key == f"host.{key}"
