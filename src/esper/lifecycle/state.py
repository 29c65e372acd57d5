"""The life of one slot as a value: each step returns the next state or raises and leaves nothing changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from esper.checks import check_int, check_number
from esper.errors import BadState, ConfigError, FossilPruned, IllegalTransition, SlotEmpty, SlotOccupied
from esper.lifecycle.alpha import AlphaController, AlphaMode
from esper.lifecycle.config import Blend, SlotConfig, check_blend
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage, can_move, has_seed, in_cooldown, next_stage


@dataclass(frozen=True, slots=True)
class SlotState:
    """Stage, seed and alpha of one slot.

    Gates are not asked here: they judge whether a step is wise, this whether it is possible.
    """

    slot_id: str
    stage: Stage = Stage.DORMANT
    blueprint: str | None = None
    blend: Blend | None = None  # how the seed is mixed; None: no seed in the slot
    birth: int = 0
    epochs_in_stage: int = 0
    alpha: AlphaController = field(default_factory=AlphaController)

    @property
    def retreating(self) -> bool:
        """Whether a prune is under way: alpha goes down to 0 and the seed leaves when it arrives."""
        return self.alpha.mode is AlphaMode.DOWN and self.alpha.target == 0.0

    def record(self) -> SlotRecord:
        """What the ranks compare."""
        alpha = self.alpha
        return SlotRecord(
            slot_id=self.slot_id,
            stage=self.stage,
            blueprint=self.blueprint,
            birth=self.birth,
            epochs_in_stage=self.epochs_in_stage,
            alpha=alpha.alpha,
            alpha_target=alpha.target,
            alpha_mode=int(alpha.mode),
            ticks_left=alpha.ticks_left,
            blend=self.blend,
        )

    def check_vacant(self) -> None:
        """Raises SlotOccupied when the slot holds a seed, IllegalTransition when it is in cooldown."""
        if self.blueprint is not None:
            raise SlotOccupied(self.slot_id, self.stage.name, self.blueprint)
        if self.stage is not Stage.DORMANT:
            raise self._illegal("germinate", "it is in cooldown until it is DORMANT")

    def germinate(self, blueprint: str, blend: Blend) -> "SlotState":
        """DORMANT -> GERMINATED, with a seed that will be mixed by `blend`.

        Raises SlotOccupied, IllegalTransition, or ConfigError for a `blend` that is none.
        """
        self.check_vacant()
        check_blend("blend", blend)
        return self._enter(Stage.GERMINATED, blueprint=blueprint, blend=blend, birth=self.birth + 1)

    def advance(self, config: SlotConfig) -> "SlotState":
        """The next stage of a seed; entering BLENDING starts alpha on its way up.

        Raises SlotEmpty, or IllegalTransition when there is no next stage, a prune is under way, or alpha is
        still on its way where the next stage keeps it for good.
        """
        if self.stage is Stage.DORMANT:
            raise SlotEmpty(self.slot_id, "advance")
        if in_cooldown(self.stage):
            raise self._illegal("advance", "a cooldown ends by its ticks")
        if self.retreating:
            raise self._illegal("advance", f"it is being pruned, {self.alpha.ticks_left} ticks left")
        target = next_stage(self.stage)
        if target is None:
            raise self._illegal("advance", "the stage is terminal")
        if target is Stage.FOSSILIZED and self.alpha.mode is not AlphaMode.HOLD:
            raise self._illegal("advance", f"alpha is on its way, {self.alpha.ticks_left} ticks left")
        if target is Stage.BLENDING:
            fresh = AlphaController(curve=config.curve, steepness=config.steepness)
            return self._enter(target, alpha=fresh.retarget(config.alpha_target, config.tempo))
        return self._enter(target)

    def prune(self, tempo: int) -> "SlotState":
        """Take the seed out. From BLENDING and HOLDING alpha first goes down over `tempo` ticks; 0: at once.

        A prune under way can be cut short by tempo 0. Raises FossilPruned, SlotEmpty, IllegalTransition, or
        ConfigError for a tempo that is not an int of at least 0.
        """
        check_int("tempo", tempo, 0)
        if self.stage is Stage.FOSSILIZED:
            raise FossilPruned(self.slot_id, str(self.blueprint))
        if self.stage is Stage.DORMANT:
            raise SlotEmpty(self.slot_id, "prune")
        if in_cooldown(self.stage):
            raise self._illegal("prune", "its seed is gone already")
        if self.retreating and tempo > 0:
            raise self._illegal("prune", f"it is being pruned, {self.alpha.ticks_left} ticks left")
        retreat = self.alpha.retreat(tempo)
        if retreat.mode is AlphaMode.HOLD:
            return self._clear()
        return replace(self, alpha=retreat)

    def retarget(self, target: float, ticks: int, config: SlotConfig) -> "SlotState":
        """Send alpha to another `target` in (0, 1]; HOLDING goes back to BLENDING, BLENDING stays.

        Raises SlotEmpty, AlphaNotHolding while alpha is on its way, IllegalTransition in other stages, or
        ConfigError for a target outside of (0, 1] or ticks that are not an int of at least 0.
        """
        if self.stage is Stage.DORMANT:
            raise SlotEmpty(self.slot_id, "retarget")
        if self.stage not in (Stage.BLENDING, Stage.HOLDING):
            raise self._illegal("retarget", "alpha has a target in BLENDING and HOLDING only")
        number = check_number("target", target, 0.0, 1.0)  # 1 as 1.0: states are compared in words, too
        if number == 0.0:
            raise ConfigError("target", target, "a number in (0, 1]; to take the seed out, prune it")
        alpha = self.alpha.retarget(number, check_int("ticks", ticks, 0), config.curve)
        if self.stage is Stage.BLENDING:
            return replace(self, alpha=alpha)
        return self._enter(Stage.BLENDING, alpha=alpha)

    def quiet_ticks(self, config: SlotConfig) -> int | None:
        """How many ticks from here change nothing but alpha and the epochs in the stage; None: all do."""
        if in_cooldown(self.stage):
            return max(0, config.cooldown(self.stage) - self.epochs_in_stage)
        if self.alpha.mode is AlphaMode.DOWN:
            return self.alpha.ticks_left - 1  # the last one lets the seed learn again, or takes it out
        return None

    def after(self, ticks: int) -> "SlotState":
        """What `ticks` quiet ticks lead to."""
        return replace(self, epochs_in_stage=self.epochs_in_stage + ticks, alpha=self.alpha.after(ticks))

    def tick(self, config: SlotConfig) -> "SlotState":
        """One epoch is over: alpha moves a step, a cooldown counts down, the epochs in the stage count up."""
        state = self
        if in_cooldown(state.stage):
            if state.epochs_in_stage >= config.cooldown(state.stage):
                following = next_stage(state.stage)
                assert following is not None  # the table leads every cooldown stage on
                state = state._enter(following)
        elif state.retreating:
            state = replace(state, alpha=state.alpha.tick())
            if state.alpha.mode is AlphaMode.HOLD:
                state = state._clear()
        else:
            state = replace(state, alpha=state.alpha.tick())
        return replace(state, epochs_in_stage=state.epochs_in_stage + 1)

    def _clear(self) -> "SlotState":
        return self._enter(Stage.PRUNED, blueprint=None, blend=None, alpha=AlphaController())

    def _enter(self, stage: Stage, **changes: object) -> "SlotState":
        if not can_move(self.stage, stage):
            raise self._illegal(f"move to {stage.name}", "the transition table has no such step")
        return replace(self, stage=stage, epochs_in_stage=0, **changes)  # type: ignore[arg-type]

    def _illegal(self, operation: str, reason: str) -> IllegalTransition:
        return IllegalTransition(self.slot_id, self.stage.name, operation, reason)

    def to_dict(self) -> dict[str, object]:
        """Plain values that `from_dict` takes back."""
        return {
            "slot_id": self.slot_id,
            "stage": int(self.stage),
            "blueprint": self.blueprint,
            "blend": None if self.blend is None else self.blend.value,
            "birth": self.birth,
            "epochs_in_stage": self.epochs_in_stage,
            "alpha": self.alpha.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, object]) -> "SlotState":
        """The state that `to_dict` described. Raises BadState for missing or contradicting values."""
        names = ("slot_id", "stage", "blueprint", "blend", "birth", "epochs_in_stage", "alpha")
        if set(state) != set(names):
            raise BadState("slot", sorted(state), f"a mapping with exactly the keys {', '.join(names)}")
        slot_id, code, blueprint, mixed, birth, epochs, alpha = (state[name] for name in names)
        where = f"slot {slot_id!r}"
        if not isinstance(slot_id, str):
            raise BadState("slot.slot_id", slot_id, "a str")
        if not isinstance(code, int) or code not in set(Stage):
            raise BadState(f"{where}.stage", code, "the code of a stage")
        if not isinstance(alpha, Mapping):
            raise BadState(f"{where}.alpha", alpha, "a mapping")
        stage = Stage(code)
        if not (isinstance(blueprint, str) if has_seed(stage) else blueprint is None):
            accepted = "a str" if has_seed(stage) else "None"
            raise BadState(f"{where}.blueprint", blueprint, f"{accepted} in stage {stage.name}")
        if not (mixed in list(Blend) if has_seed(stage) else mixed is None):
            accepted = f"one of {', '.join(Blend)}" if has_seed(stage) else "None"
            raise BadState(f"{where}.blend", mixed, f"{accepted} in stage {stage.name}")
        try:
            counts = check_int(f"{where}.birth", birth, 0), check_int(f"{where}.epochs_in_stage", epochs, 0)
        except ConfigError as error:
            raise BadState(error.key, error.value, error.accepted) from None
        name = blueprint if isinstance(blueprint, str) else None
        blend = None if mixed is None else Blend(str(mixed))
        return cls(slot_id, stage, name, blend, *counts, AlphaController.from_dict(alpha))
