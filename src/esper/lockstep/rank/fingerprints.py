"""Digests of tensors and of nested values: equal bits give equal digests in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Long tensors are digested in pieces of this many words, all with the same weights.
_PIECE = 1 << 16
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_weights: list[Tensor] = []


class Leaf(NamedTuple):
    """One plain value inside a nested one: where it is, a 64-bit digest, a text for people, and of a tensor
    its dtype and shape.
    """

    path: str
    digest: int
    text: str
    kind: str = ""


def weights() -> Tensor:
    """Odd 64-bit words (65536,), pseudo-random but always the same: a plain sum would not see a
    permutation.
    """
    if not _weights:
        generator = torch.Generator().manual_seed(0x10C2)
        drawn = torch.randint(-(1 << 62), 1 << 62, (_PIECE,), generator=generator)
        _weights.append(drawn * 2 + 1)
    return _weights[0]


def words(tensor: Tensor) -> Tensor:
    """The tensor's bits as int64 words (N,) on the CPU, of several elements where they are shorter; the last
    word is filled up with zeros.
    """
    raw = tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8)
    missing = -len(raw) % 8
    if missing or raw.storage_offset() % 8:
        raw = torch.cat([raw, raw.new_zeros(missing)])
    return raw.view(torch.int64)


def tensor_digest(tensor: Tensor) -> int:
    """64 bits of the tensor's bits, dtype and shape; exact integer sums, so in any order the same.

    Of a tensor whose bits can't be read here, on meta or sharded (a DTensor would communicate), only the
    latter.
    """
    if tensor.layout is torch.sparse_coo:
        whole = tensor.detach().coalesce()
        return (tensor_digest(whole.indices()) * 3 + tensor_digest(whole.values())) & ((1 << 64) - 1)
    if not _readable(tensor):
        return stable_digest(_kind(tensor))
    all_words, by = words(tensor), weights()
    total = 0
    for index, piece in enumerate(torch.split(all_words, _PIECE)):
        total += (2 * index + 1) * int(torch.dot(piece, by[: len(piece)]))
    return (total ^ stable_digest(_kind(tensor))) & ((1 << 64) - 1)


def _readable(tensor: Tensor) -> bool:
    plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
    return plain and not is_traceable_wrapper_subclass(tensor)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def ends_of(tensors: Sequence[Tensor]) -> Tensor:
    """(N,) int64: where each tensor ends when all are laid one after the other."""
    return torch.tensor([tensor.numel() for tensor in tensors]).cumsum(0) - 1


def running_digests(tensors: Sequence[Tensor], ends: Tensor) -> Tensor:
    """(N,) int64: digest of the bits of tensors 0 to n, for each n; `ends` as `ends_of` gives them.

    Of one dtype, 65,536 elements at most. One copy and one pass for all of them: 25 us for a small model,
    where each tensor alone would cost 10.
    """
    flat = torch._C._nn.flatten_dense_tensors(list(tensors)).detach()
    all_words = flat.view(_WORDS[flat.element_size()]).to(torch.int64)
    return (all_words * weights()[: len(all_words)]).cumsum(0)[ends]


def stable_digest(text: str) -> int:
    """64 bits of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def leaves(value: Any, name: str) -> Iterator[Leaf]:
    """The leaves of tensors, modules and optimisers (by state_dict), mappings and sequences, in their own
    order.
    """
    if isinstance(value, Tensor):
        yield Leaf(name, tensor_digest(value), _tensor_text(value), _kind(value))
    elif hasattr(value, "state_dict"):
        yield from leaves(value.state_dict(), name)
    elif isinstance(value, Mapping):
        keys = f"keys {list(value)!r}"
        yield Leaf(name, stable_digest(keys), keys)
        for key, part in value.items():
            yield from leaves(part, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        length = f"length {len(value)}"
        yield Leaf(name, stable_digest(length), length)
        for index, part in enumerate(value):
            yield from leaves(part, f"{name}[{index}]")
    else:
        yield Leaf(name, stable_digest(repr(value)), repr(value))


def _tensor_text(tensor: Tensor) -> str:
    if not _readable(tensor):
        return f"{type(tensor).__name__} {_kind(tensor)}"
    flat = tensor.detach().reshape(-1)
    if flat.numel() <= 8:
        return str(tensor.detach().tolist())
    mean = flat.to(torch.cdouble if tensor.dtype.is_complex else torch.double).mean()
    return f"{list(tensor.shape)} of mean {mean:.9g}"
