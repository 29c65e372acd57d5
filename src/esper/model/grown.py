"""A host with a slot at each of its slot points."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from esper.checks import check_number
from esper.errors import BadOverride, ConfigError, ForcedAlpha, OverrideInTraining, UnknownSlot
from esper.lifecycle.config import SlotConfig
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.state import SlotState
from esper.model.counterfactual import Segmented, Variant, walk
from esper.model.fingerprint import fingerprint
from esper.model.host import Host
from esper.model.slot import SeedSlot
from esper.model.topology import topology
from esper.modules import modules_of

_SLOT_ID = re.compile(r"r\d+c\d+")


class SlotDict(nn.ModuleDict):
    """Slots by id, in forward order."""

    def __getitem__(self, key: str) -> SeedSlot:
        """The slot of this id. Raises UnknownSlot."""
        if key not in self:
            raise UnknownSlot(key, tuple(self))
        slot = super().__getitem__(key)
        assert isinstance(slot, SeedSlot)
        return slot


class GrownModel(nn.Module):
    """Host and slots as one network. Without seeds its output is the host's.

    All alphas are in one tensor, `alphas`, of which each slot fills its element. It follows from the slots'
    states, so it is neither saved nor broadcast by DistributedDataParallel, which would hide an alpha that
    drifted on one rank.
    """

    alphas: Tensor

    def __init__(self, host: Host, slot_config: SlotConfig | None = None) -> None:
        """Raises ConfigError when `host` is no module or its slot ids are malformed or not unique."""
        super().__init__()
        if not isinstance(host, nn.Module):
            raise ConfigError("model.host", type(host).__name__, "an nn.Module with the methods of Host")
        points = host.slot_points()
        self.slot_ids = tuple(point.slot_id for point in points)
        for slot_id in self.slot_ids:
            if not _SLOT_ID.fullmatch(slot_id) or self.slot_ids.count(slot_id) > 1:
                raise ConfigError("model.host.slot_points", slot_id, "an id r<row>c<col>, given once")
        topology("model.host.topology", host.topology)
        config = SlotConfig() if slot_config is None else slot_config
        self.host: nn.Module = host
        self.slots = SlotDict(
            {slot_id: SeedSlot(slot_id, channels, host.topology, config) for slot_id, channels in points}
        )
        # The same slots, in a plain dict: the way through modules' attributes is long.
        self._by_id = {slot_id: self.slots[slot_id] for slot_id in self.slot_ids}
        # Those that do something. A model without any goes the host's own way: three empty slots took 40 us
        # of a step, most of it code of the interpreter's that between convolutions has left the caches.
        self._active: dict[str, SeedSlot] = {}
        for slot in self._by_id.values():
            slot.enlist_in(self._active)
        self.register_buffer("alphas", torch.zeros(len(points)), persistent=False)
        # DistributedDataParallel reads this: the buffer's name in the bare and in a compiled module.
        self._ddp_params_and_buffers_to_ignore = ["alphas", "_orig_mod.alphas"]
        self._hand_out_alphas()

    def forward(self, x: Tensor, *, alpha_overrides: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """Inputs (N, ...) to logits (N, classes).

        With `alpha_overrides`, slot id to a number in [0, 1] or a float tensor (), the result is what it
        would be if these were the alphas, and nothing changes. A slot whose seed is not in the forward pass
        stays without effect. A tensor's value is not read, so its range is the caller's. Raises
        UnknownSlot, BadOverride, or OverrideInTraining when any module is in training mode.
        """
        if alpha_overrides is None:
            # By way of the table: an attribute that is a module is found after all others.
            host = self._modules["host"]
            plain: Tensor = host(x, self._visit) if self._active else host(x)  # type: ignore[misc]
            return plain
        overrides = self._checked(alpha_overrides)

        def visit(slot_id: str, h: Tensor) -> Tensor:
            features: Tensor = self._by_id[slot_id](h, overrides.get(slot_id))
            return features

        logits: Tensor = self.host(x, visit)
        return logits

    def counterfactuals(self, x: Tensor, variants: Sequence[Variant]) -> tuple[Tensor, ...]:
        """What `forward(x, alpha_overrides=variant)` gives for each of `variants`, in order.

        Variants share what they have in common, when the host has `segment`. Without gradients the features
        of one path through the host, and one beside it at each slot, are in memory at a time. Raises as
        `forward`.
        """
        if not isinstance(self.host, Segmented):
            return tuple(self.forward(x, alpha_overrides=variant) for variant in variants)
        self._check_evaluating()
        # One tensor for each number, by which variants that agree are found.
        numbers: dict[float, Tensor] = {}
        checked = [
            {slot_id: self._as_alpha(slot_id, value, numbers) for slot_id, value in variant.items()}
            for variant in variants
        ]
        return tuple(walk(self.host, tuple(self._by_id.items()), x, checked)) if checked else ()

    def train(self, mode: bool = True) -> Self:
        """As any module's. An epoch of a small model changes its mode twice, which takes a twentieth of the
        time where no part has a way of its own, or keeps its mode elsewhere, as a scripted one does: torch
        looks at each value that a module is given.
        """
        modules = modules_of(self)
        usual = all(type(each).train is nn.Module.train for each in modules[1:])
        if not (usual and bool(mode) is mode and all("training" in each.__dict__ for each in modules)):
            return super().train(mode)
        for each in modules:
            each.__dict__["training"] = mode
        return self

    def tick(self) -> None:
        """One epoch is over for every slot, as `SeedSlot.tick` for each in forward order."""
        before = [slot.clock.alpha for slot in self._by_id.values()]
        for slot in [slot for slot in self._by_id.values() if not slot.clock.tick()]:
            slot.turn()
        # One write for all, since a thousand single ones take half a millisecond, and none in an epoch that
        # has left all of them as they were.
        shown = [slot.clock.alpha for slot in self._by_id.values()]
        if shown != before:
            self.alphas.copy_(torch.tensor(shown, dtype=self.alphas.dtype))

    def configuration(self) -> tuple[tuple[int, str, bool], ...]:
        """What a compiled step depends on: the same means the same graph, whatever the stages and alphas."""
        return tuple(self.slots[slot_id].configuration() for slot_id in self.slot_ids)

    def force_alpha(self, *_: object, **__: object) -> NoReturn:
        """There is none: it would change the model for every other reader. Raises ForcedAlpha."""
        raise ForcedAlpha("GrownModel.force_alpha", "model(x, alpha_overrides={slot_id: alpha})")

    def records(self) -> tuple[SlotRecord, ...]:
        """What the ranks compare, one record a slot, in forward order."""
        return tuple([self._by_id[slot_id].record() for slot_id in self.slot_ids])

    def states(self) -> dict[str, SlotState]:
        """Each slot's state, by id in forward order."""
        return {slot_id: self._by_id[slot_id].clock.state for slot_id in self.slot_ids}

    def fingerprint(self) -> int:
        """63-bit digest over names, order, shapes and bits of all parameters and buffers."""
        return fingerprint(self)

    def _visit(self, slot_id: str, h: Tensor) -> Tensor:
        slot = self._active.get(slot_id)
        if slot is None:
            return h
        features: Tensor = slot(h)
        return features

    def _checked(self, overrides: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
        self._check_evaluating()
        return {slot_id: self._as_alpha(slot_id, value, {}) for slot_id, value in overrides.items()}

    def _check_evaluating(self) -> None:
        if any(module.training for module in modules_of(self)):
            training = next(name for name, module in self.named_modules() if module.training)
            raise OverrideInTraining(training or type(self).__name__)

    def _as_alpha(self, slot_id: str, value: float | Tensor, numbers: dict[float, Tensor]) -> Tensor:
        if slot_id not in self.slots:
            raise UnknownSlot(slot_id, self.slot_ids)
        if isinstance(value, Tensor):
            if value.shape != () or not value.is_floating_point():
                raise BadOverride(slot_id, f"{value.dtype} {tuple(value.shape)}", "a float tensor ()")
            return value.to(self.alphas.device)
        try:
            number = check_number(slot_id, value, 0.0, 1.0)
        except ConfigError:
            raise BadOverride(slot_id, repr(value), "a number in [0, 1] or a float tensor ()") from None
        if number not in numbers:
            numbers[number] = torch.tensor(number, dtype=self.alphas.dtype, device=self.alphas.device)
        return numbers[number]

    def _hand_out_alphas(self) -> None:
        for index, slot_id in enumerate(self.slot_ids):
            self.slots[slot_id].show_alpha_in(self.alphas[index])

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickled tensors do not share memory any more.
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._hand_out_alphas()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Moving a module replaces its buffers, which leaves the slots with views of the old one.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._hand_out_alphas()
        return self
