"""What a digest of a whole state tells apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from esper.distributed.audit import digest_of
from esper.lockstep.rank.fingerprints import leaves

BASE: dict[str, Any] = {"weights": torch.tensor([[0.0, 1.0], [2.0, 3.0]]), "plan": [1, 2], "epoch": 3}
OTHERS: dict[str, dict[str, Any]] = {
    "a bit": {"weights": torch.tensor([[-0.0, 1.0], [2.0, 3.0]])},
    "an order": {"weights": torch.tensor([[1.0, 0.0], [2.0, 3.0]])},
    "a shape": {"weights": torch.tensor([0.0, 1.0, 2.0, 3.0])},
    "a dtype": {"weights": torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(torch.int32)},
    "a length": {"plan": [1, 2, 3]},
    "a number": {"plan": [1, 4]},
    "a type": {"epoch": "3"},
    "a key": {"more": None},
    "a nesting": {"plan": [[1, 2]]},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_whatever_differs_gives_another_digest(other: dict[str, Any]) -> None:
    state = {**BASE, **other}
    assert digest_of(state) != digest_of(BASE)
    assert list(leaves(state, "")) != list(leaves(BASE, ""))  # so that the difference can be named


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_of_a_large_tensor_a_value_two_that_change_places_and_the_shape_count(dtype: torch.dtype) -> None:
    large = (torch.arange(200_000) % 251).to(dtype)
    value, places = large.clone(), large.clone()
    value[150_000] += 1
    places[[3, 150_000]] = places[[150_000, 3]]
    digests = {digest_of({"x": each}) for each in (large, value, places, large.reshape(2, -1))}
    assert len(digests) == 4
    assert digest_of({"x": large.clone()}) in digests


def test_other_keys_or_another_order_of_them_are_another_state() -> None:
    assert digest_of({"one": 1}) != digest_of({"other": 1})
    assert digest_of(dict(reversed(BASE.items()))) != digest_of(BASE)


def test_the_same_bits_give_the_same_digest_wherever_they_lie() -> None:
    apart = torch.arange(8.0).reshape(4, 2)[::2]
    assert not apart.t().is_contiguous()
    assert digest_of({"x": apart.t()}) == digest_of({"x": apart.t().contiguous()})
    assert 0 < digest_of(BASE) < 2**63


def test_modules_optimisers_and_what_has_no_bits_here_are_told_by_what_they_hold() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert digest_of({"module": one}) != digest_of({"module": other})
    other.load_state_dict(one.state_dict())
    assert digest_of({"module": one}) == digest_of({"module": other})
    optimizer = torch.optim.Adam(one.parameters())
    before = digest_of({"optimiser": optimizer})
    one(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert digest_of({"optimiser": optimizer}) != before
    assert digest_of({"x": torch.empty(3, device="meta")}) != digest_of({"x": torch.empty(4, device="meta")})
    sparse = torch.eye(2).to_sparse()
    assert digest_of({"x": sparse}) != digest_of({"x": sparse * 2})
