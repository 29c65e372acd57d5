"""Compiled training steps, for one trainer. Evaluation and counterfactuals run on the bare model."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import torch
from torch import Tensor, nn

from esper.distributed.divergence import ranks_text
from esper.errors import ConfigError
from esper.model import GrownModel

Configuration = tuple[tuple[int, str, bool], ...]  # as `GrownModel.configuration` has it

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
        self._steps: dict[tuple[bool, Configuration], Callable[[Tensor], Tensor]] = {}
        self._disabled = 0
        self._follow()

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
        configuration = model.configuration()
        # Without a seed in it the forward pass is the host's, and so are what it guards on and what it costs.
        alone = _is_plain(model) and not any(birth for birth, _, _ in configuration)
        key = (alone, configuration)
        if key not in self._steps:
            # A configuration never comes back once a seed in it has gone: births count up.
            births = [record.birth if record.blueprint else 0 for record in model.records()]
            self._steps = {
                old: step
                for old, step in self._steps.items()
                if all(slot[0] in (0, birth) for slot, birth in zip(old[1], births, strict=True))
            }
            self._steps[key] = self._compiled(model.host if alone else model)
        return _CompiledModel(model, self._steps[key], self)

    def forget(self) -> None:
        """Drop what was compiled: the model's seeds are other modules now."""
        self._steps = {}

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Steps of modules wrapped before or meanwhile run without compilation; afterwards as before."""
        self._disabled += 1
        self._follow()
        try:
            yield
        finally:
            self._disabled -= 1
            self._follow()

    def fall_back(self, error: Exception) -> None:
        """Go on without compilation, for good."""
        # Dynamo's own text goes on for pages; its first two lines say what failed, and how.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self._stop(f"{type(error).__name__}: {' '.join(lines[:2])}")

    def follow(self, ranks: Sequence[int]) -> None:
        """Go on as the ranks that fell back do; nothing for one that has done so, or was not to compile."""
        if self.state is CompileState.COMPILED:
            self._stop(f"{ranks_text(ranks)} could not compile")

    def _stop(self, reason: str) -> None:
        self.fallbacks += 1
        self._follow()
        self.reason = reason
        self._steps.clear()
        _LOGGER.warning("training goes on without compilation: %s", reason)

    def _follow(self) -> None:
        # What a step asks: with the property, and a method around it, the way to the compiled code took 30 us
        # more between two steps, where the interpreter's own code has left the caches.
        self.active = self.state is CompileState.COMPILED

    def _compiled(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
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
        # In the instance, and called before hooks are looked for, as torch's own `compile` of a module does:
        # see `StepCompiler._follow`.
        self.forward = self._compiled_call_impl = _forward_by(model, step, compiler)


def _is_plain(model: GrownModel) -> bool:
    """Whether to call the model is to run the forward pass that `GrownModel` has, and nothing besides."""
    hooks = (
        model._forward_hooks,
        model._forward_pre_hooks,
        model._backward_hooks,
        model._backward_pre_hooks,
    )
    return type(model).forward is GrownModel.forward and not any(hooks)


def _forward_by(
    model: GrownModel, step: Callable[[Tensor], Tensor], compiler: StepCompiler
) -> Callable[[Tensor], Tensor]:
    marks = compiler.config.dynamic is None

    def forward(x: Tensor) -> Tensor:
        """Inputs (N, ...) to logits (N, ...)."""
        nonlocal marks
        if compiler.active:
            if marks:
                # The last batch of an epoch is smaller, which would cost a second graph.
                torch._dynamo.maybe_mark_dynamic(x, 0)
                marks = False
            try:
                return step(x)
            except torch._dynamo.exc.TorchDynamoException as error:
                compiler.fall_back(error)
        logits: Tensor = model(x)
        return logits

    return forward
