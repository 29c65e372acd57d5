"""A small file beside the ledgers that is there whole or not at all, and that its first writer decides."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from esper.lockstep.errors import LedgerError

MOST_BYTES = 1 << 26


def write_once(path: Path, document: dict[str, Any]) -> bool:
    """Write `document` as JSON, mode 0600; False where somebody has done so before, and that one stays.

    Raises LedgerError when it can't be written.
    """
    try:
        fd, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(json.dumps(document, indent=1) + "\n")
            return _put(unfinished, path)
        finally:
            with suppress(FileNotFoundError):  # renamed
                os.unlink(unfinished)
    except OSError as error:
        raise LedgerError(str(path), error.strerror or str(error)) from error


def _put(unfinished: str, path: Path) -> bool:
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: two who come at once may both be told that they were first
        if path.exists():
            return False
        os.rename(unfinished, path)
    return True


def read_once(path: Path) -> dict[str, Any] | None:
    """The document; None where there is none. Raises LedgerError for a file that is none."""
    try:
        # A pipe of that name would be waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(str(path), f"can't be read: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise LedgerError(str(path), f"has more than {MOST_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "is empty" if not data else f"is no JSON, or cut off at byte {len(data)}"
        raise LedgerError(str(path), reason) from error
    if not isinstance(document, dict):
        raise LedgerError(str(path), "holds no JSON object")
    return document
