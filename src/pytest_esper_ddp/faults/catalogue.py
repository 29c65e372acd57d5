"""Every kind of fault: which coordinates and arguments it has. Pure; how it is applied stands in its
family's file.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FaultSpec:
    """What a marker may say of one kind; `module` holds the function that applies it."""

    family: str
    coordinates: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


_CALL = ("op", "nth", "tag")

CATALOGUE: dict[str, FaultSpec] = {
    # process: at the n-th matching collective, before it is issued
    "raise": FaultSpec("process", _CALL, ("message",)),
    "exit": FaultSpec("process", _CALL, ("code",)),
    "kill": FaultSpec("process", _CALL),
    "segfault": FaultSpec("process", _CALL),
    "stop": FaultSpec("process", _CALL, ("for_seconds",)),
    "sleep": FaultSpec("process", _CALL, ("seconds",), ("seconds",)),
    # collective: what becomes of the call itself
    "skip": FaultSpec("collective", _CALL),
    # data
    "uneven_loader": FaultSpec("data", ("epoch", "target")),
    # lifecycle of a growing network
    "skip_gate": FaultSpec("lifecycle", ("epoch", "slot")),
    "skip_agreement": FaultSpec("lifecycle", ("epoch",)),
    "germinate_alone": FaultSpec("lifecycle", ("epoch", "slot"), ("blueprint", "decided")),
}
