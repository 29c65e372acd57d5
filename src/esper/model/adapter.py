"""Any `nn.Module` as a host: slots go after the submodules that its owner names."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import BadSlotPoint, ConfigError
from esper.model.host import SlotPoint, Visit
from esper.model.topology import topology as layout


class ModuleHost(nn.Module):
    """A host made of `module`, with a slot after each of the submodules named in `after`.

    The module itself stays as it is, names in its `state_dict` included; slots are reached by forward hooks,
    and evaluations in several threads do not meet. Slot ids are `r0c0`, `r0c1`, ... in forward order, the
    sizes those found by running `example` once. Compiled, a graph may break at the hooks. Such a host has no
    pieces, so counterfactuals do not share a prefix.
    """

    def __init__(
        self, module: nn.Module, *, after: Sequence[str], example: Tensor, topology: str = "cnn"
    ) -> None:
        """Runs `example`, an input (N, ...), in eval mode: no statistics move, no random number is drawn.

        Raises BadSlotPoint for a name that is no submodule, is not run exactly once, or whose output is not a
        tensor of this topology; ConfigError for an unknown topology or no names.
        """
        super().__init__()
        if not after:
            raise ConfigError("host.after", tuple(after), "the names of at least one submodule")
        known = dict(module.named_modules())
        for name in after:
            if name not in known or not name or list(after).count(name) > 1:
                names = tuple(each for each in known if each)
                raise BadSlotPoint(name, "is not one submodule's name, given once", names)
        self.topology = layout("host.topology", topology).name
        self.module = module
        self._call = _Call()
        # One object for each name, so that a copy of the host has hooks of its own.
        self._taps = [known[name].register_forward_hook(_Tap(name, self._call)) for name in after]
        try:
            found = self._probe(tuple(after), example)
        except BaseException:
            self.detach()
            raise
        self._points = tuple(SlotPoint(f"r0c{index}", size) for index, size in enumerate(found.values()))
        self._slot_ids = {name: f"r0c{index}" for index, name in enumerate(found)}

    def slot_points(self) -> tuple[SlotPoint, ...]:
        """One after each named submodule, in the order in which the example passed them."""
        return self._points

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        """What the module computes, the features after each named submodule led through `visit`."""

        def by_name(name: str, h: Tensor) -> Tensor:
            return h if visit is None else visit(self._slot_ids[name], h)

        with self._call.visited_by(by_name):
            logits: Tensor = self.module(x)
        return logits

    def detach(self) -> None:
        """Take the hooks off the module again."""
        for tap in self._taps:
            tap.remove()

    def _probe(self, names: tuple[str, ...], example: Tensor) -> dict[str, int]:
        found: dict[str, int] = {}
        known = layout("host.topology", self.topology)

        def look(name: str, h: Tensor) -> Tensor:
            if name in found:
                raise BadSlotPoint(name, "is run more than once", names)
            if h.dim() != len(known.letters):
                axes = ", ".join(known.letters)
                raise BadSlotPoint(name, f"has an output of shape {tuple(h.shape)}, not ({axes})", names)
            found[name] = h.shape[known.axis]
            return h

        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            with torch.no_grad(), self._call.visited_by(look):
                self.module(example)
        finally:
            for module, training in modes.items():
                module.training = training
        for name in names:
            if name not in found:
                raise BadSlotPoint(name, "is not run by the forward pass", tuple(found))
        return found


class _Call:
    """Who visits the forward pass under way in this thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def visit(self) -> Visit | None:
        visit: Visit | None = getattr(self._local, "visit", None)
        return visit

    @contextmanager
    def visited_by(self, visit: Visit) -> Iterator[None]:
        before = self.visit
        self._local.visit = visit
        try:
            yield
        finally:
            self._local.visit = before

    def __getstate__(self) -> dict[str, Any]:
        return {}  # thread-local, so there is nothing to copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._local = threading.local()


class _Tap:
    """The hook after one submodule."""

    def __init__(self, name: str, call: _Call) -> None:
        self._name, self._call = name, call

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        visit = self._call.visit
        if visit is None:
            return None
        if not isinstance(output, Tensor):
            raise BadSlotPoint(self._name, f"has a {type(output).__name__} as output, not one tensor", ())
        return visit(self._name, output)
