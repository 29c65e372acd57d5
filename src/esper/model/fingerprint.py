"""One number for everything a module is made of."""

import hashlib

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> int:
    """63-bit digest over names, order, shapes, dtypes, trainability and bits of all parameters and buffers.

    The same in every process. Tensors on a device are copied to the host.
    """
    # torch.hash_tensor is an xor over the elements: zeros(4) and ones(4) hash alike there, and so does any
    # permutation.
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        _update(digest, f"parameter {name} trainable={parameter.requires_grad}", parameter)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        _update(digest, f"buffer {name}", buffer)
    return int.from_bytes(digest.digest(), "big") >> 1


def _update(digest: "hashlib.blake2b", label: str, tensor: Tensor) -> None:
    digest.update(f"{label} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
