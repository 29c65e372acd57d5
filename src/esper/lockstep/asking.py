"""What whoever watches this rank would say now, for an error of the program's own."""

from __future__ import annotations

from collections.abc import Callable

# Called with the seconds that it may take.
Answer = Callable[[float], str | None]
Asker = Callable[[float], Answer]

_asker: Asker | None = None


def set_asker(asker: Asker | None) -> None:
    """Whom to ask; None: nobody watches."""
    global _asker  # noqa: PLW0603  torch is patched for the whole process, and so is this
    _asker = asker


def ask(patience: float) -> Answer:
    """Ask which rank keeps this one waiting and where it is, taking who is late by `patience` seconds for
    guilty; returns at once.

    The answer, called with seconds to wait for it, is lockstep's sentence with its lines; None where nobody
    watches, nothing can be said, or it did not come in time. To be asked while the wait lasts: inside of
    `awaiting`, say.
    """
    return _unanswered if _asker is None else _asker(patience)


def _unanswered(within: float) -> None:
    return None
