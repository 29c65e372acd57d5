"""`run.json` and `verdict.json`: whole or not there, the first writer's, and refused with a sentence."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from esper.lockstep.errors import LedgerError
from esper.lockstep.record.manifest import Manifest, Waits
from esper.lockstep.report.diagnosis import Diagnosis, GuiltyAt, RankEnd, Report, Waiting
from esper.lockstep.report.verdict import read_report, write_report
from tests.esper.lockstep.launching import SCHEMA

MANIFEST = Manifest("0f" * 16, 4, 1.5, Waits(300.0, 300.0, 600.0), {0: "a", 1: "a", 2: "b", 3: "b"})
REPORT = Report(
    "diverged",
    (
        Diagnosis(
            "missing",
            (2,),
            "default",
            17,
            Waiting((0, 1, 3), "all_reduce", "SUM", "float32", (4, 2), "/a.py:3", None),
            {2: GuiltyAt("in_collective", "broadcast", "/b.py:4", "gate", None)},
            0.25,
            "rank 2 never entered all_reduce #17",
        ),
    ),
    tuple(RankEnd(rank, 0 if rank else None, None, {"op": None, "site": "/a.py:1"}) for rank in range(4)),
)


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    assert (Manifest.read(tmp_path), read_report(tmp_path)) == (None, None)
    assert MANIFEST.write(tmp_path)
    assert write_report(tmp_path, REPORT)
    assert (Manifest.read(tmp_path), read_report(tmp_path)) == (MANIFEST, REPORT)
    jsonschema.validate(json.loads((tmp_path / "verdict.json").read_text()), SCHEMA)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o600, 0o600]


@pytest.mark.parametrize("links", [True, False])
def test_the_first_writer_decides_and_nothing_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def no_links(*arguments: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "link", no_links)
    assert MANIFEST.write(tmp_path)
    assert not Manifest("", 1, 0.0, Waits(1.0, 1.0, 1.0), {}).write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_one_of_many_who_write_at_once_is_told_that_it_was_first(tmp_path: Path) -> None:
    together, told = threading.Barrier(8), []

    def write(number: int) -> None:
        together.wait()
        told.append((Manifest("", number + 1, 0.0, Waits(1.0, 1.0, 1.0), {}).write(tmp_path), number + 1))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    manifest = Manifest.read(tmp_path)
    assert manifest is not None
    assert [number for first, number in told if first] == [manifest.world_size]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    for write in (MANIFEST.write, lambda folder: write_report(folder, REPORT)):
        with pytest.raises(LedgerError, match="No such file or directory"):
            write(tmp_path / "gone")


@pytest.mark.parametrize("name", ["run.json", "verdict.json"])
def test_cut_at_any_byte_it_is_refused(tmp_path: Path, name: str) -> None:
    MANIFEST.write(tmp_path)
    write_report(tmp_path, REPORT)
    whole = (tmp_path / name).read_bytes()
    read = Manifest.read if name == "run.json" else read_report
    for size in range(len(whole) - 1):  # without the last line feed it is whole
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(LedgerError, match="is empty" if not size else "cut off at byte"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "esper.lockstep.run/2"}, "is no esper.lockstep.run/1: .*run/2"),
        ({"world_size": 0}, "world_size 0"),
        ({"world_size": True}, "world_size True"),
        ({"run": "xyz"}, "run 'xyz'"),
        ({"started": None}, "seconds None"),
        ({"patience": {"running": 1.0}}, "stopped"),
        ({"patience": {"running": -1.0, "stopped": 1.0, "compiling": 1.0}}, "seconds -1.0"),
        ({"hosts": {"x": "a"}}, "'x'"),
        ({"hosts": [1]}, "hosts"),
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LedgerError, match=said):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report.update(verdict="well"),
        lambda report: report.update(diagnoses=[]),
        lambda report: report.update(ranks=[]),
        lambda report: report.update(verdict="clean"),
        lambda report: report["diagnoses"][0].update(kind="odd"),
        lambda report: report["diagnoses"][0].update(guilty=[]),
        lambda report: report["diagnoses"][0].update(guilty=[-1]),
        lambda report: report["diagnoses"][0].update(message=""),
        lambda report: report["diagnoses"][0].update(seconds=float("inf")),
        lambda report: report["diagnoses"][0]["guilty_at"]["2"].update(state="odd"),
        lambda report: report["diagnoses"][0]["waiting"].update(site="no line"),
        lambda report: report["ranks"][0].update(last=[]),
        lambda report: report["ranks"][0].pop("exit"),
    ],
)
def test_a_verdict_of_another_form_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    document = REPORT.to_json()
    change(document)
    (tmp_path / "verdict.json").write_text(json.dumps(document))
    with pytest.raises(LedgerError, match=r"verdict\.json: is no esper\.lockstep\.report/1"):
        read_report(tmp_path)


def test_what_is_no_file_of_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    os.mkfifo(path)
    with pytest.raises(LedgerError, match="is empty"):  # and it is not waited for
        Manifest.read(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(LedgerError, match="can't be read: Is a directory"):
        Manifest.read(tmp_path)
    path.rmdir()
    for text, said in (("[1]", "holds no JSON object"), ("[" * 100_000, "no JSON"), ("\udc80", "no JSON")):
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(LedgerError, match=said):
            Manifest.read(tmp_path)
