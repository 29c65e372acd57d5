"""Is all state the same on all ranks, bit for bit? If not, the first part that differs, by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from esper.bits import bits_of
from esper.distributed.divergence import ABSENT, require_same
from esper.lockstep.rank.fingerprints import leaves, tensor_digest

# What is audited: by name tensors, modules, optimisers, plain values, and mappings and lists of them.
State = Mapping[str, object]
_PLAIN = (Tensor, torch.nn.Parameter)
# Of more values a digest by arithmetic takes half as long as one of their bytes.
_MANY = 1 << 14
_ATOMS = frozenset({int, float, bool, str, type(None)})


def digest_of(state: State) -> int:
    """63-bit digest of all that `leaves` tells apart: keys, lengths, bits, dtypes, shapes, in order.

    In one go, at a fifth of what a digest and a text for each leaf take.
    """
    # Of what Python brings along the fastest, on processors with instructions for it by a factor of four.
    digest = hashlib.sha1(usedforsecurity=False)
    _feed(digest.update, state)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def require_same_state(texts: Callable[[str, str], Mapping[int, str]], state: State, where: str) -> None:
    """Collective: every rank, same order. Raise LifecycleDivergence with the first leaf that differs.

    `texts(text, where)` exchanges a text a rank.
    """
    mine = [leaf for name, value in state.items() for leaf in leaves(value, name)]
    told = json.dumps([(part.path, f"{part.digest:016x} {part.kind}", part.text) for part in mine])
    everyone = {rank: json.loads(text) for rank, text in texts(told, where).items()}
    for index in range(max(map(len, everyone.values()))):
        # A list that has ended, or one that has something else in this place, differs in the place's name.
        at = {
            rank: tuple(parts[index]) if index < len(parts) else (ABSENT, "", "")
            for rank, parts in everyone.items()
        }
        if len(set(at.values())) == 1:
            continue
        names = {path for path, _, _ in at.values()}
        if len(names) > 1:
            require_same({f"part {index}": [(rank, path) for rank, (path, _, _) in at.items()]}, where)
        shown = len({text for _, _, text in at.values()}) == len({digest for _, digest, _ in at.values()})
        values = [(rank, text if shown else f"{text} ({digest})") for rank, (_, digest, text) in at.items()]
        require_same({names.pop(): values}, where)


def _feed(update: Callable[[Any], object], value: object) -> None:
    if isinstance(value, Tensor):
        update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        plain = type(value) in _PLAIN and value.layout is torch.strided and not value.is_meta
        if not plain or value.numel() > _MANY:
            update(f"{tensor_digest(value)}\n".encode())
        else:
            update(bits_of(value))
    elif type(value) in _ATOMS:
        update(f"{value!r}\n".encode())
    elif hasattr(value, "state_dict"):
        _feed(update, value.state_dict())
    elif isinstance(value, Mapping):
        update(f"keys {list(value)!r}\n".encode())
        for part in value.values():
            _feed(update, part)
    elif isinstance(value, list | tuple):
        update(f"length {len(value)}\n".encode())
        for part in value:
            _feed(update, part)
    else:
        update(f"{value!r}\n".encode())
