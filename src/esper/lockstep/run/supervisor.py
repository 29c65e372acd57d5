"""Watches the ranks of one run from outside: reads their ledgers, proves, takes evidence. It ends nobody
itself.
"""

from __future__ import annotations

import selectors
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from esper.lockstep.proof.finding import Finding, Patience, Where
from esper.lockstep.proof.prove import only_time_decides, prove
from esper.lockstep.proof.suspicion import late
from esper.lockstep.proof.view import Ended, View
from esper.lockstep.rank.stacks import stack_path
from esper.lockstep.record.answers import write_answer
from esper.lockstep.record.audits import read_audit
from esper.lockstep.record.entry import Entry, Kind, Site, Times
from esper.lockstep.record.reader import LedgerReader
from esper.lockstep.report.diagnosis import Diagnosis, Report
from esper.lockstep.report.message import diagnosis_of
from esper.lockstep.report.outcome import report_of
from esper.lockstep.run.evidence import BySignal, StackRequests, current_line, last_words, sleeps_in_torch
from esper.lockstep.run.lateness import LateWatch
from esper.lockstep.run.natives import NativeCalls
from esper.lockstep.run.process import (
    SleepWatch,
    context_switches,
    ending,
    state,
    state_and_ending,
)
from esper.lockstep.run.quiet import Quiet
from esper.lockstep.run.starvation import Starvation

# Between two proofs while no record comes, seconds: what only time decides is no more precise than this.
_IDLE_PROOF = 0.02
# The same where nothing but time can decide. A healthy program is nearly always there, and has its processors
# for itself.
_QUIET_PROOF = 0.05
# Seconds until the next poll: each takes some 0.1 ms from the ranks, and of their processor's caches.
_POLL, _QUIET_POLL = 0.004, 0.008
# A thread that computes yields its processor at least this often, and a wait for a lock is shorter.
_ASLEEP_AFTER = 0.02
_LOOK_WITHIN = 0.05
# A killed process with gigabytes to give back took 70 ms; one that can't end must not hold a verdict up.
_REAPED_WITHIN = 1.0
# Ranks that give up on one wait ask within so many seconds, and are told the same: a look at a guilty rank's
# line for each of them would come too late for the last.
_ONE_OCCASION = 1.0
# Who had no processor for a while is late only after as much more; nothing is said before, and then for good.
_ANSWERED_WITHIN = 1.0


class Supervisor:
    """One run of N ranks. `poll` never waits; its caller owns the processes and tells when one has ended."""

    def __init__(
        self,
        run_dir: Path,
        pids: Sequence[int],
        *,
        patience: Patience,
        readers: Sequence[LedgerReader] | None = None,
        begun: str | None = None,
        internal: tuple[str, ...] = (),
        wake: bool = True,
        show: Callable[[str], None] | None = lambda text: None,
        requests: StackRequests | None = None,
        gap: float = 0.5,
    ) -> None:
        """`begun`: only what ranks record after the BEGIN of that name counts (ranks that live on between
        tests). `wake`: a stopped rank may be continued for its stack, since the run ends at a diagnosis.
        `show` gets a line for each rank that is late; None: nobody is looked at for that. `requests`: how
        ranks are asked for their stacks; by default by a signal. `gap`: for a time between two polls that is
        longer nobody is late.
        """
        self.run_dir, self.pids, self.patience = run_dir, list(pids), patience
        self._readers = list(readers or (LedgerReader(run_dir, rank) for rank in range(len(pids))))
        self._internal = internal
        self._wake = wake
        self._begun = [begun is None] * len(self.pids)
        # An earlier program of the same name does not count.
        self._from = [reader.position for reader in self._readers]
        self._name = begun
        self._sleep = SleepWatch(_ASLEEP_AFTER)
        self._natives = [NativeCalls(reader) for reader in self._readers]
        self._in_torch: dict[tuple[int, int], tuple[int | None, bool]] = {}
        self._stopped: dict[int, float] = {}
        self._starvation = Starvation(self.pids, patience.running, gap)
        self._compiled: dict[int, tuple[float, float]] = {}
        self._alive_at: dict[int, float] = {}
        self._held_since: float | None = None
        self._requests = requests or BySignal()
        self._late = None if show is None else LateWatch(self.line_of, show)
        self.view = View(len(self.pids), self)
        self._quiet = Quiet(self._readers, self.view.matching)
        self._only_time_decides = False
        self._next_proof = 0.0
        self.next_poll = _POLL  # seconds that its caller may let pass until then
        self.diagnosis: Diagnosis | None = None
        self._said = 0.0, ""  # when, to those who asked
        self.decided_at = 0.0  # CLOCK_MONOTONIC, with the diagnosis
        self.broken: str | None = None  # traceback of our own failure: the run is then inconclusive

    def ended(self, rank: int, code: int | None) -> None:
        """`rank` has been reaped; `code` as waitpid has it, None where nobody here was told."""
        now = time.monotonic()
        self._guarded(self.read)  # what it wrote last was before its end
        # A kill is noticed after its peers have noticed it, but it was not before the last look.
        killed = code is not None and code < 0
        self.view.ranks[rank].ended = Ended(code, self._alive_at.get(rank, now) if killed else now)
        self._next_proof = 0.0

    def poll(self, *, final: bool = False) -> Diagnosis | None:
        """Read what is new and prove; the first diagnosis stays. `final`: nobody will write anything more."""
        self._guarded(partial(self._poll, final) if self.diagnosis is None else self._go_on)
        return self.diagnosis

    def _go_on(self) -> None:
        """An observed run goes on after its diagnosis, and may come to ask."""
        self.read()
        self._answer()

    def _guarded(self, look: Callable[[], object]) -> None:
        if self.broken is not None:
            return
        try:
            look()
        except Exception:  # noqa: BLE001  an analyser that fails must not end, or pass, what it analyses
            self.broken = traceback.format_exc()

    def wait(self, selector: selectors.EpollSelector) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for what the selector watches, or until it is time to poll; what `selector.select` gave."""
        if self._only_time_decides and self.broken is None and self._quiet.wait(selector.fileno()):
            return selector.select(0)
        return selector.select(self.next_poll)

    def _poll(self, final: bool) -> Diagnosis | None:
        moved = self.read()
        self._answer()
        now = time.monotonic()
        if not (moved or final or now >= self._next_proof):
            return None
        quiet = self._only_time_decides = only_time_decides(self.view)
        self.next_poll = _QUIET_POLL if quiet else _POLL
        if quiet and not final and now < self._next_proof:
            return None  # and it stays so until a record comes, or a process ends
        self._next_proof = now + (_QUIET_PROOF if quiet else _IDLE_PROOF)
        self._look(now)
        finding = prove(self.view, now, self.patience, final=final)
        if self._late is not None and finding is None and not moved and not final:
            self._late.follow(late(self.view, self.view.waits(), now), now)
        if (
            finding is None
            or not self._confirmed(finding, self.patience, final)
            or (not final and self._held(finding, now))
        ):
            return None
        self.decided_at = time.monotonic()
        self.diagnosis = self._diagnosed(finding, self.decided_at, wake=self._wake)
        return self.diagnosis

    def _diagnosed(self, finding: Finding, decided: float, *, wake: bool) -> Diagnosis:
        finding = self._with_evidence(finding, wake=wake)
        return diagnosis_of(
            finding,
            decided=decided,
            last_settled=self.view.matching.last_settled(finding.group.removeprefix("p2p:")),
        )

    def _answer(self) -> None:
        """Tell the ranks that have asked. Nothing comes of it here: what is late by their patience is a
        verdict by ours only.
        """
        for seen in self.view.ranks:
            for question in list(seen.questions):
                patience = float(question.detail.get("patience", self.patience.running))
                said = self._sentence(patience)
                if said or time.monotonic() - question.issued > _ANSWERED_WITHIN:
                    write_answer(self.run_dir, seen.rank, question.number, said)
                    seen.questions.remove(question)

    def _sentence(self, patience: float) -> str:
        """What could be said with so much patience at most; "" for nothing."""
        if self.diagnosis is not None:
            return self.diagnosis.message
        now = time.monotonic()
        said_at, said = self._said
        if said and now - said_at < _ONE_OCCASION:
            return said
        # Who asks gives up, whatever the others do; that one compiles is said with its line.
        asked = Patience(
            min(patience, self.patience.running), min(patience, self.patience.stopped), compiling=0.0
        )
        finding = prove(self.view, now, asked)
        if finding is None or not self._confirmed(finding, asked, final=False):
            return ""
        text = self._diagnosed(finding, now, wake=False).message  # the run goes on, as it was
        self._said = now, text
        return text

    def _confirmed(self, finding: Finding, patience: Patience, final: bool) -> bool:
        """Look once more: the ledgers were read one after the other, and the last may be older than the
        first.
        """
        if not self.read():
            return True
        again = prove(self.view, time.monotonic(), patience, final=final)
        return again is not None and (again.kind, again.group, again.sequence, again.guilty.keys()) == (
            finding.kind,
            finding.group,
            finding.sequence,
            finding.guilty.keys(),
        )

    def _held(self, finding: Finding, now: float) -> bool:
        """Whether to wait for a process that is ending: what it did to its peers is seen before its own end
        is, and would be taken for theirs.
        """
        ends = {seen.rank for seen in self.view.ranks if seen.ended is None and ending(self.pids[seen.rank])}
        if ends <= finding.guilty.keys():
            self._held_since = None
            return False
        self._held_since = now if self._held_since is None else self._held_since
        return now - self._held_since < _REAPED_WITHIN

    def remember(self, now: float) -> None:
        """Note for how long each rank had no processor: also by who sees no need to poll."""
        self._starvation.look(now)

    def _look(self, now: float) -> None:
        """Note which processes are stopped, and which are not about to end."""
        self.remember(now)
        for seen in self.view.ranks:
            if seen.ended is not None:
                self._stopped.pop(seen.rank, None)
                continue
            letter, ends = state_and_ending(self.pids[seen.rank])
            if not ends:
                self._alive_at[seen.rank] = now
            if letter == "D":
                self._starvation.in_io(seen.rank)
            if letter in "Tt":
                self._stopped.setdefault(seen.rank, now)
            else:
                self._stopped.pop(seen.rank, None)

    def read(self) -> bool:
        """Take what the ranks have written since the last look; whether there was anything."""
        moved = False
        if self._only_time_decides:
            for rank, number in self._quiet.pass_over():
                self.view.ranks[rank].fold(self._readers[rank].entry(number))
                moved = True
        for rank, reader in enumerate(self._readers):
            entries = list(reader.new())
            if entries and not self._begun[rank]:
                start = next(
                    (
                        index
                        for index, entry in enumerate(entries)
                        if entry.kind is Kind.BEGIN and entry.detail.get("name") == self._name
                    ),
                    None,
                )
                if start is not None:
                    entries = entries[start:]
                elif (lost := reader.begun_unread()) is not None and lost >= self._from[rank]:
                    entries = [entry for entry in entries if entry.number > lost]
                else:
                    continue
                self._begun[rank] = True
            if entries:
                moved = True
                self._alive_at[rank] = max(self._alive_at.get(rank, 0.0), entries[-1].issued)
                self.view.fold(entries)
        return moved

    def pass_over(self) -> None:
        """Leave what has been written since the last look unread."""
        for reader in self._readers:
            reader.skip()

    def _with_evidence(self, finding: Finding, *, wake: bool) -> Finding:
        """Ask each guilty rank that lives and is in no collective for its current line, before anything is
        torn down.
        """
        guilty: dict[int, Where | None] = dict(finding.guilty)
        for rank, where in finding.guilty.items():
            if where is not None and where.state == "killed":
                guilty[rank] = self._last_seen(rank, where)
            if where is None or (where.state == "running" and where.site is None):
                ask = wake or self._may_be_asked(rank)
                name, site = self._line(rank, self._requests.within, wake=wake, ask=ask)
                last = self.view.ranks[rank].last
                guilty[rank] = Where(
                    name, site=site or (last.site if last else None), detail=self._compiling(rank)
                )
        return replace(finding, guilty=guilty)

    def _compiling(self, rank: int) -> str | None:
        """What to say of a rank that compiles now."""
        now = time.monotonic()
        since = self._readers[rank].compiled(now)[1]
        return None if since is None else f"has been compiling for {now - since:.1f} s"

    def _last_seen(self, rank: int, where: Where) -> Where:
        """A killed rank can't be asked any more; if it was late before, it was looked at then."""
        seen = self.view.ranks[rank]
        look = None if self._late is None else self._late.last_look(rank)
        died_at = last_words(stack_path(self.run_dir, rank), self._internal)
        if died_at is not None:
            return replace(where, site=died_at)
        if look is None or look.site is None or (seen.last is not None and seen.last.issued > look.at):
            return where
        ago = (seen.ended.at if seen.ended else look.at) - look.at
        return replace(where, site=look.site, detail=f"{where.detail}; it was here {ago:.1f} s before")

    def line_of(self, rank: int, within: float = _LOOK_WITHIN) -> tuple[str, Site | None]:
        """State and line of a living rank that may be healthy: never woken. Waits `within` seconds for its
        answer, hardly at all unless told otherwise, since a proof about others may be due.
        """
        ask = self._may_be_asked(rank)
        name, site = self._line(rank, within, wake=False, ask=ask)
        return name if ask or name == "stopped" else "compiling", site

    def _line(self, rank: int, within: float, *, wake: bool, ask: bool) -> tuple[str, Site | None]:
        path, pid = stack_path(self.run_dir, rank), self.pids[rank]
        return current_line(pid, path, self._internal, within, wake=wake, ask=ask, requests=self._requests)

    def _may_be_asked(self, rank: int) -> bool:
        """Whether its line is worth a signal while the run goes on. CPython 3.11 dies of one in some 10,000
        that meet it in Python code, and what a rank does that compiles is known.
        """
        return self._compiling(rank) is None

    def compiled_in_all(self, rank: int) -> float:
        """How many seconds the rank has compiled until now."""
        return self._readers[rank].compiled(time.monotonic())[0]

    def report(self, verdict: str) -> Report:
        """The run as `esper.lockstep.report/1` has it."""
        return report_of(verdict, self.view.ranks, self.diagnosis)

    # What the proof asks about live ranks.

    def audit(self, entry: Entry) -> tuple[int, ...] | None:
        return read_audit(self.run_dir, entry.rank, entry.elements)

    def times(self, entry: Entry) -> Times | None:
        return self._readers[entry.rank].times(entry.number)

    def threads(self, rank: int) -> int:
        return self._readers[rank].threads()

    def under_way(self, entry: Entry, besides: Collection[int]) -> bool:
        return self._natives[entry.rank].under_way(entry.thread, besides)

    def asleep(self, entry: Entry) -> bool:
        pid, thread = self.pids[entry.rank], entry.thread
        if not self._sleep.asleep(pid, thread):
            return False
        # Asking wakes it, so the answer holds for as long as it has not run since.
        asked = self._in_torch.get((entry.rank, thread))
        if asked is None or asked[0] != context_switches(pid, thread):
            path = stack_path(self.run_dir, entry.rank)
            answer = sleeps_in_torch(pid, thread, path, self._requests)
            asked = self._in_torch[entry.rank, thread] = context_switches(pid, thread), answer
            self._sleep.asleep(pid, thread)
        return asked[1]

    def state(self, rank: int) -> str:
        return state(self.pids[rank])

    def starved(self, rank: int, since: float) -> float:
        return self._starvation.since(rank, since)

    def compiled(self, rank: int, since: float) -> float:
        now = time.monotonic()
        compiled, begun = self._readers[rank].compiled(now)
        known = self._compiled.get(rank)
        if known is None or known[0] != since:
            # The part before this first look counts, too.
            before = 0.0 if begun is None else now - max(since, begun)
            known = self._compiled[rank] = since, compiled - before
        return compiled - known[1]

    def stopped_since(self, rank: int) -> float | None:
        return self._stopped.get(rank)
