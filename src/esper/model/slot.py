"""The place in a host where a seed lives: the module side of a `SlotState`."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NoReturn

import torch
from torch import Tensor, nn

from esper.errors import BadState, ConfigError, FeatureMismatch, ForcedAlpha, ShapeMismatch
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.clock import SlotClock
from esper.lifecycle.config import Blend, SlotConfig
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage, has_seed, in_forward
from esper.lifecycle.state import SlotState
from esper.model import blend
from esper.model.blueprints import build
from esper.model.blueprints.registry import build_again, check_shapes
from esper.model.gate import Gate, GatedSeed
from esper.model.topology import topology as layout
from esper.modules import parameters_of


class _Path(Enum):
    OFF = "the seed is not in the forward pass"
    STRAIGHT = "it learns behind the host's value"
    MIX = "it is mixed in"


class SeedSlot(nn.Module):
    """A slot for one seed at features of `channels` channels.

    Its steps (`commit`, `advance`, `prune`, `tick`) either happen as a whole or raise and change nothing.
    While the seed is outside of the forward pass, or alpha goes down, its parameters require no gradients.
    """

    seed: nn.Module | None

    def __init__(self, slot_id: str, channels: int, topology: str, config: SlotConfig) -> None:
        super().__init__()
        self.slot_id = slot_id
        self.channels = channels
        self.topology = topology
        self.config = config
        self.seed = None
        self.clock = SlotClock(SlotState(slot_id), config)
        self._layout = layout(f"slot {slot_id!r}.topology", topology)
        # Kept beside the state because a compiled forward guards on what it reads, and the state changes
        # every epoch.
        self._path = _Path.OFF
        self.in_forward = False  # whether `forward` does anything
        self._blend = config.blend
        self._trainable = False
        self._alpha = torch.zeros(())
        self._active: dict[str, SeedSlot] = {}
        self._fitting: set[str] = set()  # blueprints whose seeds have kept this slot's shapes

    @property
    def stage(self) -> Stage:
        """The slot's stage."""
        return self.clock.state.stage

    def record(self) -> SlotRecord:
        """What the ranks compare of this slot."""
        return self.clock.state.record()

    def show_alpha_in(self, cell: Tensor) -> None:
        """Use `cell`, a float tensor (), as what the forward pass reads alpha from, and fill it."""
        self._alpha = cell
        self._alpha.fill_(self.clock.alpha)

    def enlist_in(self, active: "dict[str, SeedSlot]") -> None:
        """Be in `active`, by id, whenever the seed is in the forward pass."""
        self._active = active
        self._enlist()

    def prepare(self, blueprint: str, generator: torch.Generator, blend: Blend | None = None) -> nn.Module:
        """A seed that `commit` takes for the same `blend` (None: the config's), weights drawn from
        `generator` only; the slot itself stays as it is.

        Raises SlotOccupied, IllegalTransition (cooldown), UnknownBlueprint, ShapeMismatch, or ConfigError.
        """
        state = self.clock.state.germinate(blueprint, self.config.blend if blend is None else blend)
        return self._build(state, generator)

    def commit(self, blueprint: str, seed: nn.Module, blend: Blend | None = None) -> None:
        """DORMANT -> GERMINATED with this seed, which will be mixed by `blend` (None: the config's).

        Raises SlotOccupied, IllegalTransition (cooldown), ShapeMismatch or SeedRefused for a seed made for
        other features, or ConfigError for one that was not made for this `blend`: GATE needs a gate, and
        with any other a gate would never get a gradient.
        """
        state = self.clock.state.germinate(blueprint, self.config.blend if blend is None else blend)
        if isinstance(seed, GatedSeed) is not (state.blend is Blend.GATE):
            accepted = "a GatedSeed" if state.blend is Blend.GATE else "a seed without a gate"
            raise ConfigError("seed", type(seed).__name__, f"{accepted}, since it is mixed by {state.blend}")
        where = f"slot {self.slot_id!r}"
        check_shapes(where, self.topology, seed, self.channels, self._alpha)
        self._become(state, seed.train(self.training))

    def advance(self) -> None:
        """The next stage; entering BLENDING starts alpha on its way up. Gates are asked before, not here.

        Raises SlotEmpty, or IllegalTransition when there is no next stage, a prune is under way, or alpha is
        still on its way where the next stage keeps it for good.
        """
        self._become(self.clock.state.advance(self.config), self.seed)

    def prune(self, tempo: int | None = None) -> None:
        """Take the seed out; from BLENDING and HOLDING over `tempo` ticks (None: the config's; 0: at once).

        Raises FossilPruned, SlotEmpty, IllegalTransition (cooldown, or a prune under way), or ConfigError.
        """
        self._become(self.clock.state.prune(self.config.tempo if tempo is None else tempo), self.seed)

    def retarget(self, target: float, tempo: int | None = None) -> None:
        """Send alpha to another `target` in (0, 1] over `tempo` ticks; HOLDING goes back to BLENDING.

        Raises SlotEmpty, AlphaNotHolding, IllegalTransition, or ConfigError.
        """
        ticks = self.config.tempo if tempo is None else tempo
        self._become(self.clock.state.retarget(target, ticks, self.config), self.seed)

    def tick(self) -> None:
        """One epoch is over: alpha moves a step, a cooldown counts down. Call it once, after the decision."""
        if self.clock.tick():
            self._alpha.fill_(self.clock.alpha)
        else:
            self.turn()

    def turn(self) -> None:
        """The tick that `clock` does not count: the one that changes more than alpha."""
        self._become(self.clock.state.tick(self.config), self.seed)

    def configuration(self) -> tuple[int, str, bool]:
        """What a compiled forward and backward pass depends on: the seed in it by its birth (0: none), its
        way of coming in (its blend, once it is mixed in), whether it learns. It changes less often than the
        stage.
        """
        birth = 0 if self._path is _Path.OFF else self.clock.state.birth
        way = self._blend.name if self._path is _Path.MIX else self._path.name
        return (birth, way, self._trainable)

    def seed_parameters(self) -> tuple[nn.Parameter, ...]:
        """The seed's parameters in their module's order; none without a seed."""
        return () if self.seed is None else tuple(parameters_of(self.seed))

    def lifecycle_state(self) -> dict[str, object]:
        """Plain values that `load_lifecycle_state` takes back. Tensors are in `state_dict`, not here."""
        return self.clock.state.to_dict()

    def load_lifecycle_state(self, saved: Mapping[str, object]) -> None:
        """Go on from a saved state. A seed is rebuilt from its blueprint; load the tensors after this.

        Raises BadState for a state of another slot or one that contradicts itself, UnknownBlueprint for one
        whose blueprint is not registered here.
        """
        state = SlotState.from_dict(saved)
        if state.slot_id != self.slot_id:
            raise BadState(f"slot {self.slot_id!r}.slot_id", state.slot_id, f"{self.slot_id!r}")
        seed = None
        if state.blueprint is not None:
            # Any weights will do: the tensors that are loaded next replace them.
            seed = self._build(state, torch.Generator().manual_seed(0)).train(self.training)
        self._become(state, seed)

    def forward(self, h: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Host features (N, C, ...) with the seed's part in them, same shape.

        `alpha` () stands in for the slot's own and makes TRAINING mix like BLENDING; it changes nothing.
        Where the seed is not in the forward pass the result is `h` itself. Raises FeatureMismatch for
        features of another layout or size, ShapeMismatch when the seed changes the shape.
        """
        # The path alone: a compiled forward would guard on the seed as well, and one comes before it counts.
        if self._path is _Path.OFF:
            return h
        read, output = self._run(h)
        return self._mixed(h, read, output, alpha)

    def variants(self, h: Tensor, alphas: Sequence[Tensor | None]) -> list[Tensor]:
        """What `forward(h, alpha)` gives for each of `alphas`, the seed evaluated once."""
        if self._path is _Path.OFF:
            return [h] * len(alphas)
        read, output = self._run(h)
        return [self._mixed(h, read, output, alpha) for alpha in alphas]

    def force_alpha(self, *_: object, **__: object) -> NoReturn:
        """There is none: it would change the slot for every other reader. Raises ForcedAlpha."""
        raise ForcedAlpha("SeedSlot.force_alpha", f"model(x, alpha_overrides={{{self.slot_id!r}: alpha}})")

    def extra_repr(self) -> str:
        """Id, size and stage, for `repr`."""
        return f"{self.slot_id!r}, channels={self.channels}, stage={self.stage.name}"

    def _build(self, state: SlotState, generator: torch.Generator) -> nn.Module:
        blueprint = state.blueprint
        assert blueprint is not None  # asked for states with a seed only
        make = build_again if blueprint in self._fitting else build
        seed = make(self.topology, blueprint, self.channels, generator)
        self._fitting.add(blueprint)
        if state.blend is Blend.GATE:
            seed = GatedSeed(seed, Gate(self.channels, self.topology, generator))
        return seed.to(self._alpha)  # device and dtype of the model

    def _run(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """What the seed reads, and its output. One call: each costs where the code lies cold."""
        if not self._layout.fits(self.channels, h.shape):
            raise FeatureMismatch(
                f"slot {self.slot_id!r}", self._layout.letters, self.channels, tuple(h.shape)
            )
        # In TRAINING detached: the host would get gradients of an output it lacks.
        read = h.detach() if self._path is _Path.STRAIGHT else h
        output: Tensor = self._modules["seed"](read)  # type: ignore[misc]
        if output.shape != h.shape:  # would broadcast in the mix, and train
            raise ShapeMismatch(f"slot {self.slot_id!r}", tuple(h.shape), tuple(output.shape))
        return read, output

    def _mixed(self, h: Tensor, read: Tensor, output: Tensor, alpha: Tensor | None) -> Tensor:
        if alpha is None:
            if self._path is _Path.STRAIGHT:
                return blend.straight_through(h, output)
            alpha = self._alpha
        if self._blend is Blend.ADD:
            return blend.add(h, output, alpha)
        if self._blend is Blend.MULTIPLY:
            return blend.multiply(h, output, read, alpha)
        assert isinstance(self.seed, GatedSeed)  # `commit` takes no other for GATE
        return blend.gated(h, output, self.seed.gate(read), alpha)

    def _become(self, state: SlotState, seed: nn.Module | None) -> None:
        self.clock = SlotClock(state, self.config)
        self.seed = seed if has_seed(state.stage) else None
        self._blend = state.blend or self.config.blend
        self._path = _Path.OFF
        if in_forward(state.stage):
            self._path = _Path.STRAIGHT if state.stage is Stage.TRAINING else _Path.MIX
        self.in_forward = self._path is not _Path.OFF
        self._enlist()
        self._alpha.fill_(state.alpha.alpha)
        self._trainable = self.in_forward and state.alpha.mode is not AlphaMode.DOWN
        _set_trainable(self.seed_parameters(), self._trainable)
        if isinstance(self.seed, GatedSeed) and self._path is _Path.STRAIGHT:
            _set_trainable(self.seed.gate.parameters(), False)  # not part of what TRAINING computes

    def _enlist(self) -> None:
        if self.in_forward:
            self._active[self.slot_id] = self
        else:
            self._active.pop(self.slot_id, None)


def _set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        if not trainable:
            # An optimiser steps on whatever gradient it finds, also one from before the freeze.
            parameter.grad = None
