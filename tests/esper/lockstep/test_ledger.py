"""What a rank writes is what is read, or nothing: over wraps, cuts, full disks, threads and signals."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.lockstep.errors import LedgerError
from esper.lockstep.rank.recorder import Recorder
from esper.lockstep.record.entry import Entry, Flag, Kind, Site, State, Time
from esper.lockstep.record.ledger import DEFAULT_CAPACITY, HEADER_SIZE, RECORD_SIZE, Ledger, ledger_path
from esper.lockstep.record.reader import LedgerReader
from tests.esper.lockstep.conftest import CAPACITY


def sequences(reader: LedgerReader) -> list[int]:
    return [entry.sequence for entry in reader.new()]


def write(ledger: Ledger, sequence: int) -> int:
    return ledger.append(Kind.COLLECTIVE, ledger.string("default"), sequence, ledger.string("all_reduce"))


def test_a_record_comes_back_whole(ledger: Ledger, reader: LedgerReader) -> None:
    string = ledger.string
    site = Site("/a b/ü.py", 12, "f.<locals>.g")
    number = ledger.append(
        Kind.COLLECTIVE,
        string("default"),
        7,
        string("all_reduce"),
        string("MAX"),
        string("torch.float32"),
        string((2, 3)),
        string(site),
        string('tag "quoted"\nline'),
        string('{"tag": 5}'),
        root=1,
        peer=-1,
        elements=2**40,
        digest=2**64 - 1,
        thread=77,
        flags=Flag.WAITED,
    )
    (entry,) = reader.new()
    assert (entry.rank, entry.number, entry.kind) == (0, number, Kind.COLLECTIVE)
    assert (entry.group, entry.sequence, entry.op, entry.reduce_op) == ("default", 7, "all_reduce", "MAX")
    assert (entry.dtype, entry.shape, entry.elements) == ("float32", (2, 3), 2**40)
    assert (entry.site, entry.tag, entry.detail) == (site, 'tag "quoted"\nline', {"tag": 5})
    assert (entry.root, entry.peer, entry.digest, entry.thread) == (1, -1, 2**64 - 1, 77)
    assert entry.legible
    assert entry.waited()


@given(records=st.integers(0, 40), readings=st.lists(st.integers(0, 40)))
@settings(max_examples=60, deadline=None)
def test_the_ring_loses_the_oldest_and_says_how_many(
    tmp_path_factory: pytest.TempPathFactory, records: int, readings: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("ring")
    ledger, reader = Ledger(folder, 0, 1, CAPACITY), LedgerReader(folder, 0)
    got: list[int] = []
    for sequence in range(records):
        write(ledger, sequence)
        if sequence in readings:
            got += sequences(reader)
    got += sequences(reader)
    assert got == sorted(set(got))
    assert len(got) + reader.lost == records
    # All but one of the ring's places: the next record is written over the oldest.
    assert set(range(max(0, records - CAPACITY + 1), records)) <= set(got)
    reader.close()
    ledger.close()


def test_a_record_that_is_overwritten_while_it_is_read_is_lost_and_not_another(
    ledger: Ledger, reader: LedgerReader
) -> None:
    for sequence in range(4):
        write(ledger, sequence)
    reading = reader.new()
    assert next(reading).sequence == 0
    for sequence in range(4, 4 + CAPACITY):
        write(ledger, sequence)
    assert [entry.sequence for entry in reading] == []  # 1 to 3 are gone; what was there is newer
    assert sequences(reader) == list(range(5, 4 + CAPACITY))
    assert reader.lost == 4


def test_times_are_read_as_they_are_now(ledger: Ledger, reader: LedgerReader) -> None:
    number = write(ledger, 0)
    (entry,) = reader.new()
    assert not entry.waited()
    ledger.stamp(number, Time.WAIT_BEGUN, Flag.POLLED)
    begun = reader.times(number)
    assert begun is not None
    assert begun.issued <= begun.wait_begun
    assert begun.flags == Flag.POLLED
    ledger.stamp(number, Time.WAIT_ENDED, Flag.FAILED, Flag.POLLED)
    ended = reader.times(number)
    assert ended is not None
    assert ended.wait_begun <= ended.wait_ended
    assert ended.flags == Flag.FAILED


def test_times_of_an_overwritten_record_are_nobodys(ledger: Ledger, reader: LedgerReader) -> None:
    number = write(ledger, 0)
    sequences(reader)
    for sequence in range(1, CAPACITY - 1):
        write(ledger, sequence)
    assert reader.times(number) is not None
    write(ledger, CAPACITY - 1)
    assert reader.times(number) is None  # the next one may be on its way into its place
    in_its_place = write(ledger, CAPACITY)
    before = reader.times(in_its_place)
    ledger.stamp(number, Time.WAIT_ENDED)
    assert reader.times(in_its_place) == before


@contextmanager
def after_each_call_of(function: Callable[..., object], then: Callable[[], object]) -> Iterator[None]:
    """Do `then` where another thread or a signal handler may come in between: after a call that it makes."""

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "c_return" and frame.f_code is function.__code__:
            then()

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_whoever_comes_in_between_gets_a_record_of_its_own(tmp_path: Path) -> None:
    ledger, reader = Ledger(tmp_path, 0, 1, 64), LedgerReader(tmp_path, 0)
    between: list[int] = []

    def other() -> None:
        between.append(ledger.append(Kind.FAULT, sequence=100 + len(between)))
        # What is counted is written: a reader comes in between, too.
        entries.extend(reader.new())

    entries: list[Entry] = []
    with after_each_call_of(Ledger.append, other):
        for sequence in range(3):
            ledger.append(Kind.COLLECTIVE, sequence=sequence)
    entries.extend(reader.new())
    assert len(between) >= 3
    assert [entry.number for entry in entries] == list(range(3 + len(between)))
    by_kind = {kind: [entry.sequence for entry in entries if entry.kind is kind] for kind in Kind}
    assert by_kind[Kind.COLLECTIVE] == [0, 1, 2]
    assert by_kind[Kind.FAULT] == list(range(100, 100 + len(between)))


def test_whoever_comes_in_between_leaves_every_string_its_id(tmp_path: Path) -> None:
    ledger, reader = Ledger(tmp_path, 0, 1, 64), LedgerReader(tmp_path, 0)
    others = itertools.count()
    with after_each_call_of(Ledger.string, lambda: ledger.string(f"other {next(others)}")):
        for sequence in range(3):
            ledger.append(Kind.COLLECTIVE, sequence=sequence, op=ledger.string(f"op {sequence}"))
    assert next(others) >= 3
    assert [entry.op for entry in reader.new()] == ["op 0", "op 1", "op 2"]


def test_nothing_is_there_before_the_rank_has_made_it(tmp_path: Path, reader: LedgerReader) -> None:
    assert not reader.open()
    assert sequences(reader) == []
    assert reader.state() is State.STARTING
    assert reader.threads() == 0
    path = ledger_path(tmp_path, 0)
    for size in (0, 1, HEADER_SIZE):
        path.write_bytes(b"\0" * size)
        assert not reader.open()
    Ledger(tmp_path, 0, 1, CAPACITY).close()
    assert reader.open()


def test_a_file_of_another_kind_is_named(tmp_path: Path, reader: LedgerReader) -> None:
    ledger_path(tmp_path, 0).write_bytes(b"PK\x03\x04" + b"\1" * HEADER_SIZE)
    with pytest.raises(LedgerError, match=r"rank0\.ledger: magic b'PK.*not a ledger of rank 0"):
        reader.open()


def test_another_ranks_ledger_is_named(tmp_path: Path, reader: LedgerReader) -> None:
    Ledger(tmp_path, 1, 2, CAPACITY).close()
    ledger_path(tmp_path, 1).rename(ledger_path(tmp_path, 0))
    with pytest.raises(LedgerError, match="rank 1: not a ledger of rank 0"):
        reader.open()


def test_a_ledger_of_a_rank_that_is_not_known_yet_is_written_nowhere(tmp_path: Path) -> None:
    ledger = Ledger.unopened()
    ledger.stamp(ledger.append(Kind.BEGIN, sequence=1, detail=ledger.string("before")), Time.WAIT_ENDED)
    assert not ledger.is_open
    assert list(tmp_path.iterdir()) == []
    ledger.open(tmp_path, 0, 2, CAPACITY)
    ledger.append(Kind.BEGIN, sequence=2, tag=ledger.string("before"))
    reader = LedgerReader(tmp_path, 0)
    try:
        ((sequence, tag),) = [(entry.sequence, entry.tag) for entry in reader.new()]
    finally:
        reader.close()
        ledger.close()
    assert (sequence, tag) == (2, "before")
    assert (ledger.is_open, ledger.world_size, ledger.capacity) == (True, 2, CAPACITY)


def test_half_a_ledger_is_named(tmp_path: Path, ledger: Ledger, reader: LedgerReader) -> None:
    os.truncate(ledger.path, HEADER_SIZE + RECORD_SIZE)
    with pytest.raises(LedgerError, match=f"cut off at byte {HEADER_SIZE + RECORD_SIZE}"):
        reader.open()
    os.truncate(ledger.path, HEADER_SIZE + RECORD_SIZE * CAPACITY)
    assert reader.open()


def test_a_string_table_cut_at_any_byte_makes_its_records_illegible_and_no_others(
    tmp_path: Path, ledger: Ledger
) -> None:
    names = ["default", "all_reduce", "ü \n", "barrier"]
    for name in names[1:]:
        ledger.append(Kind.COLLECTIVE, ledger.string("default"), 0, ledger.string(name))
    table = ledger.path.with_suffix(".strings")
    whole = table.read_bytes()
    for size in range(len(whole) + 1):
        table.write_bytes(whole[:size])
        reader = LedgerReader(tmp_path, 0)
        entries = list(reader.new())
        reader.close()
        known = whole[:size].count(b"\n")
        assert [entry.legible for entry in entries] == [number + 1 < known for number in range(3)]
        assert [entry.op for entry in entries] == [
            name if number + 1 < known else "" for number, name in enumerate(names[1:])
        ]


def test_a_ledger_without_its_table_is_read_and_illegible(ledger: Ledger, reader: LedgerReader) -> None:
    write(ledger, 3)
    ledger.path.with_suffix(".strings").unlink()
    (entry,) = reader.new()
    assert (entry.sequence, entry.legible) == (3, False)


def test_a_full_disk_costs_the_strings_and_not_the_rank(tmp_path: Path) -> None:
    done = in_a_rank(
        f"""
        import resource
        from pathlib import Path
        from esper.lockstep.record.entry import Kind
        from esper.lockstep.record.ledger import NO_ROOM, Ledger
        ledger = Ledger(Path({str(tmp_path)!r}), 0, 1, 8)
        default = ledger.string("default")
        short = ledger.string("known before")
        size = ledger.path.with_suffix(".strings").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, resource.RLIM_INFINITY))
        cut = ledger.string("all_reduce")
        assert cut == NO_ROOM == ledger.string("all_reduce"), cut
        assert ledger.string("known before") == short
        ledger.append(Kind.COLLECTIVE, default, 0, cut)
        ledger.append(Kind.COLLECTIVE, default, 1, short, site=cut)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        ledger.append(Kind.COLLECTIVE, default, 2, ledger.string("after"))
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    reader = LedgerReader(tmp_path, 0)
    entries = list(reader.new())
    reader.close()
    assert [entry.legible for entry in entries] == [False, True, True]
    assert [entry.op for entry in entries] == ["", "known before", "after"]
    assert entries[1].site is None


def test_no_room_for_the_ledger_itself_is_said_at_once(tmp_path: Path) -> None:
    done = in_a_rank(
        f"""
        import resource
        from pathlib import Path
        from esper.lockstep import LedgerError
        from esper.lockstep.record.ledger import Ledger
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        try:
            Ledger(Path({str(tmp_path)!r}), 0, 1)
        except LedgerError as error:
            print(error.reason)
        """
    )
    needs = HEADER_SIZE + RECORD_SIZE * DEFAULT_CAPACITY
    assert done.stdout.strip() == f"{os.strerror(errno.EFBIG)}; it needs {needs} bytes there", done.stderr


def test_the_files_are_the_users_alone(ledger: Ledger) -> None:
    for path in (ledger.path, ledger.path.with_suffix(".strings")):
        assert path.stat().st_mode & 0o777 == 0o600


def test_it_can_be_read_after_sigkill(tmp_path: Path) -> None:
    done = in_a_rank(
        f"""
        import os, signal
        from pathlib import Path
        from esper.lockstep.record.entry import Kind, State
        from esper.lockstep.record.ledger import Ledger
        ledger = Ledger(Path({str(tmp_path)!r}), 0, 1)
        ledger.set_state(State.RUNNING)
        ledger.append(Kind.COLLECTIVE, ledger.string("default"), 4, ledger.string("barrier"))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert done.returncode == -signal.SIGKILL
    reader = LedgerReader(tmp_path, 0)
    (entry,) = reader.new()
    assert (entry.op, entry.sequence, reader.state()) == ("barrier", 4, State.RUNNING)
    reader.close()


@pytest.mark.parametrize("run", [b"", b"\0", b"0123456789abcde\0"])
def test_it_says_which_run_it_is_of(tmp_path: Path, reader: LedgerReader, run: bytes) -> None:
    before = time.time() - time.monotonic()
    Ledger(tmp_path, 0, 1, CAPACITY, run=run).close()
    assert reader.open()
    assert reader.run == run
    assert before - 0.1 <= reader.clock_offset <= time.time() - time.monotonic() + 0.1


def test_a_run_id_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"run=b'0123456789abcdefg' must be at most 16 bytes"):
        Ledger(tmp_path, 0, 1, CAPACITY, run=b"0123456789abcdefg")
    assert list(tmp_path.iterdir()) == []


def test_a_heartbeat_is_read_and_lies_beside_everything_else(ledger: Ledger, reader: LedgerReader) -> None:
    assert reader.heartbeat() == 0.0
    ledger.set_compiling(True)
    before = reader.compiled(time.monotonic())[1]
    begun = time.monotonic()
    ledger.heartbeat()
    assert begun <= reader.heartbeat() <= time.monotonic()
    assert reader.compiled(time.monotonic())[1] == before
    assert (reader.run, reader.begun()) == (b"", None)


def test_who_is_in_a_group_is_known_after_the_ring_has_lost_its_record(
    ledger: Ledger, reader: LedgerReader
) -> None:
    Recorder(ledger).event(Kind.GROUP, group="default", ranks=(0, 1))
    for sequence in range(2 * CAPACITY):
        write(ledger, sequence)
    assert Kind.GROUP not in {entry.kind for entry in reader.new()}
    assert reader.groups() == {"default": {"ranks": [0, 1]}}


def test_what_json_has_no_word_for_is_written_as_its_text(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.append(Kind.COLLECTIVE, tag=ledger.string(complex(1, 2)))
    (entry,) = reader.new()
    assert entry.tag == str(complex(1, 2))


def in_a_rank(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=30
    )
