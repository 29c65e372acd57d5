"""One number for everything a module is made of."""

import hashlib

from torch import Tensor, nn

from esper.bits import bits_of


def fingerprint(module: nn.Module) -> int:
    """63-bit digest over names, order, shapes, dtypes, trainability and bits of all parameters and buffers.

    The same in every process. Tensors on a device are copied to the host.
    """
    # torch.hash_tensor is an xor over the elements: zeros(4) and ones(4) hash alike there, and so does any
    # permutation.
    digest = hashlib.blake2b(digest_size=8)
    buffers: list[tuple[str, Tensor]] = []
    # By the modules' own tables: two walks of torch's over all names take three times as long.
    for path, each in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in each._parameters.items():
            if parameter is not None:
                label = f"parameter {prefix}{name} trainable={parameter.requires_grad}"
                _update(digest, label, parameter)
        buffers += [(f"buffer {prefix}{name}", one) for name, one in each._buffers.items() if one is not None]
    for label, buffer in buffers:
        _update(digest, label, buffer)
    return int.from_bytes(digest.digest(), "big") >> 1


def _update(digest: "hashlib.blake2b", label: str, tensor: Tensor) -> None:
    digest.update(f"{label} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(bits_of(tensor))
