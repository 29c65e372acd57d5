"""What goes wrong between ranks, or would."""

from collections.abc import Sequence

from esper.errors.base import EsperError, listed
from esper.lockstep import DivergenceError, FieldDifference


class UnknownBackend(EsperError):
    """A process group that runs on something else than the agreement has been held against."""

    def __init__(self, backend: str, known: tuple[str, ...]) -> None:
        super().__init__(backend, known)
        self.backend = backend
        self.known = known

    def __str__(self) -> str:
        known = " or ".join(self.known)
        return f"a process group of backend {self.backend!r} is not accepted: must be of {known}"


class CollectiveInLoader(EsperError):
    """Batches are to be joined, but fetching one communicates: `issued` collectives, for that step."""

    def __init__(self, epoch: int, step: int, issued: int) -> None:
        super().__init__(epoch, step, issued)
        self.epoch = epoch
        self.step = step
        self.issued = issued

    def __str__(self) -> str:
        return (
            f"fetching the batch of step {self.step} of epoch {self.epoch} issued {self.issued} collectives, "
            "which a rank without a batch would not take part in: loaders=join is not accepted with such a "
            "loader, truncate and error are"
        )


class CheckpointNotWritten(EsperError):
    """The rank that writes checkpoints could not; `reason` is its error."""

    def __init__(self, path: str, rank: int, reason: str) -> None:
        super().__init__(path, rank, reason)
        self.path = path
        self.rank = rank
        self.reason = reason

    def __str__(self) -> str:
        return f"checkpoint {self.path} was not written: on rank {self.rank} {self.reason}"


class NotReplicated(EsperError):
    """Parameters learn whose gradients nothing averages over ranks: each rank's would go its own way."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.names = names

    def __str__(self) -> str:
        return (
            f"{', '.join(self.names)}: learns, but the replicated model was made before it did; replicate "
            "the model anew whenever what learns changes"
        )


class CounterfactualOnReplica(EsperError):
    """A counterfactual was asked of the replicated model, whose forward pass may communicate."""

    def __init__(self, slots: tuple[str, ...]) -> None:
        super().__init__(slots)
        self.slots = slots

    def __str__(self) -> str:
        return (
            f"alpha_overrides for {listed(self.slots)} were given to the replicated model, where a rank "
            "that asks alone would wait for the others: ask the bare one, which is its .module"
        )


class LifecycleDivergence(DivergenceError):
    """Ranks that must be alike are not; `fields` holds each value that differs, with its rank."""

    def __init__(self, message: str, *, guilty: Sequence[int], fields: Sequence[FieldDifference]) -> None:
        super().__init__(message, kind="lifecycle", guilty=guilty, fields=fields)


class LoaderMismatch(DivergenceError):
    """Ranks announced different numbers of batches for the next epoch."""

    def __init__(self, message: str, *, guilty: Sequence[int], fields: Sequence[FieldDifference]) -> None:
        super().__init__(message, kind="lifecycle", guilty=guilty, fields=fields)


class AgreementDeadline(DivergenceError):
    """Ranks did not come to an exchange in time; `guilty` are those that stayed away."""

    def __init__(self, message: str, *, guilty: Sequence[int]) -> None:
        super().__init__(message, kind="deadline", guilty=guilty)
