"""In a rank: sees when it compiles (`torch.compile`), which may take minutes and is no fault of its own."""

from __future__ import annotations

import functools
import importlib.abc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from esper.lockstep.rank.groups import patch
from esper.lockstep.record.ledger import Ledger

_DYNAMO = "torch._dynamo"
# To load the compiler takes a second or more, too, and happens inside the first call of what is compiled.
_LOADED = (_DYNAMO, "torch._functorch.aot_autograd", "torch._inductor.compile_fx")


class CompileWatch(importlib.abc.MetaPathFinder):
    """Notes in the ledger when a compilation begins and ends: dynamo's with all that its backend does, and
    those of a backward, which come with the first one.

    None of it is promised by torch. Where a build has it otherwise, a rank that compiles is one that runs.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._under_way = 0
        self._undo: list[Callable[[], None]] = []
        self.forget()

    def forget(self) -> None:
        """In a forked child: threads that compiled are its parent's."""
        self._under_way = 0
        # A signal's handler, in which a program may compile, can find it taken by its own thread.
        self._lock = threading.RLock()

    def install(self) -> None:
        """See compilations from now on. Nothing is imported for it."""
        if _DYNAMO in sys.modules:
            self._see()
        sys.meta_path.insert(0, self)

    def uninstall(self) -> None:
        """Put everything back as it was."""
        with suppress(ValueError):
            sys.meta_path.remove(self)
        while self._undo:
            self._undo.pop()()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the others find; that which belongs to the compiler is watched while it is loaded."""
        if name not in _LOADED:
            return None
        found = (
            finder.find_spec(name, path, target)
            for finder in list(sys.meta_path)
            if finder is not self and hasattr(finder, "find_spec")
        )
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._follow(name, spec.loader)
        return spec

    def _follow(self, name: str, loader: Any) -> None:
        load = loader.exec_module

        @functools.wraps(load)
        def loading(module: ModuleType) -> None:
            with self._compiling():
                load(module)
            if name == _DYNAMO and self in sys.meta_path:
                self._see()

        with suppress(AttributeError):  # a loader with slots
            loader.exec_module = loading

    def _see(self) -> None:
        # Callbacks that are registered there are lost at each reset of dynamo. These two methods run them, at
        # the begin of the first of the compilations under way and at the end of the last.
        handler = getattr(sys.modules.get(f"{_DYNAMO}.callback"), "CompilationCallbackHandler", None)
        names = "run_start_callbacks", "run_end_callbacks"
        if self._undo or not all(hasattr(handler, name) for name in names):
            return
        for name, note in zip(names, (self._begin, self._end), strict=True):
            self._undo.append(patch(handler, name, _noting(note, getattr(handler, name))))

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        finally:
            self._end()

    def _begin(self) -> None:
        with self._lock:
            self._under_way += 1
            self._ledger.set_compiling(True)

    def _end(self) -> None:
        with self._lock:
            self._under_way = max(0, self._under_way - 1)  # what was under way before it was watched
            if not self._under_way:
                self._ledger.set_compiling(False)


def _noting(note: Callable[[], None], original: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        note()
        return original(*args, **kwargs)

    return noted
