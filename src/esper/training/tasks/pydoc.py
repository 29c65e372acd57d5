"""The documentation that comes with Python: some 700 kB of real English, bytes to foretell, no download."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.checks import check_int
from esper.errors import DataError
from esper.training.tasks.task import Batch, ShardedTask

TEST_SHARE = 5  # every fifth topic is for evaluation
VOCABULARY = 256  # bytes
# Windows of an epoch, and for evaluation: all of them would take a small network minutes on a processor.
EPOCH_WINDOWS, TEST_WINDOWS = 1024, 512


def load_pydoc_task(
    *, batch_size: int, seed: int, context: int = 64, rank: int = 0, world_size: int = 1
) -> ShardedTask:
    """Windows of bytes (N, context) and the bytes that follow each (N, context), from `help()`'s topics.

    An epoch draws other windows each time; those for evaluation, of other topics, stay. The text is that of
    the running Python, so figures compare within one version of it. Raises DataError where the topics are
    missing, and ConfigError for a context below 1.
    """
    check_int("host.context", context, 1)
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "pydoc", "this Python comes without its documentation", "a Python with pydoc_data"
        ) from error
    texts = [topics[name].encode() for name in sorted(topics)]
    test = b"\n".join(texts[::TEST_SHARE])
    train = b"\n".join(text for at, text in enumerate(texts) if at % TEST_SHARE)
    held_out = tuple(every[:TEST_WINDOWS] for every in _windows(test, context))
    return ShardedTask(
        train=_windows(train, context),
        test=(held_out[0], held_out[1]),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        epoch_samples=EPOCH_WINDOWS,
    )


def _windows(text: bytes, context: int) -> Batch:
    """Windows side by side, and the same one byte further on; what does not fill one is left out."""
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    whole = (len(values) - 1) // context * context
    if not whole:
        raise DataError(
            "pydoc", f"{len(text)} bytes of text are not a window of {context}", "a host.context below that"
        )

    def cut(begin: int) -> Tensor:
        return values[begin : begin + whole].view(-1, context)

    return cut(0), cut(1)
