"""One number for everything a module is made of."""

import hashlib
from functools import lru_cache

import torch
from torch import nn

from esper.bits import bits_of
from esper.modules import named_tensors


def fingerprint(module: nn.Module) -> int:
    """63-bit digest over names, order, shapes, dtypes, trainability and bits of all parameters and buffers.

    The same in every process. Tensors on a device are copied to the host.
    """
    # torch.hash_tensor is an xor over the elements: zeros(4) and ones(4) hash alike there, and so does any
    # permutation.
    digest = hashlib.blake2b(digest_size=8)
    parameters, buffers = named_tensors(module)
    for name, one in parameters:
        kind = kind_text(one.dtype, one.shape)
        digest.update(f"parameter {name} trainable={one.requires_grad} {kind}\n".encode())
        digest.update(bits_of(one))
    for name, other in buffers:
        digest.update(f"buffer {name} {kind_text(other.dtype, other.shape)}\n".encode())
        digest.update(bits_of(other))
    return int.from_bytes(digest.digest(), "big") >> 1


@lru_cache(maxsize=4096)
def kind_text(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """A tensor's type and shape in words. Kept: `torch.Size` takes its time to be shown."""
    return f"{dtype} {tuple(shape)}"
