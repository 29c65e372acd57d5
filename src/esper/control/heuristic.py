"""A controller by rules: germinate on a plateau, let the gates decide, prune what does not help."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from esper.checks import check_int, check_number
from esper.control.actions import Action, Advance, Decision, Germinate, Prune
from esper.control.signals import EpochSignals, SlotView, gate_for
from esper.errors import BadState, ConfigError
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.gates import GateConfig
from esper.lifecycle.stage import Stage, has_seed

_Deed = tuple[Action, str]  # and why; of an advance that is what its gate says
_COUNTS = ("plateau_epochs", "stable_epochs", "failing_epochs", "max_holding_epochs", "max_growing")
_SHARES = ("stable_fall", "stable_rise", "penalty_decay")
_POINTS = ("plateau_points", "failing_points", "min_contribution", "prune_penalty", "penalty_limit")


@dataclass(frozen=True, slots=True)
class HeuristicConfig:
    """Thresholds of the heuristic controller. Accuracies in points, losses relative.

    A blueprint has a penalty: each prune of it adds `prune_penalty`, a fossil of it clears it. When its turn
    comes with a penalty of `penalty_limit` or more, the turn goes to the next one and the penalty is
    multiplied by `penalty_decay`. With the defaults, 2 a prune, halved, and a limit of 3: the first prune
    costs nothing (2 < 3); from the second in a row on (4, then 4 -> 2 -> 4) a blueprint is left out of every
    other turn, that is for as long as the seed that takes its place is under way. (Halved each epoch it
    would never reach the limit: two prunes of one blueprint are at least 7 epochs apart when one seed grows
    at a time, and 2 / 2**7 + 2 < 3.)
    When all are left out, nothing germinates in that epoch, and the penalties have faded by a step.
    """

    blueprints: tuple[str, ...] = ("norm", "conv_light")  # in the order of their turns
    plateau_epochs: int = 3
    plateau_points: float = 0.5  # an epoch that gains less is part of a plateau
    stable_epochs: int = 3
    stable_fall: float = 0.05  # an epoch's loss is stable when it falls by less than this share
    stable_rise: float = 0.03  # and rises by less than this
    failing_epochs: int = 5  # epochs before a seed in training may be called failing
    failing_points: float = 2.0  # loss of accuracy, since the stage was entered, beyond which it is
    min_contribution: float = 0.5  # below this a holding seed is pruned
    max_holding_epochs: int = 10
    max_growing: int = 1  # seeds under way at the same time
    prune_penalty: float = 2.0
    penalty_decay: float = 0.5  # per turn that is passed over, below 1
    penalty_limit: float = 3.0  # from here on a turn is passed over

    def __post_init__(self) -> None:
        if not self.blueprints:
            raise ConfigError("heuristic.blueprints", self.blueprints, "at least one blueprint name")
        for name in _COUNTS:
            check_int(f"heuristic.{name}", getattr(self, name), 1)
        for name in _SHARES:
            check_number(f"heuristic.{name}", getattr(self, name), 0.0, 1.0)
        for name in _POINTS:
            check_number(f"heuristic.{name}", getattr(self, name))
        if self.penalty_decay == 1.0:
            raise ConfigError(
                "heuristic.penalty_decay", 1.0, "in [0, 1): with 1 no blueprint would come back"
            )
        if self.penalty_limit <= 0.0:
            accepted = "above 0: with less a blueprint that was never pruned would be passed over"
            raise ConfigError("heuristic.penalty_limit", self.penalty_limit, accepted)


@dataclass
class HeuristicController:
    """Decides by rules from agreed numbers and its own past decisions, so every rank decides the same."""

    config: HeuristicConfig = field(default_factory=HeuristicConfig)
    gates: GateConfig = field(default_factory=GateConfig)
    _turn: int = field(default=0, init=False)
    _penalties: dict[str, float] = field(default_factory=dict, init=False)

    def decide(self, signals: EpochSignals) -> Decision:
        """What to do after this epoch. Call it once an epoch: turns are taken with each call."""
        deeds = [deed for view in signals.slots if (deed := self._on_seed(view)) is not None]
        germination = self._germination(signals)
        if germination is not None:
            deeds.append(germination)
        return Decision(tuple(action for action, _ in deeds), tuple(reason for _, reason in deeds))

    def state_dict(self) -> dict[str, object]:
        """Plain values that `load_state_dict` takes back."""
        return {"turn": self._turn, "penalties": dict(self._penalties)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a saved state. Raises BadState, and stays as it is, for anything else."""
        turn, penalties = state.get("turn"), state.get("penalties")
        if not isinstance(turn, int) or isinstance(turn, bool) or turn < 0:
            raise BadState("heuristic.turn", turn, "an int of at least 0")
        known = self.config.blueprints
        if not isinstance(penalties, Mapping) or not set(penalties) <= set(known):
            raise BadState("heuristic.penalties", penalties, f"numbers for {', '.join(known)}")
        self._turn = turn
        self._penalties = {str(name): float(value) for name, value in penalties.items()}

    def _on_seed(self, view: SlotView) -> _Deed | None:
        record = view.record
        if record.alpha_mode == AlphaMode.DOWN:
            return None
        match record.stage:
            case Stage.GERMINATED:
                return Advance(record.slot_id), ""
            case Stage.TRAINING:
                return self._on_training(view)
            case Stage.BLENDING:
                return (Advance(record.slot_id), "") if record.alpha_mode == AlphaMode.HOLD else None
            case Stage.HOLDING:
                return self._on_holding(view)
        return None

    def _on_training(self, view: SlotView) -> _Deed:
        if self._failing(view):
            lost = f"{view.improvement:+.2f} points of accuracy since it began"
            return self._prune(view, f"failing: {lost}, below -{self.config.failing_points:g}")
        # Waiting on for its gate would hold up growth for as long as the run lasts.
        limit = self.gates.max_training_epochs
        if view.record.epochs_in_stage >= limit and not (gate := gate_for(view, self.gates)).passed:
            return self._prune(view, f"{gate}, and it has had its {limit} epochs")
        return Advance(view.record.slot_id), ""

    def _on_holding(self, view: SlotView) -> _Deed | None:
        gate = gate_for(view, self.gates)
        if gate.passed:
            self._penalties.pop(str(view.record.blueprint), None)
            return Advance(view.record.slot_id), ""
        contribution, limit = view.measurement.contribution, self.config.max_holding_epochs
        if contribution is not None and contribution < self.config.min_contribution:
            return self._prune(view, f"of little use: below {self.config.min_contribution:g} points")
        if view.record.epochs_in_stage >= limit:
            return self._prune(view, f"{gate}, and it has been held for {limit} epochs")
        return None

    def _failing(self, view: SlotView) -> bool:
        if view.record.epochs_in_stage < self.config.failing_epochs or view.improvement is None:
            return False
        return view.improvement < -self.config.failing_points

    def _prune(self, view: SlotView, reason: str) -> _Deed:
        blueprint = view.record.blueprint
        if blueprint in self.config.blueprints:
            self._penalties[blueprint] = self._penalties.get(blueprint, 0.0) + self.config.prune_penalty
        return Prune(view.record.slot_id), reason

    def _germination(self, signals: EpochSignals) -> _Deed | None:
        records = [view.record for view in signals.slots]
        growing = sum(has_seed(record.stage) and record.stage is not Stage.FOSSILIZED for record in records)
        vacant = [record.slot_id for record in records if record.stage is Stage.DORMANT]
        if growing >= self.config.max_growing or not vacant:
            return None
        if not (self._stabilised(signals.losses) and self._on_plateau(signals.accuracies)):
            return None
        blueprint = self._next_blueprint()
        if blueprint is None:
            return None
        config = self.config
        gained = (
            f"less than {config.plateau_points:g} points gained in each of {config.plateau_epochs} epochs"
        )
        return Germinate(vacant[0], blueprint), f"a plateau: {gained}"

    def _stabilised(self, losses: tuple[float, ...]) -> bool:
        """Whether the host has ever been stable for long enough: later noise does not undo it."""
        run = 0
        for before, after in pairwise(losses):
            fall, rise = self.config.stable_fall, self.config.stable_rise
            stable = before > 0.0 and -fall < (after - before) / before < rise
            run = run + 1 if stable else 0
            if run >= self.config.stable_epochs:
                return True
        return False

    def _on_plateau(self, accuracies: tuple[float, ...]) -> bool:
        recent = accuracies[-1 - self.config.plateau_epochs :]
        if len(recent) <= self.config.plateau_epochs:
            return False
        gains = (after - before for before, after in pairwise(recent))
        return all(gain < self.config.plateau_points for gain in gains)

    def _next_blueprint(self) -> str | None:
        names = self.config.blueprints
        for _ in names:
            name = names[self._turn]
            self._turn = (self._turn + 1) % len(names)
            penalty = self._penalties.get(name, 0.0)
            if penalty < self.config.penalty_limit:
                return name
            self._penalties[name] = penalty * self.config.penalty_decay
        return None
