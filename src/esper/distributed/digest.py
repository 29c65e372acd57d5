"""Digests that are the same in every process; Python's own `hash` of a str is not."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache


def stable_digest(*parts: object, bits: int = 63) -> int:
    """Digest of JSON-serialisable parts, at most 64 bits; 63 fit into an int64 and a generator's seed."""
    return text_digest(json.dumps(parts, sort_keys=True), bits)


def text_digest(text: str, bits: int = 63) -> int:
    """Digest of a text, at most 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> (64 - bits)


@lru_cache(maxsize=8)
def run_digest(name: str) -> int:
    """What a run's records carry of its name: 63 bits."""
    return stable_digest("run", name)
