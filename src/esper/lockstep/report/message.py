"""The sentence that a person reads first, and the lines below it."""

from __future__ import annotations

from collections.abc import Mapping

from esper.lockstep.proof.finding import Finding, Where, ranks_text
from esper.lockstep.proof.matching import Slot
from esper.lockstep.proof.suspicion import Late
from esper.lockstep.record.entry import Entry, Kind
from esper.lockstep.report.diagnosis import Diagnosis, GuiltyAt, Waiting, short_site, site_text, tensor_text


def diagnosis_of(finding: Finding, *, decided: float, last_settled: Slot | None) -> Diagnosis:
    """The record of one finding; `decided` is when the proof was complete, in seconds of CLOCK_MONOTONIC."""
    first = finding.waiting[0] if finding.waiting else None
    called = first is not None and first.kind is Kind.COLLECTIVE
    return Diagnosis(
        kind=finding.kind,
        guilty=tuple(sorted(finding.guilty)),
        group=finding.group,
        sequence=finding.sequence,
        waiting=Waiting(
            ranks=tuple(sorted({entry.rank for entry in finding.waiting} - finding.guilty.keys())),
            op=first.op if first and called else None,
            reduce_op=first.reduce_op if first else None,
            dtype=first.dtype if first else None,
            shape=first.shape if first else None,
            site=site_text(first.site) if first else None,
            tag=first.tag if first and called else None,
        ),
        guilty_at={
            rank: GuiltyAt("running")
            if where is None
            else GuiltyAt(where.state, where.op, site_text(where.site), where.tag, where.detail)
            for rank, where in sorted(finding.guilty.items())
        },
        seconds=round(max(0.0, decided - (finding.decidable or finding.since)), 4),
        message=message(finding, last_settled),
        starved=finding.starved,
        compiled=finding.compiled,
        fields=_differing(finding),
    )


def _differing(finding: Finding) -> tuple[str, ...]:
    """What of `COMPARED` the sides have otherwise; of a tensor or value the sentence that names it."""
    if finding.subject:
        return (finding.subject,)
    if finding.kind == "peer":
        return ("peer",)
    if finding.kind not in ("mismatch", "order", "group") or not finding.waiting:
        return ()
    one = finding.waiting[0]
    others = [where.entry for where in finding.guilty.values() if where is not None and where.entry]
    # A send and the receive that it meets are two operations, of two roots and tags, by their nature.
    names = ("dtype", "shape", "elements") if one.group.startswith("p2p:") else _COMPARED_AS_IT_IS
    found = [name for name in names if any(getattr(one, name) != getattr(other, name) for other in others)]
    if any(one.detail.get("same") != other.detail.get("same") for other in others):
        found.append(_SAME.get(one.op, "arguments"))
    return tuple(found)


_COMPARED_AS_IT_IS = ("op", "reduce_op", "root", "dtype", "shape", "elements", "tag")
_SAME = {"new_group": "ranks", "init_process_group": "world_size"}


def message(finding: Finding, last_settled: Slot | None) -> str:
    """Headline, then one line a side."""
    rows = [_waiting_row(entries) for entries in _by_place(finding)]
    rows += _guilty_rows(finding.guilty)
    of_pairs = finding.group.startswith("p2p:")
    if last_settled is not None and (of_pairs or last_settled.sequence < finding.sequence):
        entry = next(iter(last_settled.entries.values()))
        rows.append((f"last in common: {_call(entry)}", short_site(entry.site), ""))
    wide = max(len(row[0]) for row in rows)
    lines = [f"  {left:<{wide}}  {site}{'  <- ' + note if note else ''}" for left, site, note in rows]
    return "\n".join([_headline(finding), *lines])


def late_text(late: Late, now: float) -> str:
    """Who waits for whom in what, and for how long."""
    entry = late.entries[0][1]
    waiting = ranks_text({waiter.rank for _, waiter in late.entries})
    verb = "waits" if waiting.startswith("rank ") else "wait"
    lasts = f"{now - late.since:.1f} s"
    return f"late: {waiting} {verb} for rank {late.rank} in {entry.op} #{entry.sequence} for {lasts}"


def _call(entry: Entry) -> str:
    name = entry.group.removeprefix("p2p:")
    # A send or receive is numbered by its rank alone, which tells the other nothing.
    number = "" if entry.group != name else f" #{entry.sequence}"
    return f"{entry.op}{number}{'' if name == 'default' else f' of {name}'}"


def _headline(finding: Finding) -> str:
    if finding.subject:
        return finding.subject
    guilty = ranks_text(finding.guilty)
    first = finding.waiting[0] if finding.waiting else None
    compares = finding.kind in ("mismatch", "order")
    awaited = f"{_call(first)}{tensor_text(first, full=compares)}" if first else "a collective"
    verb = _ENDED.get(finding.kind)
    if finding.kind == "missing" and first is not None and first.group.startswith("p2p:"):
        did = "never sent what" if first.op == "recv" else "never received what"
        return (
            f"{guilty} {did} rank {first.rank} {'waits for' if first.op == 'recv' else 'sends'} in {awaited}"
        )
    if finding.kind == "missing" and len(finding.guilty) > len(finding.waiting) == 1 and first is not None:
        # Who left early and who made a call too many look alike: both are said.
        return f"{guilty} never entered {awaited}, in which rank {first.rank} waits alone"
    if verb is not None:
        return f"{guilty} {verb} {_PLACES[finding.entered] if finding.kind != 'missing' else ''}{awaited}"
    others = sorted({entry.rank for entry in finding.waiting} - finding.guilty.keys())
    plural = len(finding.guilty) > 1
    if not others or first is None:
        return f"{guilty} {_AMONG_THEMSELVES.get(finding.kind, f'are late: {finding.kind}')}: {awaited}"
    match finding.kind:
        case "peer" if first.group.startswith("p2p:"):
            return f"{guilty} name{'' if plural else 's'} another peer than rank {first.rank}, in {awaited}"
        case "group":
            return (
                f"{guilty} make{'' if plural else 's'} another group than {ranks_text(others)} in {awaited}"
            )
        case "peer" | "wait_cycle":
            return f"{guilty} and {ranks_text(others)} wait for each other: {awaited} can't complete"
        case "frozen" | "stalled":
            return f"{guilty} {'are' if plural else 'is'} late for {awaited}: {finding.kind}"
        case _:
            swapped = ": the order is swapped" if finding.kind == "order" else ""
            return f"{guilty} disagree{'' if plural else 's'} in {awaited}{swapped}"


_WIDEST = 160  # characters of an exception's text
_ENDED = {"crashed": "died", "raised": "raised", "exited": "exited", "missing": "never entered"}
_PLACES = {False: "before ", True: "in ", None: "before or in "}
# Where no side has a majority all are named.
_AMONG_THEMSELVES = {
    "mismatch": "contradict each other, none with a majority",
    "order": "contradict each other, none with a majority",
    "group": "make different groups",
    "peer": "wait for each other in sends and receives",
    "wait_cycle": "wait for each other in different collectives",
}


def _by_place(finding: Finding) -> list[list[Entry]]:
    """The waiting entries, those at one source line together."""
    places: dict[object, list[Entry]] = {}
    for entry in finding.waiting:
        if entry.rank not in finding.guilty:
            places.setdefault((entry.op, entry.group, entry.sequence, entry.site), []).append(entry)
    return list(places.values())


def _waiting_row(entries: list[Entry]) -> tuple[str, str, str]:
    ranks = [entry.rank for entry in entries]
    if entries[0].kind is Kind.AUDIT:
        return (
            f"{ranks_text(ranks)} {'agrees' if len(ranks) == 1 else 'agree'}",
            short_site(entries[0].site),
            "",
        )
    verb = "waits" if len(ranks) == 1 else "wait"
    return f"{ranks_text(ranks)} {verb} in {_call(entries[0])}", short_site(entries[0].site), ""


def _guilty_rows(guilty: Mapping[int, Where | None]) -> list[tuple[str, str, str]]:
    """One row a place: ranks that left by the same line share one."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for rank, where in sorted(guilty.items()):
        place: tuple[object, ...] = (rank,)
        if where is not None:
            entry = where.entry
            at = None if entry is None else (_call(entry), tensor_text(entry, full=True))
            place = (where.state, where.op, where.site, where.detail, at)
        alike.setdefault(place, []).append(rank)
    return [_guilty_row(ranks, guilty[ranks[0]]) for ranks in alike.values()]


def _guilty_row(ranks: list[int], where: Where | None) -> tuple[str, str, str]:
    who, several = ranks_text(ranks), len(ranks) > 1
    if where is None:
        return f"{who} {'have' if several else 'has'} not come", "(no line known)", ""
    site, be = short_site(where.site), "are" if several else "is"
    if where.entry is not None and where.entry.op == "DistributedDataParallel":
        return f"{who} {'build' if several else 'builds'} {_call(where.entry)}", site, "differs"
    if where.state == "differs":
        return who, site, "differs"
    if where.entry is not None:
        at = f"{who} {be} in {_call(where.entry)}{tensor_text(where.entry, full=True)}"
        return at, site, _first_line(where.detail) or "differs"
    did = {
        "killed": f"{'were' if several else 'was'} killed",
        "raised": "raised",
        "exited": f"{be} over",
        "stopped": f"{be} stopped",
    }.get(where.state, f"{be} {where.state}")
    if where.op is not None and where.state != "raised":
        did = f"called {where.op}"
    return f"{who} {did}", site, _first_line(where.detail)


def _first_line(text: str | None) -> str:
    """What of an exception's text fits a row; the JSON has it in full."""
    first = (text or "").partition("\n")[0]
    return first if len(first) <= _WIDEST else first[: _WIDEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
