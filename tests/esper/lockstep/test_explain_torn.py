"""Files that are cut, damaged, missing or another run's: never an exception, and never a wrong name."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.lockstep.postmortem.explain import STATUS, Explanation, explain
from esper.lockstep.record.ledger import HEADER_SIZE, RECORD_SIZE
from esper.lockstep.report.verdict import write_report
from tests.esper.lockstep.fleet import Fleet, fleet
from tests.esper.lockstep.fleet_stories import DIVERGED, SIZE, Story, drifted, elsewhere, late_and_silent
from tests.esper.lockstep.launching import SCHEMA
from tests.esper.lockstep.test_explain import answer

CAPACITY = 16
VALID = jsonschema.Draft202012Validator(SCHEMA)


def ended_well(ranks: Fleet) -> None:
    ranks.together(3)
    ranks.over()


def killed_at_once(ranks: Fleet) -> None:
    ranks.together(30)
    ranks.call(1)
    ranks.beat()


def judged(ranks: Fleet) -> None:
    elsewhere(ranks)
    write_report(ranks.run_dir, explain(ranks.run_dir).report)


STORIES: tuple[Story, ...] = (*DIVERGED, ended_well, killed_at_once, judged)


@functools.cache
def files_of(story: Story) -> Mapping[str, bytes]:
    """What the ranks have left, by name."""
    with tempfile.TemporaryDirectory() as folder:
        with fleet(Path(folder), SIZE.get(story, 4), capacity=CAPACITY) as ranks:
            story(ranks)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@contextmanager
def laid_out(files: Mapping[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        yield Path(folder)


def explained(files: Mapping[str, bytes]) -> Explanation:
    with laid_out(files) as folder:
        found = explain(folder)
    assert found.report.verdict in STATUS
    VALID.validate(json.loads(json.dumps(found.report.to_json())))
    return found


@functools.cache
def whole(story: Story) -> tuple[str, str | None, tuple[int, ...]]:
    found = explained(files_of(story))
    assert "not all is there" not in found.text
    return answer(found)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Story, dict[str, bytes]]:
    """A run of which up to three files end somewhere."""
    story = draw(st.sampled_from(STORIES))
    files = dict(files_of(story))
    for name in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=3, unique=True)):
        edges = [0, 1, HEADER_SIZE, HEADER_SIZE + RECORD_SIZE, len(files[name]) - 1]
        fitting = [edge for edge in edges if edge < len(files[name])]
        size = draw(st.one_of(st.integers(0, len(files[name]) - 1), st.sampled_from(fitting)))
        files[name] = files[name][:size]
    return story, files


@given(case=cuts())
@settings(max_examples=150, deadline=None)
def test_files_that_are_cut_anywhere_give_the_same_answer_or_none(
    case: tuple[Story, dict[str, bytes]],
) -> None:
    story, files = case
    found = explained(files)
    if answer(found) != whole(story):
        assert answer(found) == ("inconclusive", None, ())
    if found.report.verdict == "inconclusive" and whole(story)[0] != "inconclusive":
        assert "not all is there:\n  " in found.text


def test_a_table_may_be_cut_at_each_byte() -> None:
    data = files_of(elsewhere)["rank2.strings"]
    with laid_out(files_of(elsewhere)) as folder:
        for size in range(len(data)):
            (folder / "rank2.strings").write_bytes(data[:size])
            found = explain(folder)
            assert answer(found) == ("inconclusive", None, ())
            assert found.text.endswith(
                "rank2.strings is cut, or its disk was full: records refer to what is not in it"
            )


@st.composite
def damages(draw: st.DrawFn) -> dict[str, bytes]:
    """A run of which some bytes are others."""
    files = dict(files_of(draw(st.sampled_from(STORIES))))
    for name in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=3)):
        data = bytearray(files[name])
        spots = st.integers(0, len(data) - 1)
        if name.endswith(".ledger"):  # where there is something but zeros
            spots = st.one_of(st.integers(0, 160), st.integers(HEADER_SIZE, len(data) - 1))
        for at in draw(st.lists(spots, min_size=1, max_size=4)):
            data[at] = draw(st.integers(0, 255))
        files[name] = bytes(data)
    return files


@given(files=damages())
@settings(max_examples=150, deadline=None)
def test_bytes_that_are_others_end_nothing_in_an_exception(files: dict[str, bytes]) -> None:
    explained(files)


@given(
    files=st.dictionaries(st.sampled_from(sorted(files_of(elsewhere))), st.binary(max_size=200), min_size=1)
)
@settings(max_examples=100, deadline=None)
def test_nor_do_files_of_anything(files: dict[str, bytes]) -> None:
    assert answer(explained(files))[0] == "inconclusive"


@pytest.mark.parametrize("name", [name for name in files_of(elsewhere) if name != "run.json"])
def test_a_file_that_is_missing_is_named(name: str) -> None:
    files = {other: data for other, data in files_of(elsewhere).items() if other != name}
    found = explained(files)
    assert answer(found) == ("inconclusive", None, ())
    assert found.text.startswith("inconclusive: not all is there, and the rest proves nothing\n")
    assert found.text.endswith(f"\nnot all is there:\n  {name} is missing")


def test_without_its_manifest_a_proof_is_one_and_a_suspicion_none() -> None:
    for story, expected in ((elsewhere, whole(elsewhere)), (late_and_silent, ("inconclusive", None, ()))):
        found = explained({name: data for name, data in files_of(story).items() if name != "run.json"})
        assert answer(found) == expected
        assert found.text.endswith("\nnot all is there:\n  run.json is missing")


def test_audits_that_are_missing_cost_the_names_of_tensors() -> None:
    files = {name: data for name, data in files_of(drifted).items() if name != "rank1.audits"}
    found = explained(files)
    assert answer(found) == whole(drifted)
    assert found.text.endswith("not all is there:\n  rank1.audits is missing")


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("kind", ["ledger", "strings"])
def test_a_file_of_another_run_is_named(tmp_path: Path, kind: str, manifest: bool) -> None:
    with fleet(tmp_path, 4, capacity=CAPACITY, run=b"another") as others:
        others.together(3)
    files = dict(files_of(elsewhere))
    files[f"rank3.{kind}"] = (tmp_path / f"rank3.{kind}").read_bytes()
    if not manifest:
        del files["run.json"]
    found = explained(files)
    assert answer(found) == ("inconclusive", None, ())
    assert f"  rank3.{kind} is of another run: {b'another'.hex()[:8]}" in found.text


def test_ledgers_that_are_all_of_other_runs_are_named(tmp_path: Path) -> None:
    for rank in range(2):
        with fleet(tmp_path / str(rank), 2, capacity=CAPACITY, run=b"run %d" % rank) as others:
            others.together(3)
        shutil.copy(tmp_path / str(rank) / f"rank{rank}.ledger", tmp_path)
        shutil.copy(tmp_path / str(rank) / f"rank{rank}.strings", tmp_path)
    found = explain(tmp_path)
    assert answer(found) == ("inconclusive", None, ())
    for rank in range(2):
        said = f"rank{rank}.ledger is of run {(b'run %d' % rank).hex()[:8]}, and most of the others"
        assert said in found.text


def test_the_host_of_a_rank_whose_files_were_left_there_is_said(tmp_path: Path) -> None:
    with fleet(tmp_path, 4, hosts=lambda rank: f"node{rank // 2}") as ranks:
        elsewhere(ranks)
    (tmp_path / "rank3.ledger").unlink()
    assert explain(tmp_path).text.endswith("  rank3.ledger is missing (its rank was on node1)")


def test_where_most_ranks_agree_the_rest_may_be_missing() -> None:
    with tempfile.TemporaryDirectory() as name:
        with fleet(Path(name), 5) as ranks:
            ranks.together(3)
            for rank in (0, 1, 4):
                ranks.call(rank)
            ranks.call(2, "barrier")
        (Path(name) / "rank3.strings").unlink()
        found = explain(Path(name))
    assert answer(found) == ("diverged", "mismatch", (2,))
    assert found.text.startswith("rank 2 disagrees in all_reduce #3")
    assert found.text.endswith("\nnot all is there:\n  rank3.strings is missing")


def test_what_is_no_file_is_named_and_not_waited_for() -> None:
    with laid_out(files_of(elsewhere)) as folder:
        for name, make in (
            ("rank0.ledger", os.mkfifo),
            ("rank1.ledger", os.mkdir),
            ("rank2.strings", os.mkfifo),
        ):
            (folder / name).unlink()
            make(folder / name)
        (folder / "rank3.strings").unlink()
        (folder / "rank3.strings").mkdir()
        found = explain(folder)
    assert answer(found) == ("inconclusive", None, ())
    for said in ("rank0.ledger is no file", "rank1.ledger is no file", "rank2.", "rank3."):
        assert f"\n  {said}" in found.text


def test_a_ledger_that_says_more_than_it_can_hold_is_not_read() -> None:
    files = dict(files_of(elsewhere))
    ledger = bytearray(files["rank1.ledger"])
    for capacity in (0, 2**22 + 1, 2**32 - 1):
        ledger[8:12] = capacity.to_bytes(4, "little")
        found = explained({**files, "rank1.ledger": bytes(ledger)})
        assert answer(found) == ("inconclusive", None, ())
        assert f"with a header for {capacity} records" in found.text
    document = json.loads(files["run.json"]) | {"world_size": 10**9}
    found = explained({**files, "run.json": json.dumps(document).encode()})
    assert "run.json says 1000000000 ranks" in found.text
