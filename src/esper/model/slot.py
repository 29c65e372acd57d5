"""The place in a host where a seed lives: the module side of a `SlotState`."""

from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor, nn

from esper.errors import BadState, ShapeMismatch
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.config import SlotConfig
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage, has_seed, in_forward
from esper.lifecycle.state import SlotState
from esper.model import blend
from esper.model.blueprints import build


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
        self._state = SlotState(slot_id)
        # Kept beside the state because a compiled forward guards on what it reads, and the state changes
        # every epoch.
        self._path = _Path.OFF
        self._alpha = torch.zeros(())

    @property
    def stage(self) -> Stage:
        """The slot's stage."""
        return self._state.stage

    def record(self) -> SlotRecord:
        """What the ranks compare of this slot."""
        return self._state.record()

    def show_alpha_in(self, cell: Tensor) -> None:
        """Use `cell`, a float tensor (), as what the forward pass reads alpha from, and fill it."""
        self._alpha = cell
        self._alpha.fill_(self._state.alpha.alpha)

    def prepare(self, blueprint: str, generator: torch.Generator) -> nn.Module:
        """A seed that `commit` takes, weights drawn from `generator` only; the slot itself stays as it is.

        Raises SlotOccupied, IllegalTransition (cooldown), UnknownBlueprint, or ShapeMismatch.
        """
        self._state.check_vacant()
        return build(self.topology, blueprint, self.channels, generator).to(self._alpha.device)

    def commit(self, blueprint: str, seed: nn.Module) -> None:
        """DORMANT -> GERMINATED with this seed. Raises SlotOccupied or IllegalTransition (cooldown)."""
        self._become(self._state.germinate(blueprint), seed.train(self.training))

    def advance(self) -> None:
        """The next stage; entering BLENDING starts alpha on its way up. Gates are asked before, not here.

        Raises SlotEmpty, or IllegalTransition when there is no next stage or a prune is under way.
        """
        self._become(self._state.advance(self.config), self.seed)

    def prune(self, tempo: int | None = None) -> None:
        """Take the seed out; from BLENDING and HOLDING over `tempo` ticks (None: the config's; 0: at once).

        Raises FossilPruned, SlotEmpty, IllegalTransition (cooldown, or a prune under way), or ConfigError.
        """
        self._become(self._state.prune(self.config.tempo if tempo is None else tempo), self.seed)

    def tick(self) -> None:
        """One epoch is over: alpha moves a step, a cooldown counts down. Call it once, after the decision."""
        self._become(self._state.tick(self.config), self.seed)

    def seed_parameters(self) -> tuple[nn.Parameter, ...]:
        """The seed's parameters in their module's order; none without a seed."""
        return () if self.seed is None else tuple(self.seed.parameters())

    def lifecycle_state(self) -> dict[str, object]:
        """Plain values that `load_lifecycle_state` takes back. Tensors are in `state_dict`, not here."""
        return self._state.to_dict()

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
            seed = build(self.topology, state.blueprint, self.channels, torch.Generator().manual_seed(0))
            seed.to(self._alpha.device).train(self.training)
        self._become(state, seed)

    def forward(self, h: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Host features (N, C, ...) with the seed's part in them, same shape.

        `alpha` () stands in for the slot's own and makes TRAINING mix like BLENDING; it changes nothing.
        Where the seed is not in the forward pass the result is `h` itself. Raises ShapeMismatch when the
        seed changes the shape.
        """
        if self.seed is None or self._path is _Path.OFF:
            return h
        if alpha is None and self._path is _Path.STRAIGHT:
            # Detached: through the seed the host would get gradients of an output that it does not have.
            return blend.straight_through(h, self._seed_output(self.seed, h.detach()))
        return blend.add(h, self._seed_output(self.seed, h), self._alpha if alpha is None else alpha)

    def extra_repr(self) -> str:
        """Id, size and stage, for `repr`."""
        return f"{self.slot_id!r}, channels={self.channels}, stage={self.stage.name}"

    def _seed_output(self, seed: nn.Module, h: Tensor) -> Tensor:
        output: Tensor = seed(h)
        if output.shape != h.shape:  # would broadcast in the mix, and train
            raise ShapeMismatch(f"slot {self.slot_id!r}", tuple(h.shape), tuple(output.shape))
        return output

    def _become(self, state: SlotState, seed: nn.Module | None) -> None:
        self._state = state
        self.seed = seed if has_seed(state.stage) else None
        self._path = _Path.OFF
        if in_forward(state.stage):
            self._path = _Path.STRAIGHT if state.stage is Stage.TRAINING else _Path.MIX
        self._alpha.fill_(state.alpha.alpha)
        self._set_trainable(self._path is not _Path.OFF and state.alpha.mode is not AlphaMode.DOWN)

    def _set_trainable(self, trainable: bool) -> None:
        for parameter in self.seed_parameters():
            parameter.requires_grad_(trainable)
            if not trainable:
                # An optimiser steps on whatever gradient it finds, also one from before the freeze.
                parameter.grad = None
