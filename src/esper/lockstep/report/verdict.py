"""The verdict of those who were there: `verdict.json`, in the folder of their run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from esper.lockstep.errors import LedgerError
from esper.lockstep.proof.finding import PRECEDENCE
from esper.lockstep.record.once import read_once, write_once
from esper.lockstep.report.diagnosis import (
    SCHEMA,
    STATES,
    VERDICTS,
    Diagnosis,
    GuiltyAt,
    RankEnd,
    Report,
    Waiting,
)

NAME = "verdict.json"
_SITE = re.compile(r":[0-9]+$")
_T = TypeVar("_T")


def write_report(run_dir: Path, report: Report) -> bool:
    """Write it as `esper.lockstep.report/1`, whole or not at all; False where there is one already, which
    stays: what is found later may follow from it.

    Raises LedgerError when it can't be written.
    """
    return write_once(run_dir / NAME, report.to_json())


def read_report(run_dir: Path) -> Report | None:
    """The verdict in this folder; None where there is none.

    Raises LedgerError for one that is not legible.
    """
    document = read_once(run_dir / NAME)
    if document is None:
        return None
    try:
        return parsed(document)
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(str(run_dir / NAME), f"is no {SCHEMA}: {error!r}") from error


def parsed(document: dict[str, Any]) -> Report:
    """The report that a document says. Raises KeyError, TypeError or ValueError for one that is none."""
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']!r}")
    report = Report(
        _one_of(VERDICTS)(document["verdict"]),
        tuple(map(_diagnosis, _list(document["diagnoses"]))),
        tuple(map(_end, _list(document["ranks"]))),
    )
    found, ranks = len(report.diagnoses), len(report.ranks)
    fits = {"diverged": found > 0, "inconclusive": True}.get(report.verdict, found == 0)
    if not (fits and ranks):
        raise ValueError(f"{report.verdict} with {found} diagnoses of {ranks} ranks")
    return report


def _diagnosis(document: dict[str, Any]) -> Diagnosis:
    where = _dict(document["guilty_at"])
    guilty = tuple(map(_number, _list(document["guilty"])))
    message = _text(document["message"])
    if not (guilty and where and message) or len(set(guilty)) < len(guilty):
        raise ValueError("nobody is guilty, or nothing is said")
    seconds = document["seconds"]
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds {seconds!r}")
    return Diagnosis(
        kind=_one_of(PRECEDENCE)(document["kind"]),
        guilty=guilty,
        group=_text(document["group"]),
        sequence=_or_none(_number, document["sequence"]),
        waiting=_waiting(_dict(document["waiting"])),
        guilty_at={int(rank): _guilty_at(_dict(at)) for rank, at in where.items()},
        seconds=float(seconds),
        message=message,
    )


def _waiting(document: dict[str, Any]) -> Waiting:
    shape = _or_none(_list, document["shape"])
    return Waiting(
        tuple(map(_number, _list(document["ranks"]))),
        _or_none(_text, document["op"]),
        _or_none(_text, document["reduce_op"]),
        _or_none(_text, document["dtype"]),
        None if shape is None else tuple(map(_number, shape)),
        _or_none(_site, document["site"]),
        _or_none(_text, document["tag"]),
    )


def _guilty_at(document: dict[str, Any]) -> GuiltyAt:
    op, tag, detail = (_or_none(_text, document[name]) for name in ("op", "tag", "detail"))
    return GuiltyAt(_one_of(STATES)(document["state"]), op, _or_none(_site, document["site"]), tag, detail)


def _end(document: dict[str, Any]) -> RankEnd:
    last = _dict(document["last"])
    return RankEnd(
        _number(document["rank"]),
        _or_none(_number, document["exit"]),
        _or_none(_number, document["signal"]),
        {"op": _or_none(_text, last["op"]), "site": _or_none(_site, last["site"])},
    )


def _or_none(read: Callable[[Any], _T], value: object) -> _T | None:
    return None if value is None else read(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _site(value: object) -> str:
    if not _SITE.search(_text(value)):
        raise ValueError(f"{value!r} is no file:line")
    return str(value)


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no integer >= 0")
    return value


def _one_of(words: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return read


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _dict(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    return value
