"""What a test may change in a rank that lives on: put back, or named as a leak that can't be."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

# A thread that ends by itself is no leak: closing a gloo group takes one 10 ms for each connection.
_ENDING = 0.5  # seconds


class Snapshot:
    """The state of a fresh rank. `restore` costs some 40 us when nothing was changed."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        self._numpy_state = numpy.random.get_state() if numpy is not None else None
        self._torch_state = torch.default_generator.get_state()
        self._random_state = random.getstate()
        # os.environ compares by decoding every entry, its own dict does not: 16 us against 0.3.
        self._raw_environment = dict(os.environ._data)  # type: ignore[attr-defined]
        self._directory = os.getcwd()
        self._dtype = torch.get_default_dtype()
        self._device = torch.get_default_device()
        self._deterministic = torch.are_deterministic_algorithms_enabled()
        self._threads = torch.get_num_threads()
        self._thread_names = {thread.ident for thread in threading.enumerate()}
        self._groups = len(c10d._world.pg_map)
        self._default = dist.group.WORLD if dist.is_initialized() else None

    def restore(self) -> tuple[str, ...]:
        """Put back what can be; returns what can't: the world is then replaced."""
        if os.environ._data != self._raw_environment:  # type: ignore[attr-defined]
            os.environ.clear()
            os.environ.update(
                {os.fsdecode(key): os.fsdecode(value) for key, value in self._raw_environment.items()}
            )
        try:
            moved = os.getcwd() != self._directory
        except OSError:  # the directory it is in was removed
            moved = True
        if moved:
            os.chdir(self._directory)
        torch.default_generator.set_state(self._torch_state)
        random.setstate(self._random_state)
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None and self._numpy_state is not None:
            numpy.random.set_state(self._numpy_state)
        if torch.get_default_dtype() is not self._dtype:
            torch.set_default_dtype(self._dtype)
        if torch.get_default_device() != self._device:
            torch.set_default_device(None)
        if torch.are_deterministic_algorithms_enabled() != self._deterministic:
            torch.use_deterministic_algorithms(self._deterministic)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.set_grad_enabled(True)
        return tuple(self._leaks())

    def _leaks(self) -> list[str]:
        leaks = []
        now = dist.group.WORLD if dist.is_initialized() else None
        if now is not self._default:
            leaks.append("the default process group was destroyed or replaced")
        elif len(c10d._world.pg_map) != self._groups:
            leaks.append(f"{len(c10d._world.pg_map) - self._groups} process group(s) more")
        if extra := self._extra_threads():
            leaks.append(f"thread {', '.join(thread.name for thread in extra[:5])}")
        return leaks

    def _extra_threads(self) -> list[threading.Thread]:
        end = time.monotonic() + _ENDING
        while extra := [one for one in threading.enumerate() if one.ident not in self._thread_names]:
            joinable = [one for one in extra if not isinstance(one, threading._DummyThread)]
            left = end - time.monotonic()
            if not joinable or left <= 0:
                break
            joinable[0].join(left)
        return extra
