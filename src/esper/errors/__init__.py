"""Everything `esper` raises on purpose, as types with fields.

Each class hands its fields to `Exception.__init__` in order, so `args` rebuilds it: errors cross process
borders by pickle, and a rank's error has to arrive in the parent as what it was. The text is made from the
fields when asked for.
"""

from esper.errors.base import EsperError, listed
from esper.errors.ranks import (
    AgreementDeadline,
    CheckpointNotWritten,
    CollectiveInLoader,
    CounterfactualOnReplica,
    LifecycleDivergence,
    LoaderMismatch,
    NotReplicated,
    UnknownBackend,
)

__all__ = [
    "AgreementDeadline",
    "AlphaNotHolding",
    "BadOverride",
    "BadSlotPoint",
    "BadState",
    "CheckpointNotWritten",
    "CheckpointRefused",
    "CollectiveInLoader",
    "ConfigError",
    "CounterfactualOnReplica",
    "DataError",
    "EsperError",
    "FeatureMismatch",
    "ForcedAlpha",
    "FossilPruned",
    "GrowthFailed",
    "IllegalTransition",
    "LifecycleDivergence",
    "LoaderMismatch",
    "NoCheckpoint",
    "NotReplicated",
    "OverrideInTraining",
    "SeedRefused",
    "ShapeMismatch",
    "SlotEmpty",
    "SlotOccupied",
    "TrainingDiverged",
    "UnguardedStage",
    "UnknownBackend",
    "UnknownBlueprint",
    "UnknownBlueprintOption",
    "UnknownSlot",
]


class ConfigError(EsperError):
    """A configured value is outside of what is accepted; `key` is its dotted path."""

    def __init__(self, key: str, value: object, accepted: str) -> None:
        super().__init__(key, value, accepted)
        self.key = key
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        return f"{self.key}={self.value!r} is not accepted: must be {self.accepted}"


class UnknownSlot(EsperError):
    """A slot id that the model does not have."""

    def __init__(self, slot_id: str, known: tuple[str, ...]) -> None:
        super().__init__(slot_id, known)
        self.slot_id = slot_id
        self.known = known

    def __str__(self) -> str:
        return f"no slot {self.slot_id!r} in this model; its slots are: {listed(self.known)}"


class UnknownBlueprint(EsperError):
    """A blueprint name that is not registered for this topology."""

    def __init__(self, topology: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(topology, name, known)
        self.topology = topology
        self.name = name
        self.known = known

    def __str__(self) -> str:
        return f"no blueprint {self.name!r} for topology {self.topology!r}; those are: {listed(self.known)}"


class UnknownBlueprintOption(EsperError):
    """An option that the blueprint does not take."""

    def __init__(self, topology: str, name: str, option: str, known: tuple[str, ...]) -> None:
        super().__init__(topology, name, option, known)
        self.topology = topology
        self.name = name
        self.option = option
        self.known = known

    def __str__(self) -> str:
        return (
            f"blueprint {self.name!r} for topology {self.topology!r} has no option {self.option!r}; "
            f"its options are: {listed(self.known)}"
        )


class SlotOccupied(EsperError):
    """Germination was asked of a slot that holds a seed; `stage` is the name of the seed's stage."""

    def __init__(self, slot_id: str, stage: str, blueprint: str) -> None:
        super().__init__(slot_id, stage, blueprint)
        self.slot_id = slot_id
        self.stage = stage
        self.blueprint = blueprint

    def __str__(self) -> str:
        return (
            f"slot {self.slot_id!r} already holds a {self.blueprint!r} seed in stage {self.stage}: "
            "germinate only in a DORMANT slot"
        )


class SlotEmpty(EsperError):
    """An operation on a seed was asked of a slot without one."""

    def __init__(self, slot_id: str, operation: str) -> None:
        super().__init__(slot_id, operation)
        self.slot_id = slot_id
        self.operation = operation

    def __str__(self) -> str:
        return f"slot {self.slot_id!r} is empty (DORMANT): germinate a seed before you {self.operation} it"


class IllegalTransition(EsperError):
    """A step that the transition table, or a ramp under way, does not allow; stages are given by name."""

    def __init__(self, slot_id: str, stage: str, operation: str, accepted: str) -> None:
        super().__init__(slot_id, stage, operation, accepted)
        self.slot_id = slot_id
        self.stage = stage
        self.operation = operation
        self.accepted = accepted

    def __str__(self) -> str:
        return f"slot {self.slot_id!r} in stage {self.stage} cannot {self.operation}: {self.accepted}"


class FossilPruned(EsperError):
    """A prune was asked of a fossilised seed, which is kept for good."""

    def __init__(self, slot_id: str, blueprint: str) -> None:
        super().__init__(slot_id, blueprint)
        self.slot_id = slot_id
        self.blueprint = blueprint

    def __str__(self) -> str:
        return f"slot {self.slot_id!r} holds a FOSSILIZED {self.blueprint!r} seed, which cannot be pruned"


class UnguardedStage(EsperError):
    """A gate was asked for a stage that no gate guards; stages are given by name."""

    def __init__(self, stage: str, guarded: tuple[str, ...]) -> None:
        super().__init__(stage, guarded)
        self.stage = stage
        self.guarded = guarded

    def __str__(self) -> str:
        return f"no gate guards stage {self.stage}; guarded are: {listed(self.guarded)}"


class AlphaNotHolding(EsperError):
    """A new alpha target was set while a ramp was under way."""

    def __init__(self, alpha: float, target: float, ticks_left: int) -> None:
        super().__init__(alpha, target, ticks_left)
        self.alpha = alpha
        self.target = target
        self.ticks_left = ticks_left

    def __str__(self) -> str:
        return (
            f"alpha is on its way ({self.alpha:.6g} -> {self.target:.6g}, {self.ticks_left} ticks left): "
            "retarget only when it holds"
        )


class ShapeMismatch(EsperError):
    """A seed changed the shape of its input; `where` names the slot or the blueprint."""

    def __init__(self, where: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
        super().__init__(where, expected, got)
        self.where = where
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return f"{self.where}: output shape {self.got}, but a seed must keep its input's, {self.expected}"


class SeedRefused(EsperError):
    """A seed that cannot be run on features of its slot's shape; `problem` is its own error."""

    def __init__(self, where: str, given: tuple[int, ...], problem: str) -> None:
        super().__init__(where, given, problem)
        self.where = where
        self.given = given
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.where}: the seed cannot be run on features of shape {self.given}: {self.problem}"


class BadSlotPoint(EsperError):
    """A submodule after which no slot can go; `known` are names that could."""

    def __init__(self, name: str, problem: str, known: tuple[str, ...]) -> None:
        super().__init__(name, problem, known)
        self.name = name
        self.problem = problem
        self.known = known

    def __str__(self) -> str:
        return f"no slot can go after {self.name!r}: it {self.problem}; looked among: {listed(self.known)}"


class FeatureMismatch(EsperError):
    """Features at a slot that are not of its topology or not of its size; `letters` name the axes."""

    def __init__(self, where: str, letters: str, channels: int, got: tuple[int, ...]) -> None:
        super().__init__(where, letters, channels, got)
        self.where = where
        self.letters = letters
        self.channels = channels
        self.got = got

    def __str__(self) -> str:
        axes = ", ".join(f"C={self.channels}" if letter == "C" else letter for letter in self.letters)
        return f"{self.where}: features of shape {self.got}, but this slot was made for ({axes})"


class ForcedAlpha(EsperError):
    """A mutating way to set alpha was asked for; `replacement` is the call that answers without mutation."""

    def __init__(self, name: str, replacement: str) -> None:
        super().__init__(name, replacement)
        self.name = name
        self.replacement = replacement

    def __str__(self) -> str:
        return f"there is no {self.name}: it would change the model for everyone; use {self.replacement}"


class BadOverride(EsperError):
    """An alpha override that cannot be evaluated."""

    def __init__(self, slot_id: str, value: str, accepted: str) -> None:
        super().__init__(slot_id, value, accepted)
        self.slot_id = slot_id
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        return f"alpha_overrides[{self.slot_id!r}] = {self.value} is not accepted: must be {self.accepted}"


class OverrideInTraining(EsperError):
    """A counterfactual was asked of a model in training mode; `module` is the first module found in it."""

    def __init__(self, module: str) -> None:
        super().__init__(module)
        self.module = module

    def __str__(self) -> str:
        return (
            f"alpha_overrides need eval mode, but {self.module!r} is in training mode, where a forward pass "
            "may change statistics or draw random numbers: call model.eval() first"
        )


class BadState(EsperError):
    """Saved state that cannot be restored; `where` names the object and the key."""

    def __init__(self, where: str, value: object, accepted: str) -> None:
        super().__init__(where, value, accepted)
        self.where = where
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        return f"cannot restore {self.where} from {self.value!r}: must be {self.accepted}"


class GrowthFailed(EsperError):
    """No rank could prepare an action (germinate, advance, prune), so no rank did it; `reason` is the
    error.
    """

    def __init__(self, slot_id: str, action: str, reason: str) -> None:
        super().__init__(slot_id, action, reason)
        self.slot_id = slot_id
        self.action = action
        self.reason = reason

    def __str__(self) -> str:
        return f"no rank could {self.action} in slot {self.slot_id!r}: {self.reason}"


class TrainingDiverged(EsperError):
    """Rolling back does not help any more; `rollbacks` were made in a row, of at most `limit`."""

    def __init__(self, epoch: int, loss: float, rollbacks: int, limit: int) -> None:
        super().__init__(epoch, loss, rollbacks, limit)
        self.epoch = epoch
        self.loss = loss
        self.rollbacks = rollbacks
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch} went wrong (loss {self.loss:g}) after {self.rollbacks} rollbacks in a row, "
            f"of which governor.max_rollbacks allows {self.limit}: lower optimizer.lr, or look at the data"
        )


class CheckpointRefused(EsperError):
    """A checkpoint that cannot be gone on from; nothing of it was loaded."""

    def __init__(self, path: str, problem: str, accepted: str) -> None:
        super().__init__(path, problem, accepted)
        self.path = path
        self.problem = problem
        self.accepted = accepted

    def __str__(self) -> str:
        return f"checkpoint {self.path} is refused: {self.problem}; accepted is {self.accepted}"


class NoCheckpoint(EsperError):
    """No checkpoint in a folder can be gone on from; `refused` says why, one sentence each."""

    def __init__(self, folder: str, refused: tuple[str, ...]) -> None:
        super().__init__(folder, refused)
        self.folder = folder
        self.refused = refused

    def __str__(self) -> str:
        return f"no usable checkpoint in {self.folder}" + "".join(f"; {each}" for each in self.refused)


class DataError(EsperError):
    """Training data that is not there or cannot be used; `fix` says what would help."""

    def __init__(self, source: str, problem: str, fix: str) -> None:
        super().__init__(source, problem, fix)
        self.source = source
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}; {self.fix}"
