"""Every kind of fault: which coordinates and arguments it has. Pure; how it is applied stands in its
family's file.
"""

from __future__ import annotations

from dataclasses import dataclass

from esper.lockstep.rank.schemas import NAMES

OPS = tuple(sorted(set(NAMES.values())))


@dataclass(frozen=True)
class FaultSpec:
    """What a marker may say of one kind; `family` is the module that applies it, `ops` what it can be done
    to.
    """

    family: str
    coordinates: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    ops: tuple[str, ...] = OPS


_CALL = ("op", "nth", "tag")
_TARGET = ("target", "nth")
_SLOT = ("epoch", "slot")

_REDUCING = ("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_coalesced")
_ROOTED = ("broadcast", "gather", "reduce", "scatter")
_WITH_TENSORS = tuple(op for op in OPS if op not in ("barrier", "monitored_barrier"))
# Each rank of an all_to_all may have its own sizes, and the lists of them would have to be changed, too.
_OF_ONE_SIZE = tuple(op for op in _WITH_TENSORS if op != "all_to_all")

CATALOGUE: dict[str, FaultSpec] = {
    # process: at the n-th matching collective, before it is issued
    "raise": FaultSpec("process", _CALL, ("message",)),
    "exit": FaultSpec("process", _CALL, ("code",)),
    "kill": FaultSpec("process", _CALL),
    "segfault": FaultSpec("process", _CALL),
    "stop": FaultSpec("process", _CALL, ("for_seconds",)),
    "sleep": FaultSpec("process", _CALL, ("seconds",), ("seconds",)),
    "busy": FaultSpec("process", _CALL, ("seconds",), ("seconds",)),
    "out_of_memory": FaultSpec("process", _CALL, ("allocator",)),
    "slow": FaultSpec("process", _CALL, ("seconds",), ("seconds",)),
    # collective: what becomes of the call itself
    "skip": FaultSpec("collective", _CALL),
    "duplicate": FaultSpec("collective", _CALL),
    "swap": FaultSpec("collective", _CALL),
    "shape": FaultSpec("collective", _CALL, ops=_OF_ONE_SIZE),
    "dtype": FaultSpec("collective", _CALL, ops=_WITH_TENSORS),
    "reduce_op": FaultSpec("collective", _CALL, ops=_REDUCING),
    "root": FaultSpec("collective", _CALL, ops=_ROOTED),
    "corrupt": FaultSpec("collective", _CALL, ("where",), ops=_WITH_TENSORS),
    "delay": FaultSpec("collective", _CALL, ("seconds",), ("seconds",)),
    # call: any function of any code
    "skip_call": FaultSpec("call", _TARGET, ("value",), ("target",)),
    "repeat_call": FaultSpec("call", _TARGET, (), ("target",)),
    "raise_in": FaultSpec("call", _TARGET, ("message",), ("target",)),
    "delay_in": FaultSpec("call", _TARGET, ("seconds",), ("target", "seconds")),
    "change_argument": FaultSpec("call", _TARGET, ("name", "index", "value"), ("target", "value")),
    "change_result": FaultSpec("call", _TARGET, ("value",), ("target", "value")),
    # data
    "uneven_loader": FaultSpec("data", ("epoch", "target")),
    "nan_batch": FaultSpec("data", ("epoch", "target")),
    "other_order": FaultSpec("data", ("epoch", "target")),
    "worker_death": FaultSpec("data", ("epoch", "target")),
    # lifecycle of a growing network
    "skip_gate": FaultSpec("lifecycle", _SLOT),
    "skip_agreement": FaultSpec("lifecycle", ("epoch",)),
    "slot_order": FaultSpec("lifecycle", ("epoch",)),
    "extra_tick": FaultSpec("lifecycle", ("epoch",)),
    "missed_tick": FaultSpec("lifecycle", ("epoch",)),
    "germinate_alone": FaultSpec("lifecycle", _SLOT, ("blueprint", "decided", "after")),
    "other_blueprint": FaultSpec("lifecycle", _SLOT, ("blueprint",)),
    "prune_alone": FaultSpec("lifecycle", _SLOT, ("decided", "after")),
    "panic_alone": FaultSpec("lifecycle", ("epoch",)),
    "override_alone": FaultSpec("lifecycle", _SLOT),
    "compile_fallback": FaultSpec("lifecycle", ("epoch",)),
    "rng_shift": FaultSpec("lifecycle", ("epoch",)),
    "optimizer_misses_seed": FaultSpec("lifecycle", ("epoch",)),
    "wrapper_not_rebuilt": FaultSpec("lifecycle", ("epoch",)),
    "restore_alone": FaultSpec("lifecycle", ("epoch",)),
    "other_thresholds": FaultSpec("lifecycle", ("epoch",)),
    "local_verdict": FaultSpec("lifecycle", ("epoch",)),
}
