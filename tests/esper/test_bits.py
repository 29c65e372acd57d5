"""The bits of tensors of every kind that a model has."""

import pytest
import torch
from torch import Tensor

from esper.bits import bits_of


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[1.5, -0.0], [float("nan"), 2.0]]),
        torch.nn.Parameter(torch.ones(2)),
        torch.arange(6).view(2, 3).t(),
        torch.arange(8)[::2],
        torch.ones(1, 2).expand(3, 2),
        torch.tensor(True),
        torch.zeros(0, 2),
        torch.tensor([1.5, 2.0], dtype=torch.bfloat16),
        torch.tensor([1.5, 2.0], dtype=torch.float8_e4m3fn),
        torch.tensor([1 + 2j, 3j]).conj(),
        torch.tensor([1 + 2j, 3j]).conj().imag,
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_the_elements_in_order(tensor: Tensor) -> None:
    """What the same values are in a tensor of their own, laid out in order."""
    own = torch.empty(tensor.shape, dtype=tensor.dtype)
    own.copy_(tensor.detach())
    assert bytes(bits_of(tensor)) == bytes(own.view(-1).view(torch.uint8).tolist())


def test_what_requires_gradients_and_what_is_inference() -> None:
    with torch.inference_mode():
        tensor = torch.ones(2)
    assert bytes(bits_of(tensor)) == bytes(bits_of(torch.ones(2, requires_grad=True)))
