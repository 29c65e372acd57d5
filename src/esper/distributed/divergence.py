"""Do all ranks say the same? Pure: every rank compares the same rows and so raises the same error."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from esper.distributed.rows import AgreementRecord, GrowthRecord, GrowthStep, Record, RowKind
from esper.errors import LifecycleDivergence
from esper.lifecycle.alpha import AlphaMode
from esper.lifecycle.record import SlotRecord
from esper.lockstep import FieldDifference

ABSENT = "absent"
SHOWN_FIELDS = 12

# Per-slot fields in the order of their meaning: the first that differs leads the message.
_SLOT_FIELDS: Mapping[str, Callable[[SlotRecord], str]] = MappingProxyType(
    {
        "stage": lambda slot: slot.stage.name,
        "blueprint": lambda slot: slot.blueprint or "none",
        "blend": lambda slot: str(slot.blend or "none"),
        "birth": lambda slot: str(slot.birth),
        "alpha": lambda slot: repr(slot.alpha),
        "alpha target": lambda slot: repr(slot.alpha_target),
        "alpha mode": lambda slot: AlphaMode(slot.alpha_mode).name,
        "alpha ticks left": lambda slot: str(slot.ticks_left),
        "epochs in stage": lambda slot: str(slot.epochs_in_stage),
    }
)


def require_same(rows: Mapping[str, Sequence[tuple[int, str]]], where: str) -> None:
    """Raise LifecycleDivergence unless each field of `rows` has one value on all ranks.

    `rows` maps a field to (rank, value as text) pairs, the most meaningful field first; `where` names the
    exchange. The guilty are the minority in the first field that differs. At two ranks, or without a
    majority, all are.
    """
    differing = tuple(
        FieldDifference(name, tuple(values))
        for name, values in rows.items()
        if len({text for _, text in values}) > 1
    )
    if differing:
        raise LifecycleDivergence(
            _message(differing, where), guilty=divergent_ranks(differing[0]), fields=differing
        )


def compare(records: Mapping[int, Record], where: str) -> None:
    """Raise LifecycleDivergence unless the records of all ranks (by global rank) say the same.

    Metric sums, measurements, announced batch counts, flags of panic and stop, and random bits may differ
    and are not compared.
    """
    orders = {tuple(slot.slot_id for slot in _slots(record)) for record in records.values()}
    # In different orders slots can't be set side by side: their own fields would be noise.
    described = {rank: _describe(record, with_slots=len(orders) == 1) for rank, record in records.items()}
    names = dict.fromkeys(name for texts in described.values() for name in texts)
    rows = {name: [(rank, texts.get(name, ABSENT)) for rank, texts in described.items()] for name in names}
    require_same(rows, where)


def require_same_words(
    texts: Callable[[str], Mapping[int, str]], mine: Mapping[str, str], where: str
) -> None:
    """Collective: every rank, same order. Raise LifecycleDivergence naming what differs.

    `texts` exchanges a text a rank, `mine` has in words what this rank's digests were made of.
    """
    everyone = {rank: json.loads(text) for rank, text in texts(json.dumps(dict(mine))).items()}
    names = dict.fromkeys(name for settings in everyone.values() for name in settings)
    require_same(
        {name: [(rank, settings.get(name, ABSENT)) for rank, settings in everyone.items()] for name in names},
        where,
    )


def divergent_ranks(difference: FieldDifference) -> tuple[int, ...]:
    """The ranks outside of the largest group of equal values; all ranks where no group is the largest."""
    groups = _groups(difference)
    sizes = sorted((len(ranks) for ranks in groups.values()), reverse=True)
    if len(sizes) > 1 and sizes[0] == sizes[1]:
        return tuple(rank for rank, _ in difference.values)
    return tuple(sorted(rank for ranks in groups.values() if len(ranks) < sizes[0] for rank in ranks))


def ranks_text(ranks: Sequence[int]) -> str:
    """`rank 2` or `ranks 0, 1, 3`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _groups(difference: FieldDifference) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for rank, text in difference.values:
        groups[text].append(rank)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[1])))


def _sentence(difference: FieldDifference) -> str:
    parts = [f"{text} on {ranks_text(ranks)}" for text, ranks in _groups(difference).items()]
    return f"{difference.field}: {'; '.join(parts)}"


def _message(differing: Sequence[FieldDifference], where: str) -> str:
    lines = [f"ranks disagree in {where}: {_sentence(differing[0])}"]
    if len(differing) > 1:
        lines.append("also different:")
        lines += [f"  {_sentence(difference)}" for difference in differing[1:SHOWN_FIELDS]]
    if len(differing) > SHOWN_FIELDS:
        lines.append(f"  and {len(differing) - SHOWN_FIELDS} more fields")
    return "\n".join(lines)


def _slots(record: Record) -> tuple[SlotRecord, ...]:
    return record.slots if isinstance(record, AgreementRecord) else ()


def _describe(record: Record, with_slots: bool) -> dict[str, str]:
    if isinstance(record, AgreementRecord):
        return _describe_agreement(record, with_slots)
    return _describe_growth(record)


def _describe_agreement(record: AgreementRecord, with_slots: bool) -> dict[str, str]:
    texts = {
        "run": f"{record.run_id:x}",
        "config": f"{record.config_digest:x}",
        "slots": ", ".join(slot.slot_id for slot in record.slots),
        "epoch": str(record.epoch),
    }
    if with_slots:
        for name, text_of in _SLOT_FIELDS.items():
            texts |= {f"{name} of {slot.slot_id}": text_of(slot) for slot in record.slots}
    texts["previous decision"] = f"{record.previous_decision:x}"
    texts["optimiser steps"] = str(record.steps)
    texts["growth RNG"] = f"{record.growth_rng:x}"
    texts["compilation"] = "on" if record.compile_state else "off"
    what = "model layout" if record.kind is RowKind.START else "model fingerprint"
    texts[what] = f"{record.fingerprint:x}"
    return texts


def _describe_growth(record: GrowthRecord) -> dict[str, str]:
    texts = {"run": f"{record.run_id:x}", "epoch": str(record.epoch)}
    texts["actions"] = ", ".join(map(_action, record.steps))
    texts["decision"] = f"{record.decision:x}"
    for step in record.steps:
        if step.gate_passed is not None:
            texts[f"gate of {step.slot_id}"] = "passed" if step.gate_passed else "refused"
    for step in record.steps:
        texts[_action(step)] = step.error or "ready"
        texts[f"fingerprint of the seed for {step.slot_id}"] = f"{step.fingerprint:x}"
    return texts


def _action(step: GrowthStep) -> str:
    return " ".join(filter(None, (step.action, step.slot_id, step.blueprint, step.manner)))
