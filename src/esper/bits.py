"""The bits of a tensor, as digests take them."""

from __future__ import annotations

import torch
from torch import Tensor

# Of these numpy has elements of the same bits.
_KNOWN_TO_NUMPY = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool}
)


def bits_of(tensor: Tensor) -> memoryview:
    """The elements in order, without gaps; of a copy where they are on a device or lie in another order.

    The tensor is a plain one: dense, with data.
    """
    if tensor.is_contiguous() and tensor.dtype in _KNOWN_TO_NUMPY:  # nearly all, and at a third of the time
        return tensor.numpy(force=True).data
    flat = tensor.detach().cpu().resolve_conj().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
