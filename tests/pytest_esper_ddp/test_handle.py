"""What `ddp.assert_same` compares, and how it says where ranks differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.lockstep.rank.fingerprints import leaves
from pytest_esper_ddp.handle import DDP, first_difference
from pytest_esper_ddp.wire.messages import ForkWorld


def difference(*values: Any) -> str | None:
    """The sentence for one value a rank."""
    return first_difference([list(leaves(value, "x")) for value in values])


def test_a_rank_introduces_itself(tmp_path: Path) -> None:
    world = ForkWorld(1, 4, tmp_path, tmp_path, "gloo", True, True, 0, True, 0)
    ddp = DDP(1, world)
    assert (ddp.rank, ddp.world_size, ddp.shared_path) == (1, 4, tmp_path / "shared")
    assert ddp.shared_path.is_dir()
    assert repr(ddp) == "<rank 1 of 4>"
    assert ddp.device == torch.device("cpu")
    assert DDP(1, replace(world, backend="nccl")).device == torch.device("cuda", 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor(1.0),
        lambda: torch.zeros(0),
        lambda: torch.full((3, 5), float("nan")),
        lambda: torch.ones(20, dtype=torch.bool),
        lambda: torch.ones(20, dtype=torch.bfloat16),
        lambda: torch.ones(20, dtype=torch.complex64),
        lambda: torch.arange(20).reshape(4, 5).T,
        lambda: torch.ones(20, dtype=torch.complex64).to_sparse(),
        lambda: torch.ones(20, device="meta"),
        lambda: torch.ones(2, requires_grad=True),
        lambda: {"a": [1, "x", None, (2.5, torch.ones(2))]},
        lambda: torch.nn.BatchNorm1d(3),
        lambda: torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1),
        list,
    ],
)
def test_equal_values(make: Any) -> None:
    assert difference(make(), make(), make()) is None


def test_a_small_tensor_is_shown_and_the_majority_comes_first() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert difference(two, one, one, one) == ("x differs: [1.0, 2.0] on ranks 1, 2, 3; [1.0, 3.0] on rank 0")


def test_a_large_tensor_is_summed_up() -> None:
    assert difference(torch.zeros(4, 5), torch.ones(4, 5)) == (
        "x differs: [4, 5] of mean 0 on rank 0; [4, 5] of mean 1 on rank 1"
    )


def test_what_is_shown_alike_is_told_apart() -> None:
    said = difference(torch.ones(2), torch.ones(2, dtype=torch.float64))
    assert said is not None
    assert "[1.0, 1.0] (torch.float32 [2] " in said
    assert "[1.0, 1.0] (torch.float64 [2] " in said
    said = difference(torch.tensor(1.0), torch.tensor([1.0]))
    assert said is not None
    assert "1.0 on rank 0; [1.0] on rank 1" in said


def test_a_bit_is_enough() -> None:
    assert difference(torch.tensor(0.0), torch.tensor(-0.0)) == ("x differs: 0.0 on rank 0; -0.0 on rank 1")


def test_a_sparse_tensor_counts_by_what_is_in_it() -> None:
    one, two = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    said = difference(one.to_sparse(), two.to_sparse())
    assert said is not None
    assert said.startswith("x differs: Tensor torch.float32 [3] (torch.float32 [3] ")


def test_the_first_differing_part_is_named() -> None:
    one = {"weight": torch.ones(1), "bias": [torch.zeros(1), 4]}
    two = {"weight": torch.ones(1), "bias": [torch.zeros(1), 5]}
    assert difference(one, two) == "x['bias'][1] differs: 4 on rank 0; 5 on rank 1"


def test_another_structure() -> None:
    assert (
        difference({"a": 1}, {"a": 1, "b": 2}) == "x differs: keys ['a'] on rank 0; keys ['a', 'b'] on rank 1"
    )
    assert difference([1], [1, 2]) == "x differs: length 1 on rank 0; length 2 on rank 1"
    assert difference([1], 1) == "x differs: length 1 on rank 0; 1 on rank 1"


def test_a_module_and_an_optimiser_count_by_their_state() -> None:
    torch.manual_seed(0)
    one, two = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    said = difference(one, two)
    assert said is not None
    assert said.startswith("x['weight'] differs: [")
    said = difference(torch.optim.SGD(one.parameters(), lr=0.1), torch.optim.SGD(one.parameters(), lr=0.2))
    assert said == "x['param_groups'][0]['lr'] differs: 0.1 on rank 0; 0.2 on rank 1"
