"""From an item's markers to its scenario; whatever is wrong with them is said at collection."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from esper.lockstep.proof.finding import PRECEDENCE
from esper.lockstep.report.diagnosis import COMPARED
from pytest_esper_ddp.declared import DECLARATIONS
from pytest_esper_ddp.errors import MarkerError
from pytest_esper_ddp.faults.arguments import check_arguments, check_seconds
from pytest_esper_ddp.faults.catalogue import CATALOGUE, OPS, FaultSpec
from pytest_esper_ddp.options import BACKENDS, ISOLATIONS, Settings
from pytest_esper_ddp.scenario import Expectation, Fault, Scenario

LOCKSTEP_MODES = ("enforce", "observe", "off")
# What the program under test is to do for itself; lockstep only watches then.
BY_PROGRAM = ("lifecycle", "deadline", "monitored_barrier", "watchdog")
# Kinds that compare calls, whose fields have fixed names, and those that compare tensors and values.
OF_CALLS, OF_VALUES = ("order", "mismatch", "group", "peer"), ("model", "drift")
# Families of faults that act when a collective is seen.
AT_CALLS = ("process", "collective")
KINDS = PRECEDENCE + BY_PROGRAM

_EMPTY = inspect.Parameter.empty


def _signature(
    first: str, default: object, /, *required: str, rest: bool, **optional: object
) -> inspect.Signature:
    parameters = [inspect.Parameter(first, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in required]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
        for name, value in optional.items()
    ]
    if rest:
        parameters.append(inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


# What each marker accepts: binding its arguments to these finds what does not fit.
_PLACES = dict.fromkeys(("nth", "op", "tag", "epoch", "step", "slot", "target"))
_OUTCOME = dict.fromkeys(("guilty", "op", "tag", "field", "raises", "within"))
_WORLD = {
    "backend": None,
    "timeout": None,
    "isolation": None,
    "init": True,
    "lockstep": None,
    "patience": 2.0,
}
_SIGNATURES = {
    "ddp": _signature("world_size", None, rest=False, **_WORLD),
    "ddp_fault": _signature("kind", _EMPTY, "rank", rest=True, **_PLACES),
    "ddp_expect": _signature("kind", _EMPTY, rest=False, **_OUTCOME),
}


def scenario_of(item: pytest.Item, settings: Settings) -> Scenario:
    """The plan that the item's markers and the session's options make. Raises MarkerError."""
    marker = item.get_closest_marker("ddp")
    assert marker is not None
    given = _bind(marker, "ddp")
    size = _world_size(item, given["world_size"], settings)
    expectation = _expectation(item.iter_markers("ddp_expect"), size)
    by_program = expectation is not None and expectation.kind in BY_PROGRAM
    lockstep = _one_of(
        "ddp", "lockstep", _or(given["lockstep"], "observe" if by_program else "enforce"), LOCKSTEP_MODES
    )
    if expectation is not None and by_program and lockstep == "enforce":
        raise MarkerError(
            f"ddp_expect({expectation.kind!r}) waits for the program's own end, which "
            "ddp(lockstep='enforce') would come before: leave lockstep out, or give 'observe'"
        )
    if expectation is not None and not by_program and lockstep == "off":
        raise MarkerError(
            f"ddp_expect({expectation.kind!r}) needs lockstep, and ddp(lockstep='off') turns it off"
        )
    faults = tuple(_fault_of(one, size) for one in reversed(list(item.iter_markers("ddp_fault"))))
    blind = [fault for fault in faults if lockstep == "off" and CATALOGUE[fault.kind].family in AT_CALLS]
    if blind:
        raise MarkerError(
            f"ddp_fault({blind[0].kind!r}) acts at a collective, and ddp(lockstep='off') sees none: "
            "give 'observe'"
        )
    return Scenario(
        world_size=size,
        backend=_one_of("ddp", "backend", _or(given["backend"], settings.backend), BACKENDS),
        timeout=check_seconds("ddp", "timeout", _or(given["timeout"], settings.timeout)),
        isolation=_one_of("ddp", "isolation", _or(given["isolation"], settings.isolation), ISOLATIONS),
        init=_truth("ddp", "init", given["init"]),
        lockstep=lockstep,
        patience=check_seconds("ddp", "patience", given["patience"]),
        faults=faults,
        expectation=expectation,
    )


def _or(given: object, default: object) -> object:
    """What was given, also where it is false: 0 seconds are an error and not the default."""
    return default if given is None else given


# By a mark's id, since hashes take 1 for True; the mark is kept, or another could come to have its id.
_bound: dict[int, tuple[pytest.Mark, dict[str, Any]]] = {}
_MOST_BOUND = 4096


def _bind(marker: pytest.Mark, name: str) -> dict[str, Any]:
    """The arguments by name. Binding takes 50 us, and all items of a parametrised test have one mark."""
    known = _bound.get(id(marker))
    if known is None:
        if len(_bound) >= _MOST_BOUND:
            _bound.clear()
        known = _bound[id(marker)] = marker, _newly_bound(marker, name)
    return dict(known[1])


def _newly_bound(marker: pytest.Mark, name: str) -> dict[str, Any]:
    try:
        bound = _SIGNATURES[name].bind(*marker.args, **marker.kwargs)
    except TypeError as error:
        declared = next(text for text in DECLARATIONS if text.startswith(f"{name}("))
        raise MarkerError(
            f"{_written(name, marker)}: {error}; accepted: {declared.partition(': ')[0]}"
        ) from None
    bound.apply_defaults()
    return dict(bound.arguments)


def _written(name: str, marker: pytest.Mark) -> str:
    arguments = [repr(value) for value in marker.args] + [
        f"{key}={value!r}" for key, value in marker.kwargs.items()
    ]
    return f"{name}({', '.join(arguments)})"


def _world_size(item: pytest.Item, given: object, settings: Settings) -> int:
    callspec = getattr(item, "callspec", None)
    if given is None and callspec is not None and "ddp_world_size" in callspec.params:
        given = callspec.params["ddp_world_size"]
    size = settings.world_sizes[0] if given is None else given
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise MarkerError(f"ddp: world_size={size!r} must be an integer >= 2 (one rank cannot diverge)")
    return size


def _fault_of(marker: pytest.Mark, size: int) -> Fault:
    given = _bind(marker, "ddp_fault")
    kind, written = given["kind"], _written("ddp_fault", marker)
    spec = CATALOGUE.get(kind) if isinstance(kind, str) else None
    if spec is None:
        raise MarkerError(f"{written}: unknown kind {kind!r}; known: {', '.join(sorted(CATALOGUE))}")
    _rank(written, "rank", given["rank"], size)
    for name, minimum in (("nth", 1), ("epoch", 0), ("step", 0)):
        value = given[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < minimum):
            raise MarkerError(f"{written}: {name}={value!r} must be an integer >= {minimum}")
    _texts(written, given, "op", "tag", "slot", "target")
    if given["target"] is not None and not all(given["target"].partition(":")):
        raise MarkerError(f"{written}: target={given['target']!r} must be like 'package.module:Class.method'")
    _coordinates(written, spec, given)
    _op(written, spec, given)
    check_arguments(written, kind, given["arguments"])
    return Fault(**given)


def _coordinates(written: str, spec: FaultSpec, given: Mapping[str, Any]) -> None:
    """A coordinate that the kind does not look at would be ignored without a word: refuse it, and wrong
    arguments.
    """
    for name in ("nth", "op", "tag", "epoch", "step", "slot", "target"):
        if given[name] is not None and name not in spec.coordinates:
            accepted = ", ".join(spec.coordinates) or "none"
            raise MarkerError(f"{written}: {given['kind']} takes no {name}; coordinates it has: {accepted}")
    for name in spec.required:
        if given.get(name) is None and name not in given["arguments"]:
            raise MarkerError(f"{written}: {given['kind']} needs {name}")
    unknown = sorted(set(given["arguments"]) - set(spec.arguments))
    if unknown:
        accepted = ", ".join(sorted(spec.arguments)) or "none"
        raise MarkerError(f"{written}: unknown argument {unknown[0]}; {given['kind']} accepts: {accepted}")


def _op(written: str, spec: FaultSpec, given: Mapping[str, Any]) -> None:
    op, kind = given["op"], given["kind"]
    if op is not None and op not in OPS:
        raise MarkerError(f"{written}: op={op!r} is no collective; known: {', '.join(OPS)}")
    if op is not None and op not in spec.ops:
        raise MarkerError(f"{written}: {kind} can't be done to {op}; it can to: {', '.join(spec.ops)}")


def _texts(written: str, given: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if given[name] is not None and not isinstance(given[name], str):
            raise MarkerError(f"{written}: {name}={given[name]!r} must be text")


def _expectation(markers: Iterable[pytest.Mark], size: int) -> Expectation | None:
    found = list(markers)
    if not found:
        return None
    if len(found) > 1:
        raise MarkerError(f"{len(found)} ddp_expect markers: a test has one outcome; give one")
    given = _bind(found[0], "ddp_expect")
    written = _written("ddp_expect", found[0])
    if given["kind"] not in KINDS:
        raise MarkerError(f"{written}: unknown kind {given['kind']!r}; known: {', '.join(KINDS)}")
    _texts(written, given, "op", "tag", "field")
    _field(written, given["kind"], given["field"])
    guilty = given["guilty"]
    if guilty is not None:
        if not isinstance(guilty, list | tuple) or not guilty:
            raise MarkerError(f"{written}: guilty={guilty!r} must be a list of ranks, like [2]")
        for rank in guilty:
            _rank(written, "guilty", rank, size)
        guilty = tuple(sorted(guilty))
    if given["within"] is not None:
        check_seconds(written, "within", given["within"])
    _check_raises(written, given["raises"], size)
    return Expectation(**{**given, "guilty": guilty})


def _field(written: str, kind: str, field: str | None) -> None:
    if field is None or kind in OF_VALUES + BY_PROGRAM:
        return
    if kind not in OF_CALLS:
        comparing = ", ".join(OF_CALLS + OF_VALUES + BY_PROGRAM)
        raise MarkerError(
            f"{written}: field={field!r}: {kind} compares nothing; kinds with a field: {comparing}"
        )
    if field not in COMPARED:
        raise MarkerError(
            f"{written}: field={field!r} is nothing that calls are compared by; known: {', '.join(COMPARED)}"
        )


def _check_raises(written: str, raises: object, size: int) -> None:
    if raises is None:
        return
    if raises == {}:
        raise MarkerError(f"{written}: raises={{}} names no rank; leave it out, or give an exception class")
    for rank, error in raises.items() if isinstance(raises, dict) else [(None, raises)]:
        if rank is not None:
            _rank(written, "raises", rank, size)
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise MarkerError(
                f"{written}: raises={error!r} must be an exception class, or a dict of rank and class"
            )


def _rank(written: str, name: str, value: object, size: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
        raise MarkerError(f"{written}: {name}={value!r} must be a rank of this world, 0 to {size - 1}")


def _one_of(written: str, name: str, value: object, accepted: tuple[str, ...]) -> str:
    if value not in accepted:
        raise MarkerError(f"{written}: {name}={value!r} must be one of {', '.join(map(repr, accepted))}")
    return str(value)


def _truth(written: str, name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise MarkerError(f"{written}: {name}={value!r} must be True or False")
    return value
