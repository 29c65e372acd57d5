"""Jobs whose ranks are not those of the launch: nobody is accused in them, and a hang there is not clean."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from esper.lockstep.proof.finding import Patience
from esper.lockstep.record.entry import Kind
from esper.lockstep.run.apart import ApartWatch, not_compared
from tests.esper.lockstep.launching import Outcome, launch
from tests.esper.lockstep.story import ASYNC, NATIVE, TWO_SECONDS, Story

HEAD = """\
import os, sys, time
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore
launched, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
def join(name, rank, world):
    dist.init_process_group("gloo", store=PrefixStore(name, store), rank=rank, world_size=world)
x = torch.ones(4)
"""
NOT_FOLLOWED = (
    "for N s in a job that is not followed, since its ranks are not those of the launch: who keeps whom "
    "waiting is not known"
)
UNCONNECTED = (
    "for N s in init_process_group, which every rank has entered: torch has not connected them, as happens "
    "when a job is joined again at a store that still has the addresses of the time before"
)


def told(outcome: Outcome) -> list[str]:
    """The lines of the run's sentence, without how long it was and the alignment."""
    lines = outcome.text[outcome.text.index("inconclusive: ") :].splitlines()
    return [re.sub(r"for \d+\.\d s", "for N s", line) for line in lines]


def line(outcome: Outcome, mark: str) -> str:
    return os.path.basename(outcome.at(mark))


def test_a_hang_where_ranks_are_numbered_anew_is_inconclusive(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        join("anew", (launched + 2) % 3, 3)
        dist.all_reduce(x)
        if launched == 1:
            time.sleep(60)  # sleeps
        dist.all_reduce(x)  # waits
        """,
        nproc=3,
        patience=1.0,
        head=HEAD,
    )
    assert (outcome.status, outcome.verdict, outcome.report["diagnoses"]) == (4, "inconclusive", [])
    waits = f"all_reduce #1 (float32 [4])  {line(outcome, 'waits')}"
    assert told(outcome) == [
        f"inconclusive: ranks 0, 2 wait {NOT_FOLLOWED}",
        f"  rank 0 (rank 2 of 3 there) waits in {waits}",
        f"  rank 2 (rank 1 of 3 there) waits in {waits}",
        f"  rank 1 is sleeping  {line(outcome, 'sleeps')}",
    ]


def test_a_job_that_a_rank_never_joins_is_inconclusive(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        if launched != 2:
            join(f"job {launched // 2}", launched % 2, 2)  # waits
        else:
            time.sleep(60)  # sleeps
        """,
        nproc=4,
        patience=1.0,
        head=HEAD,
    )
    assert (outcome.status, outcome.verdict, outcome.report["diagnoses"]) == (4, "inconclusive", [])
    function = "  join"
    joining = outcome.script.read_text().splitlines().index(HEAD.splitlines()[7]) + 1
    assert told(outcome) == [
        f"inconclusive: rank 3 waits {NOT_FOLLOWED}",
        f"  rank 3 (rank 1 of 2 there) waits in init_process_group #0  program.py:{joining}{function}",
        "  rank 0 has ended",
        "  rank 1 has ended",
        f"  rank 2 is sleeping  {line(outcome, 'sleeps')}",
    ]


def test_who_goes_on_after_a_call_from_cpp_is_not_said_to_wait_in_it(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        from torch.nn.parallel import DistributedDataParallel
        join("anew", 1 - launched, 2)
        model = DistributedDataParallel(torch.nn.Linear(3, 1))
        for step in range(2):
            model(torch.ones(1, 3)).sum().backward()
        if launched == 0:
            model(torch.ones(1, 3)).sum().backward()  # waits
        while True:
            pass  # runs
        """,
        patience=1.0,
        head=HEAD,
    )
    assert (outcome.status, outcome.verdict) == (4, "inconclusive"), outcome.text
    first, waits, runs = told(outcome)
    assert first == f"inconclusive: rank 0 waits {NOT_FOLLOWED}"
    assert re.fullmatch(
        rf"  rank 0 \(rank 1 of 2 there\) waits in all_reduce #\d+ \(float32 \[4\]\)  "
        rf"{re.escape(line(outcome, 'waits'))}",
        waits,
    )
    assert runs.startswith("  rank 1 is running  program.py:")


def test_a_job_that_ends_well_is_clean_and_said_not_to_be_compared(tmp_path: Path) -> None:
    """In it a rank works alone for longer than the patience, after a call from C++ and with a work open."""
    outcome = launch(
        tmp_path,
        """
        from torch.nn.parallel import DistributedDataParallel
        join("anew", 1 - launched, 2)
        model = DistributedDataParallel(torch.nn.Linear(3, 1))
        model(torch.ones(1, 3)).sum().backward()
        work = dist.all_reduce(x, async_op=True)
        pair = dist.new_group([1, 0])
        dist.send(x, 1) if launched else dist.recv(x, 0)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            torch.nn.Linear(200, 200)(torch.ones(10, 200)).sum().backward()
        time.sleep(1.5)
        work.wait()
        dist.destroy_process_group()
        dist.init_process_group("gloo")
        dist.barrier()
        dist.destroy_process_group()
        """,
        patience=1.0,
        head=HEAD,
    )
    assert (outcome.status, outcome.verdict) == (0, "clean"), outcome.text
    assert outcome.text.splitlines()[-1] == (
        "not compared: what ranks did in a job whose ranks are not those of the launch "
        "(rank 0 as rank 1 of 2, rank 1 as rank 0 of 2)"
    )


def test_a_job_of_one_has_nobody_to_be_compared_with(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        dist.all_reduce(x)
        dist.destroy_process_group()
        """,
        head=HEAD,
    )
    assert (outcome.status, outcome.verdict, outcome.text) == (0, "clean", "")


def test_a_job_that_fails_has_its_own_status(tmp_path: Path) -> None:
    outcome = launch(
        tmp_path,
        """
        join("anew", 1 - launched, 2)
        dist.all_reduce(x)
        dist.destroy_process_group()  # torch aborts now and then where it is left to the interpreter's end
        sys.exit(7)
        """,
        head=HEAD,
    )
    assert (outcome.status, outcome.verdict) == (7, "failed"), outcome.text
    assert "not compared: " in outcome.text


def test_ranks_that_torch_does_not_connect_are_inconclusive(tmp_path: Path) -> None:
    """Each looks for the other at an address of its own, as it does where those of an earlier time remain."""
    outcome = launch(tmp_path, 'join(f"alone {launched}", launched, 2)', patience=1.0, head=HEAD)
    assert (outcome.status, outcome.verdict, outcome.report["diagnoses"]) == (4, "inconclusive", [])
    joining = HEAD.splitlines().index(HEAD.splitlines()[7]) + 1
    assert told(outcome) == [
        f"inconclusive: ranks 0, 1 wait {UNCONNECTED}",
        f"  rank 0 waits in init_process_group #0  program.py:{joining}  join",
        f"  rank 1 waits in init_process_group #0  program.py:{joining}  join",
    ]


def joined(ranks: int) -> Story:
    """All but rank 0 have come back from init_process_group, which all have entered."""
    story = Story(ranks)
    story.group("the job", *range(ranks))
    calls = [story.call(rank, "init_process_group", "the job") for rank in range(ranks)]
    story.come_back(*calls[1:])
    return story


def test_who_is_not_let_out_of_joining_is_not_late() -> None:
    story = joined(2)
    story.letters[0] = "S"
    story.call(1)
    assert story.found(later=9.0, patience=TWO_SECONDS) is None


def test_who_is_stopped_while_joining_is_frozen() -> None:
    story = joined(2)
    story.call(1)
    story.letters[0], story.stopped[0] = "T", story.now
    assert story.found(later=3.0, patience=TWO_SECONDS) == ("frozen", [0])


def test_who_is_not_let_out_of_joining_is_not_late_for_one_that_gave_up() -> None:
    story = joined(2)
    story.letters[0] = "S"
    story.come_back(story.call(1), failed=True)
    story.raises(1, victim=True)
    story.ends_process(1, 1)
    assert story.found(later=1.0, patience=TWO_SECONDS) is None


def test_who_can_not_be_connected_is_not_accused_by_those_who_were() -> None:
    story = joined(2)
    story.call(1)
    (call,) = story.view.unconnected(0)
    story.come_back(call, failed=True)
    story.raises(0, victim=True)
    story.ends_process(0, 1)
    assert story.found(later=9.0, patience=TWO_SECONDS) is None
    assert story.found(final=True) is None


def test_who_fails_to_join_while_the_others_still_wait_for_it_is_named() -> None:
    story = Story(2)
    story.group("the job", 0, 1)
    story.call(1, "init_process_group", "the job")
    story.come_back(story.call(0, "barrier"), failed=True)
    story.raises(0, victim=True)
    story.ends_process(0, 1)
    assert story.found(later=9.0, patience=TWO_SECONDS) == ("raised", [0])


def test_who_joins_another_job_keeps_the_others_waiting() -> None:
    story = Story(2)
    story.write(1, Kind.GROUP, group="the job of rank 1", detail={"ranks": [1], "apart": "rank 0 of 2"})
    story.call(1, "init_process_group", "the job of rank 1")
    story.call(0)
    assert story.found(later=3.0, patience=TWO_SECONDS) == ("stalled", [1])


# The watch by itself: no process of these has waited for a processor.


def watch(story: Story, patience: float = 2.0) -> ApartWatch:
    for rank in range(story.world_size):
        story.write(
            rank, Kind.GROUP, group=f"default of {rank}", detail={"ranks": [rank], "apart": "rank 0 of 2"}
        )
    compiled = partial(story.compiled, since=0.0)
    return ApartWatch(story.view, [0] * story.world_size, Patience(patience, compiling=10.0), compiled)


def test_a_wait_lasts_until_it_ends() -> None:
    story = Story(2)
    watched = watch(story)
    call = story.call(0, group="default of 0")
    assert watched.stuck(story.now + 1.9) == []
    assert [entry.rank for entry in watched.stuck(story.now + 2.1)] == [0]
    story.come_back(call)
    assert watched.stuck(story.now + 5.0) == []


def test_a_wait_for_a_rank_that_may_be_compiling_may_last_longer_but_not_for_ever() -> None:
    story = Story(2)
    watched = watch(story)
    story.compiling[1] = 50.0  # before the wait
    story.call(0, group="default of 0")
    assert watched.stuck(story.now) == []
    story.compiling[1] += 3.0
    assert watched.stuck(story.now + 4.9) == []
    assert [entry.rank for entry in watched.stuck(story.now + 5.1)] == [0]
    story.compiling[1] += 30.0
    assert watched.stuck(story.now + 11.9) == []
    assert [entry.rank for entry in watched.stuck(story.now + 12.1)] == [0]


def test_a_work_that_is_not_waited_for_yet_is_no_wait_and_a_later_one_does_not_hide_it() -> None:
    story = Story(1)
    watched = watch(story)
    first = story.call(0, group="default of 0", flags=ASYNC)
    story.call(0, group="default of 0", flags=ASYNC)
    assert watched.stuck(story.now + 9.0) == []
    story.begin_wait(first)
    assert [entry.number for entry in watched.stuck(story.now + 19.0)] == [first.number]


def test_many_calls_that_have_ended_do_not_hide_one_that_has_not() -> None:
    story = Story(1)
    watched = watch(story, patience=100.0)
    first = story.call(0, group="default of 0", thread=7)
    for _ in range(4):
        story.come_back(*[story.call(0, group="default of 0") for _ in range(80)])
        assert watched.stuck(story.now) == []
    assert [entry.number for entry in watched.stuck(story.now + 200.0)] == [first.number]


def test_a_call_from_cpp_lasts_only_while_its_thread_is_known_to_sleep() -> None:
    story = Story(1)
    watched = watch(story)
    story.call(0, group="default of 0", flags=NATIVE)
    assert watched.stuck(story.now + 9.0) == []


def test_where_a_rank_has_failed_the_run_has_its_status() -> None:
    story = Story(2)
    watched = watch(story)
    story.call(0, group="default of 0")
    story.ends_process(1, 1)
    assert watched.stuck(story.now + 9.0) == []


def test_a_rank_that_has_left_waits_for_nobody() -> None:
    story = Story(2)
    watched = watch(story)
    story.call(0, group="default of 0")
    story.ends_process(0, 0)
    assert watched.stuck(story.now + 9.0) == []


def test_what_is_said_names_a_few_ranks_only() -> None:
    story = Story(6)
    assert not_compared(story.view) is None
    watch(story)
    assert not_compared(story.view) == (
        "not compared: what ranks did in a job whose ranks are not those of the launch (rank 0 as rank 0 of "
        "2, rank 1 as rank 0 of 2, rank 2 as rank 0 of 2, rank 3 as rank 0 of 2, 2 more)"
    )
