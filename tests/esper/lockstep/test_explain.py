"""What is said of a run from its files alone, where they are all there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import jsonschema
import pytest

from esper.lockstep.errors import LedgerError
from esper.lockstep.postmortem.explain import Explanation, explain
from esper.lockstep.rank.recorder import GroupRecord
from esper.lockstep.rank.stacks import stack_path
from esper.lockstep.record.entry import Kind, State
from esper.lockstep.report.diagnosis import Diagnosis, GuiltyAt, RankEnd, Report, Waiting
from esper.lockstep.report.verdict import write_report
from tests.esper.lockstep.fleet import Fleet, fleet
from tests.esper.lockstep.fleet_stories import (
    DIVERGED,
    SIZE,
    Story,
    all_but_rank_2_wait,
    elsewhere,
    late_and_silent,
    late_and_there,
    program_over,
    raised,
)
from tests.esper.lockstep.launching import SCHEMA

name_of = attrgetter("__name__")


def told(folder: Path, story: Story, **how: object) -> Explanation:
    """What is explained of ranks to whom this happened."""
    with fleet(folder, **how) as ranks:  # type: ignore[arg-type]
        story(ranks)
    found = explain(folder)
    document = json.loads(json.dumps(found.report.to_json()))
    jsonschema.validate(document, SCHEMA)
    assert [end["rank"] for end in document["ranks"]] == list(range(ranks.world_size))
    return found


def answer(found: Explanation) -> tuple[str, str | None, tuple[int, ...]]:
    """(verdict, kind, guilty ranks)."""
    diagnosis = next(iter(found.report.diagnoses), None)
    return (found.report.verdict, *((diagnosis.kind, diagnosis.guilty) if diagnosis else (None, ())))


@pytest.mark.parametrize("story", DIVERGED, ids=name_of)
def test_what_went_wrong_is_named(tmp_path: Path, story: Story) -> None:
    found = told(tmp_path, story, world_size=SIZE.get(story, 4))
    assert answer(found) == ("diverged", *DIVERGED[story])
    assert found.status == 3
    assert "not all is there" not in found.text


@pytest.mark.parametrize(
    "story", [elsewhere, program_over, raised, late_and_there], ids=lambda one: one.__name__
)
def test_it_is_named_after_the_ring_has_lost_the_beginning(tmp_path: Path, story: Story) -> None:
    def long(ranks: Fleet) -> None:
        ranks.together(50)
        story(ranks)

    assert answer(told(tmp_path, long, capacity=16)) == ("diverged", *DIVERGED[story])


def test_both_sides_have_their_lines(tmp_path: Path) -> None:
    found = told(tmp_path, elsewhere)
    assert found.text == (
        "rank 2 disagrees in all_reduce #3 (float32 [4])\n"
        "  ranks 0, 1, 3 wait in all_reduce #3              train.py:7  step\n"
        "  rank 2 is in broadcast #3 (float32 [4], root 0)  train.py:9  step  <- differs\n"
        "  last in common: all_reduce #2                    train.py:1  step"
    )
    (diagnosis,) = found.report.diagnoses
    assert (diagnosis.waiting.site, diagnosis.guilty_at[2].site) == ("/train.py:7", "/train.py:9")
    assert found.report.ranks[2].last == {"op": "broadcast", "site": "/train.py:9"}


def test_of_a_silent_rank_is_said_since_when(tmp_path: Path) -> None:
    found = told(tmp_path, late_and_silent)
    assert found.text == (
        "rank 2 is late for all_reduce #3 (float32 [4]): frozen\n"
        "  ranks 0, 1, 3 wait in all_reduce #3  train.py:7  step\n"
        "  rank 2 is silent                     train.py:1  step  "
        "<- nothing was heard of rank 2 for the last 62.0 s\n"
        "  last in common: all_reduce #2        train.py:1  step"
    )


@pytest.mark.parametrize("silent", [True, False])
def test_within_the_patience_nobody_is_guilty_and_who_is_late_is_said(tmp_path: Path, silent: bool) -> None:
    def story(ranks: Fleet) -> None:
        all_but_rank_2_wait(ranks)
        ranks.live_on(58, *((0, 1, 3) if silent else ()))

    found = told(tmp_path, story)
    assert answer(found) == ("inconclusive", None, ())
    quiet = "; nothing was heard of rank 2 for the last 58.0 s" if silent else ""
    waits = "ranks 0, 1, 3 wait for rank 2 in all_reduce #3 for 58.0 s"
    assert f"  late: {waits}{quiet}\n" in found.text
    assert found.text.startswith("inconclusive: ranks 0, 1, 2, 3 had not ended, and nothing")


def test_a_rank_that_compiles_has_longer(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        all_but_rank_2_wait(ranks)
        ranks.ledgers[2].set_compiling(True)
        ranks.live_on(62)

    assert answer(told(tmp_path, story)) == ("inconclusive", None, ())


def test_a_fatal_signal_of_a_late_rank_has_its_line(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        late_and_silent(ranks)
        stack_path(tmp_path, 2).write_text(
            "Fatal Python error: Segmentation fault\n\n"
            'Current thread 0x00007f0000000000 (most recent call first):\n  File "/load.py", line 3 in load\n'
        )

    found = told(tmp_path, story)
    assert answer(found) == ("diverged", "frozen", (2,))
    assert "rank 2 was killed                    load.py:3  load  <- a fatal signal came here" in found.text


@pytest.mark.parametrize("waiting", range(5))
def test_of_healthy_ranks_that_were_killed_at_once_nobody_is_accused(tmp_path: Path, waiting: int) -> None:
    def story(ranks: Fleet) -> None:
        ranks.together(3)
        for rank in range(waiting):
            ranks.call(rank)
        ranks.beat()

    found = told(tmp_path, story)
    assert answer(found) == ("inconclusive", None, ())
    assert "late:" not in found.text


def test_ranks_that_say_nothing_of_themselves_are_not_silent(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        ranks.together(3, beat=False)
        ranks.pass_time(1000.0)
        ranks.call(0)

    found = told(tmp_path, story)
    assert answer(found) == ("inconclusive", None, ())
    assert "silent" not in found.text


def test_who_vanished_is_told_and_neither_it_nor_its_victims_are_accused(tmp_path: Path) -> None:
    """Whether it was killed, or ended with the others since one of them failed, is not to be known."""

    def story(ranks: Fleet) -> None:
        ranks.group("pair", 0, 1)
        ranks.together(3)
        waiting = ranks.call(1, group="pair")
        broken = {rank: ranks.call(rank) for rank in (0, 3)}
        for rank, number in {**broken, 1: waiting}.items():
            ranks.loses_connection(rank, number)

    found = told(tmp_path, story)
    assert answer(found) == ("inconclusive", None, ())
    assert "rank 2 was last in all_reduce #2  train.py:1  step  <- it left no word of its end" in found.text
    assert "ranks 0, 1, 3 raised RuntimeError: Connection closed by peer" in found.text


def test_who_never_came_within_the_others_own_time_is_named(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        ranks.together(3)
        broken = {rank: ranks.call(rank) for rank in (0, 1, 3)}
        ranks.live_on(30)
        for rank, number in broken.items():
            ranks.loses_connection(rank, number)

    assert answer(told(tmp_path, story)) == ("diverged", "stalled", (2,))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_who_was_told_to_end_is_not_accused(tmp_path: Path, error: BaseException) -> None:
    def story(ranks: Fleet) -> None:
        all_but_rank_2_wait(ranks)
        if isinstance(error, SystemExit):
            ranks.recorders[2].leaving_by(error)
            ranks.over(2)
        else:
            ranks.raises(2, error)

    found = told(tmp_path, story)
    assert answer(found) == ("inconclusive", None, ())
    assert found.text.startswith("inconclusive: the ranks were told to end (")


def test_a_job_that_was_stopped_as_a_whole_has_waited_for_nobody_meanwhile(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        all_but_rank_2_wait(ranks)
        ranks.beat()
        ranks.pass_time(600.0)
        ranks.live_on(20)

    found = told(tmp_path, story)
    assert answer(found) == ("inconclusive", None, ())


def test_who_is_watched_no_more_may_have_come(tmp_path: Path) -> None:
    """`lockstep.stop()`, or the end of the interpreter: nothing is recorded after it."""

    def story(ranks: Fleet) -> None:
        all_but_rank_2_wait(ranks)
        ranks.ledgers[2].set_state(State.OVER)
        ranks.live_on(100, 0, 1, 3)

    found = told(tmp_path, story)
    assert answer(found) == ("inconclusive", None, ())
    assert "late:" not in found.text
    assert "\n  rank 2 was over" in found.text


def test_an_exception_that_left_the_program_is_its_end_where_nothing_else_is_recorded(
    tmp_path: Path,
) -> None:
    def story(ranks: Fleet) -> None:
        all_but_rank_2_wait(ranks)
        ranks.raises(2, ValueError("bad"), over=False)
        ranks.ledgers[2].set_state(State.OVER)

    assert answer(told(tmp_path, story)) == ("diverged", "raised", (2,))


def test_ranks_that_were_watched_to_the_end_are_clean(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        ranks.together(3)
        for ledger in ranks.ledgers:
            ledger.set_state(State.OVER)

    assert answer(told(tmp_path, story)) == ("clean", None, ())


def test_ranks_that_all_ended_well_are_clean(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        ranks.together(3)
        ranks.over()

    found = told(tmp_path, story)
    assert (found.report.verdict, found.status) == ("clean", 0)
    assert found.text == "clean: all 4 ranks ended, and no call was left open"


@pytest.mark.parametrize("op", ["all_reduce", "recv"])
def test_who_may_have_come_before_what_its_ring_holds_is_not_accused(tmp_path: Path, op: str) -> None:
    def story(ranks: Fleet) -> None:
        ranks.group("pair", 0, 1)
        ranks.group("alone", 1)
        if op == "recv":
            ranks.call(1, "send", "pair", peer=0, flags=0)
            ranks.call(0, op, "pair", peer=1)
        else:
            ranks.call(1, op, "pair", flags=0)
            ranks.call(0, op, "pair")
        for _ in range(40):
            ranks.come_back(1, ranks.call(1, group="alone"))
        ranks.live_on(70)

    assert answer(told(tmp_path, story, world_size=2, capacity=16)) == ("inconclusive", None, ())


def test_a_proof_that_fails_is_said_and_passes_nothing(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        ranks.together(3)
        ranks.recorders[0].event(Kind.GROUP, group="strangers", ranks=(0, 9))
        ranks.groups[0, "strangers"] = GroupRecord("strangers", ranks.ledgers[0].string("strangers"), (0, 9))
        ranks.call(0, group="strangers")
        ranks.over()

    found = told(tmp_path, story)
    assert answer(found) == ("inconclusive", None, ())
    assert found.text.startswith("inconclusive: lockstep itself failed on what is there (IndexError: ")


def test_a_failure_that_nobody_waited_for_is_no_divergence(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        ranks.together(3)
        ranks.over(0, 1)
        ranks.raises(2, ValueError("bad\nsecond line"))
        ranks.recorders[3].leaving_by(SystemExit(5))
        ranks.over(3)

    found = told(tmp_path, story)
    assert (answer(found), found.status) == (("failed", None, ()), 1)
    first, second = found.text.splitlines()
    assert first.startswith("failed: rank 2 raised ValueError: bad  fleet.py:")
    assert second.startswith("failed: rank 3 exited with status 5  ")


VERDICT = Report(
    "diverged",
    (
        Diagnosis(
            "crashed",
            (1,),
            "default",
            3,
            Waiting((0, 2, 3), "all_reduce"),
            {1: GuiltyAt("killed", detail="SIGKILL")},
            0.1,
            "rank 1 died before all_reduce #3",
        ),
    ),
    tuple(RankEnd(rank, None, None, {"op": None, "site": None}) for rank in range(4)),
)


def test_the_verdict_of_those_who_were_there_is_the_answer(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        elsewhere(ranks)
        write_report(tmp_path, VERDICT)
        ranks.ledgers[2].path.unlink()

    found = told(tmp_path, story)
    assert (found.report, found.text) == (VERDICT, "rank 1 died before all_reduce #3")


def test_a_verdict_of_a_run_of_another_size_is_not(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        elsewhere(ranks)
        write_report(tmp_path, Report("diverged", VERDICT.diagnoses, VERDICT.ranks[:3]))

    found = told(tmp_path, story)
    assert answer(found) == ("diverged", "mismatch", (2,))
    assert found.text.endswith("not all is there:\n  verdict.json is of a run of 3 ranks, and this one has 4")


@pytest.mark.parametrize("ahead", [-5000.0, 0.0, 3.0, 5000.0])
def test_two_hosts_are_on_one_clock(tmp_path: Path, ahead: float) -> None:
    """Their clocks on the wall agree; CLOCK_MONOTONIC is the time since each was started."""
    how = {"hosts": lambda rank: "ab"[rank // 2], "booted": lambda rank: ahead * (rank // 2)}
    found = told(tmp_path, late_and_silent, **how)
    assert answer(found) == ("diverged", "frozen", (2,))
    assert "nothing was heard of rank 2 for the last 62.0 s" in found.text
    shutil.rmtree(tmp_path)
    assert answer(told(tmp_path, elsewhere, **how)) == ("diverged", "mismatch", (2,))


def test_a_clock_on_the_wall_that_was_set_changes_nothing(tmp_path: Path) -> None:
    def story(ranks: Fleet) -> None:
        all_but_rank_2_wait(ranks)
        ranks.live_on(30)

    found = told(tmp_path, story, wall=lambda rank: 86400.0 * (rank == 2))
    assert answer(found) == ("inconclusive", None, ())
    assert "rank 2 in all_reduce #3 for 30.0 s" in found.text
    assert "silent" not in found.text


def test_the_newest_of_several_attempts_is_taken_and_said(tmp_path: Path) -> None:
    for number, story in enumerate((program_over, elsewhere)):
        with fleet(tmp_path / f"attempt-{number}-{number:08x}", started=float(number)) as ranks:
            story(ranks)
    (tmp_path / "logs").mkdir()
    found = explain(tmp_path)
    assert answer(found) == ("diverged", "mismatch", (2,))
    assert found.text.startswith("attempt-1-00000001, the newest of 2 attempts\nrank 2 disagrees")
    assert answer(explain(tmp_path / "attempt-0-00000000")) == ("diverged", "missing", (2,))
    shutil.rmtree(tmp_path / "attempt-1-00000001")
    assert explain(tmp_path).text.startswith("rank 2 never entered")


def test_a_folder_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"holds no run: neither run\.json nor a rank<R>\.ledger is in it"):
        explain(tmp_path)
    with pytest.raises(LedgerError, match="can't be read: No such file or directory"):
        explain(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="can't be read: Not a directory"):
        explain(tmp_path / "file")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "esper.lockstep", "explain", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_command_prints_the_sentence_or_the_report_and_its_status_says_the_verdict(
    tmp_path: Path,
) -> None:
    found = told(tmp_path, elsewhere)
    done = command(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, found.text + "\n", "")
    done = command(tmp_path, "--json")
    assert (done.returncode, done.stderr) == (3, found.text + "\n")
    assert json.loads(done.stdout) == json.loads(json.dumps(found.report.to_json()))
    done = command(tmp_path / "gone")
    said = f"explain: RUN_DIR '{tmp_path}/gone' can't be read: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_a_reader_that_has_gone_changes_nothing(tmp_path: Path) -> None:
    told(tmp_path, elsewhere)
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [sys.executable, "-m", "esper.lockstep", "explain", str(tmp_path), "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.splitlines()[0]) == (
        3,
        b"rank 2 disagrees in all_reduce #3 (float32 [4])",
    )
