"""`python -m esper.lockstep explain`: what a run came to, from the files that it has left."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from esper.lockstep.errors import LedgerError
from esper.lockstep.frames import INTERNAL
from esper.lockstep.postmortem.afterwards import SILENT_AFTER, Afterwards
from esper.lockstep.postmortem.files import Left, run_in, survey
from esper.lockstep.postmortem.telling import outcome_text, silence
from esper.lockstep.proof.finding import SUSPECTED, Finding, Patience, Where
from esper.lockstep.proof.prove import prove
from esper.lockstep.rank.stacks import stack_path
from esper.lockstep.report.diagnosis import Diagnosis, RankEnd, Report
from esper.lockstep.report.message import diagnosis_of
from esper.lockstep.report.outcome import report_of
from esper.lockstep.report.verdict import read_report
from esper.lockstep.run.evidence import last_words

STATUS = {"clean": 0, "failed": 1, "diverged": 3, "inconclusive": 4}
_ENDLESS = Patience(math.inf, math.inf, math.inf)
# The proof waits for what may follow at once: another rank that leaves by the same line, the end of a process
# that a peer has noticed. Seconds after the last sign of life, when nothing can follow any more.
_SETTLED = 1.0
# What a shell calls a process that ended since it was told to: 128 and SIGHUP, SIGINT, SIGTERM.
_TOLD_TO_END = ("KeyboardInterrupt", "status 129", "status 130", "status 143")


@dataclass(frozen=True)
class Explanation:
    """What is known of a run, for a program and for a person."""

    report: Report
    text: str

    @property
    def status(self) -> int:
        """The exit status for the shell."""
        return STATUS[self.report.verdict]


def explain(folder: Path) -> Explanation:
    """What happened in the run that is in `folder`, or in the newest attempt in it.

    Raises LedgerError where there is no run at all, and nothing for what is in its files.
    """
    run_dir, chosen = run_in(folder)
    left = survey(run_dir)
    try:
        found = _told_by_the_living(left) or _from_ledgers(left)
    except Exception as error:  # noqa: BLE001  an analyser that fails must not pass what it analyses
        said = f"inconclusive: lockstep itself failed on what is there ({type(error).__name__}: {error})"
        found = Explanation(_nothing_known(left), "\n".join([said, *_not_there(left)]))
    finally:
        left.close()
    return replace(found, text=f"{chosen}\n{found.text}") if chosen else found


def _told_by_the_living(left: Left) -> Explanation | None:
    """The verdict of the watchdog, which could ask the ranks."""
    try:
        report = read_report(left.run_dir)
        if report is None or not report.diagnoses:
            return None
        if left.manifest is not None and len(report.ranks) != left.manifest.world_size:
            ranks = f"{len(report.ranks)} ranks, and this one has {left.manifest.world_size}"
            raise LedgerError(str(left.run_dir / "verdict.json"), f"is of a run of {ranks}")
    except LedgerError as error:
        left.wrong.append(f"{Path(error.path).name} {error.reason}")
        return None
    return Explanation(report, "\n".join(diagnosis.message for diagnosis in report.diagnoses))


def _from_ledgers(left: Left) -> Explanation:
    if not left.witnesses:
        text = "\n".join(["inconclusive: no rank has left a ledger that can be read", *_not_there(left)])
        return Explanation(_nothing_known(left), text)
    after = Afterwards(left)
    finding = _finding(after, left)
    stopped = _told_to_end(finding) if finding is not None else None
    if finding is not None and stopped is None:
        diagnosis = _diagnosis(after, left, finding)
        text = "\n".join([diagnosis.message, *_not_there(left)])
        return Explanation(report_of("diverged", after.view.ranks, diagnosis), text)
    verdict, said = outcome_text(after, left, stopped)
    return Explanation(report_of(verdict, after.view.ranks, None), "\n".join([said, *_not_there(left)]))


def _finding(after: Afterwards, left: Left) -> Finding | None:
    """What is proved; where everything is there, also what only time decides."""
    view, now = after.view, after.end + _SETTLED
    whole = len(left.witnesses) == left.world_size and not view.matching.unreadable
    proved = prove(view, now, _ENDLESS, whole=False)
    if proved is not None or not whole:
        return proved
    finding = prove(view, now, _patience(left), final=not view.matching.any_offered)
    return None if finding is not None and _may_be_the_end(after, finding) else finding


def _may_be_the_end(after: Afterwards, finding: Finding) -> bool:
    """Whether a rank seems late only since all were killed, one after the other: the others' calls break at
    that, too.
    """
    lasted = max(((one.times.wait_ended or after.end) - one.issued for one in finding.waiting), default=0.0)
    heard = any(after.silent_for(rank) is None for rank in finding.guilty)
    return finding.kind in SUSPECTED and heard and lasted <= SILENT_AFTER


def _patience(left: Left) -> Patience:
    """That of the run. A rank that falls silent is not known to be stopped: it may hold the GIL."""
    if left.manifest is None:
        return _ENDLESS
    running, _, compiling = left.manifest.patience
    return Patience(running + _SETTLED, running + _SETTLED, compiling)


def _told_to_end(finding: Finding) -> str | None:
    """What to say where whoever is guilty was only told to end, from outside, as all others were."""
    told = [where.detail for where in finding.guilty.values() if where is not None and where.detail]
    if len(told) < len(finding.guilty) or not all(one.startswith(_TOLD_TO_END) for one in told):
        return None
    return told[0].rstrip(": ")


def _diagnosis(after: Afterwards, left: Left, finding: Finding) -> Diagnosis:
    guilty = {rank: _where(after, left, rank, where) for rank, where in finding.guilty.items()}
    return diagnosis_of(
        replace(finding, guilty=guilty),
        decided=after.end,
        last_settled=after.view.matching.last_settled(finding.group.removeprefix("p2p:")),
    )


def _where(after: Afterwards, left: Left, rank: int, where: Where | None) -> Where | None:
    """Where a guilty rank was, of whom its records say only that it did not come."""
    if where is not None and (where.state != "running" or where.site is not None):
        return where
    last = after.view.ranks[rank].last
    stacks = stack_path(left.run_dir, rank)
    died_at = last_words(stacks, INTERNAL) if stacks.is_file() else None
    if died_at is not None:
        return Where("killed", site=died_at, detail="a fatal signal came here")
    state = "running" if after.silent_for(rank) is None else "silent"
    return Where(state, site=last.site if last else None, detail=silence(after, rank) or "its last call")


def _not_there(left: Left) -> list[str]:
    return ["not all is there:", *(f"  {line}" for line in left.wrong)] if left.wrong else []


def _nothing_known(left: Left) -> Report:
    nothing = {"op": None, "site": None}
    ranks = range(max(1, left.world_size))
    return Report("inconclusive", (), tuple(RankEnd(rank, None, None, nothing) for rank in ranks))
