"""Digests that are the same in every process; Python's own `hash` of a str is not."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache


def stable_digest(*parts: object, bits: int = 63) -> int:
    """Digest of JSON-serialisable parts, at most 64 bits; 63 fit into an int64 and a generator's seed."""
    text = json.dumps(parts, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> (64 - bits)


def text_digest(text: str) -> int:
    """63-bit digest of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@lru_cache(maxsize=8)
def run_digest(name: str) -> int:
    """What a run's records carry of its name: 63 bits."""
    return stable_digest("run", name)
