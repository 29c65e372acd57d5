"""A job's divergence told once, whatever the number of its ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from esper.lockstep import DivergenceError

_LOGGER = logging.getLogger(__name__)

# What `python -m esper.lockstep run` ends with, too, when it has found one.
STATUS = 3


@contextmanager
def one_voice(rank: int, ranks: Sequence[int]) -> Iterator[None]:
    """Ends a rank whose run diverged, with status 3; one of `ranks` logs the error, which all of them raise.

    That is the first one which is not guilty: a guilty one may not have come at all.
    """
    try:
        yield
    except DivergenceError as error:
        blameless = [each for each in ranks if each not in error.guilty]
        if rank == (blameless or list(ranks))[0]:
            _LOGGER.error("%s", error)
        raise SystemExit(STATUS) from None
