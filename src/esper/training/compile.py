"""Compiled training steps, for one trainer. Evaluation and counterfactuals run on the bare model."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.model import GrownModel

_LOGGER = logging.getLogger(__name__)


class CompileMode(StrEnum):
    """torch.compile's modes."""

    DEFAULT = "default"
    REDUCE_OVERHEAD = "reduce-overhead"
    MAX_AUTOTUNE = "max-autotune"


class CompileState(IntEnum):
    """How training steps run. The codes are compared between ranks."""

    EAGER = 0
    COMPILED = 1
    FELL_BACK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileConfig:
    """Whether and how training steps are compiled; `dynamic` None: only the number of samples may vary."""

    enabled: bool = False
    mode: CompileMode = CompileMode.DEFAULT
    dynamic: bool | None = None
    backend: str = "inductor"

    def __post_init__(self) -> None:
        if self.mode is not CompileMode.DEFAULT and self.backend != "inductor":
            raise ConfigError("compile.mode", str(self.mode), f"default for the backend {self.backend}")


class StepCompiler:
    """One trainer's compiled steps: one callable for each configuration of the slots.

    When compiling fails, this instance goes on without: said once, and counted in `fallbacks`.
    """

    def __init__(self, config: CompileConfig | None = None) -> None:
        self.config = config or CompileConfig()
        self.fallbacks = 0
        self.reason: str | None = None
        self._steps: dict[tuple[tuple[int, str, bool], ...], Callable[[Tensor], Tensor]] = {}
        self._disabled = 0

    @property
    def state(self) -> CompileState:
        """How the next step runs."""
        if self.fallbacks:
            return CompileState.FELL_BACK
        return CompileState.COMPILED if self.config.enabled and not self._disabled else CompileState.EAGER

    @property
    def callables(self) -> int:
        """How many compiled callables are held."""
        return len(self._steps)

    def wrap(self, model: GrownModel) -> nn.Module:
        """The module to train `model` with in its present configuration: itself, or a compiled one."""
        if self.state is not CompileState.COMPILED:
            return model
        key = model.configuration()
        if key not in self._steps:
            # A configuration never comes back once a seed in it has gone: births count up.
            births = [record.birth if record.blueprint else 0 for record in model.records()]
            self._steps = {
                old: step
                for old, step in self._steps.items()
                if all(slot[0] in (0, birth) for slot, birth in zip(old, births, strict=True))
            }
            self._steps[key] = self._compiled(model)
        return _CompiledModel(model, self._steps[key], self)

    def forget(self) -> None:
        """Drop what was compiled: the model's seeds are other modules now."""
        self._steps = {}

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Steps of modules wrapped before or meanwhile run without compilation; afterwards as before."""
        self._disabled += 1
        try:
            yield
        finally:
            self._disabled -= 1

    def fall_back(self, error: Exception) -> None:
        """Go on without compilation, for good."""
        self.fallbacks += 1
        # Dynamo's own text goes on for pages; its first two lines say what failed, and how.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self.reason = f"{type(error).__name__}: {' '.join(lines[:2])}"
        self._steps.clear()
        _LOGGER.warning("training goes on without compilation: %s", self.reason)

    def _compiled(self, model: GrownModel) -> Callable[[Tensor], Tensor]:
        def step(x: Tensor) -> Tensor:
            logits: Tensor = model(x)
            return logits

        # Dynamo keeps graphs, and counts recompiles up to a limit, by code object, and what it learnt of
        # shapes by name and line. Shared ones would let one configuration, or one trainer, use up the limit
        # of the others, after which they would silently run eagerly.
        name = f"step_{uuid.uuid4().hex}"
        step.__code__ = step.__code__.replace(co_name=name, co_qualname=name)
        mode = None if self.config.mode is CompileMode.DEFAULT else str(self.config.mode)
        compiled: Callable[[Tensor], Tensor] = torch.compile(
            step, fullgraph=True, dynamic=self.config.dynamic, backend=self.config.backend, mode=mode
        )
        return compiled


class _CompiledModel(nn.Module):
    """A model whose forward pass runs compiled. Its name for the bare one is torch's own."""

    def __init__(self, model: GrownModel, step: Callable[[Tensor], Tensor], compiler: StepCompiler) -> None:
        super().__init__()
        self._orig_mod = model
        # DistributedDataParallel asks the module that it is given, which is this one.
        self._ddp_params_and_buffers_to_ignore = ["_orig_mod.alphas"]
        self._step, self._compiler = step, compiler

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) to logits (N, ...)."""
        compiler = self._compiler
        if compiler.state is CompileState.COMPILED:
            if compiler.config.dynamic is None:
                # The last batch of an epoch is smaller, which would cost a second graph.
                torch._dynamo.maybe_mark_dynamic(x, 0)
            try:
                return self._step(x)
            except torch._dynamo.exc.TorchDynamoException as error:
                compiler.fall_back(error)
        logits: Tensor = self._orig_mod(x)
        return logits
