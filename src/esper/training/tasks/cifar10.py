"""CIFAR-10 (Krizhevsky 2009), 60,000 colour pictures of 32 x 32, from a folder in a published layout.

The layout for Python is pickled; it is read by an unpickler that builds arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.errors import DataError
from esper.training.tasks.task import Batch, ShardedTask

PICTURE = (3, 32, 32)
CLASSES = 10
_PIXELS = 3 * 32 * 32
_IN_A_FILE = 10_000
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
# The folders that the archives hold, and how their files' names end.
_LAYOUTS = MappingProxyType({"cifar-10-batches-bin": ".bin", "cifar-10-batches-py": ""})
_FIX = (
    "unpack cifar-10-binary.tar.gz or cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
)
# Of the training pictures, by colour, in [0, 1].
_MEAN, _SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# All that the published pickles name.
_MAY_NAME = MappingProxyType(
    {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # as numpy 2 writes it
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }
)


def load_cifar10_task(
    folder: Path | str, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> ShardedTask:
    """50,000 pictures to train on, 10,000 to evaluate on: (N, 3, 32, 32), of mean 0 and spread 1 by colour.

    `folder` is one of the archives' own, or the one that it lies in. Raises DataError, naming the file, for
    what is missing or is not what was published.
    """
    found, ending = _layout(Path(folder))
    mean, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _SPREAD))

    def prepare(pixels: Tensor) -> Tensor:
        return (pixels.float() / 255.0 - mean) / spread

    return ShardedTask(
        train=_read([found / f"{name}{ending}" for name in _TRAIN]),
        test=_read([found / f"{name}{ending}" for name in _TEST]),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        prepare=prepare,
    )


def _layout(folder: Path) -> tuple[Path, str]:
    for name, ending in _LAYOUTS.items():
        for place in (folder, folder / name):
            if (place / f"{_TEST[0]}{ending}").is_file():
                return place, ending
    raise DataError(str(folder), f"neither {' nor '.join(_LAYOUTS)} is there", _FIX)


def _read(paths: Sequence[Path]) -> Batch:
    """The pixels (N, 3, 32, 32) as bytes, and the classes (N,)."""
    pixels, classes = zip(*(_read_file(path) for path in paths), strict=True)
    return torch.cat(pixels), torch.cat(classes)


def _read_file(path: Path) -> Batch:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(str(path), f"it can't be read ({error.strerror})", _FIX) from error
    rows, labels = _from_records(path, data) if path.suffix == ".bin" else _from_pickle(path, data)
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(str(path), f"it has a class {labels.max()}, and there are {CLASSES}", _FIX)
    pixels = torch.from_numpy(rows.copy()).view(-1, *PICTURE)
    return pixels, torch.from_numpy(labels.astype(np.int64))


def _from_records(path: Path, data: bytes) -> tuple[Any, Any]:
    expected = _IN_A_FILE * (1 + _PIXELS)
    if len(data) != expected:
        raise DataError(str(path), f"it has {len(data)} bytes in place of {expected}", _FIX)
    records = np.frombuffer(data, dtype=np.uint8).reshape(_IN_A_FILE, 1 + _PIXELS)
    return records[:, 1:], records[:, 0]


def _from_pickle(path: Path, data: bytes) -> tuple[Any, Any]:
    try:
        content = _Arrays(io.BytesIO(data), encoding="bytes").load()
        rows, labels = np.asarray(content[b"data"]), np.asarray(content[b"labels"])
    except Exception as error:  # whatever a file's bytes may bring up
        raise DataError(
            str(path), f"it is no batch of pictures ({type(error).__name__}: {error})", _FIX
        ) from error
    if rows.dtype != np.uint8 or rows.shape != (_IN_A_FILE, _PIXELS) or labels.shape != (_IN_A_FILE,):
        found = f"{rows.dtype} {rows.shape} and {labels.shape} classes"
        raise DataError(str(path), f"it has {found} in place of {_IN_A_FILE} pictures", _FIX)
    return rows, labels


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _MAY_NAME[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None
