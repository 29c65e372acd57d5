"""Every fault of the lifecycle and of its data, at each epoch of a whole life, on each rank of 2 and 4.

None is silent and none hangs: each ends by its name, or is no fault and is reported. The whole table is in
the stress group, a sample of each row runs always.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_esper_ddp.handle import DDP
from tests.integration.miniature import EPOCHS, STEPS, alike, miniature, miniature_task

ALL = tuple(range(1, EPOCHS + 1))
BATCHES = "esper.training.tasks.task:ShardedTask.train_batches"
SIZES = (2, 4)
# Of two ranks that differ nobody knows which is wrong, nor which of two that wait for each other.
OF_ALL = ("lifecycle", "mismatch", "wait_cycle")
DECIDED = {"decided": True, "blueprint": "attention"}  # which nobody else does


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a kind of fault shows as; without `shows` the run is well, and `reported` says how it tells."""

    kind: str
    shows: str | None = None
    epochs: tuple[int, ...] = ALL
    named: str | None = None  # part of the field that differs
    reported: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = STEPS  # of an epoch
    always: int = 1  # cases that run outside of the stress group, too

    @property
    def name(self) -> str:
        """Kind and arguments."""
        return "-".join([self.kind, *(key for key in self.arguments if key != "target")])


TABLE = (
    Row(kind="skip_gate", epochs=(2, 3, 4, 5, 6), shows="lifecycle", named="gate of"),
    Row(kind="skip_agreement", shows="mismatch"),
    Row(kind="slot_order", shows="lifecycle", named="slots"),
    Row(kind="extra_tick", shows="lifecycle", named="r0c"),
    Row(kind="missed_tick", shows="lifecycle", named="r0c"),
    Row(kind="other_thresholds", shows="lifecycle", named="config gates.min_contribution"),
    Row(kind="override_alone", shows="lifecycle", named="alpha of r0c0"),
    Row(kind="rng_shift", shows="lifecycle", named="growth RNG"),
    Row(kind="germinate_alone", epochs=(1, 2, 10), shows="lifecycle", named="stage of"),
    Row(kind="germinate_alone", epochs=(1,), shows="lifecycle", named="stage of", arguments={"after": True}),
    Row(kind="germinate_alone", epochs=(1, 2, 10), shows="lifecycle", arguments=DECIDED),
    Row(kind="other_blueprint", epochs=(1, 2, 10), shows="lifecycle", named="actions"),
    Row(kind="prune_alone", epochs=(2, 3, 4, 5, 6), shows="lifecycle", named="stage of"),
    Row(kind="prune_alone", epochs=(1, 2, 3, 4, 5), shows="lifecycle", arguments={"after": True}),
    Row(kind="prune_alone", epochs=(2, 3, 4, 5, 6), shows="lifecycle", arguments={"decided": True}),
    Row(kind="restore_alone", shows="lifecycle", named="model fingerprint"),
    Row(kind="optimizer_misses_seed", epochs=ALL[2:], shows="lifecycle", named="model fingerprint"),
    Row(kind="wrapper_not_rebuilt", epochs=(3, 4), shows="lifecycle", named="parameter slots.r0c"),
    Row(kind="panic_alone", reported="panicking"),
    Row(kind="local_verdict", epochs=(3, 4, 6), reported="dissent"),
    Row(
        kind="compile_fallback",
        reported="fallback",
        config={"compile": {"enabled": True, "backend": "eager"}},
        always=0,  # each costs seconds
    ),
    Row(kind="uneven_loader", shows="wait_cycle", arguments={"target": BATCHES}, steps=3),
    Row(kind="nan_batch", reported="panicking", arguments={"target": BATCHES}),
    Row(kind="other_order", arguments={"target": BATCHES}),
    Row(kind="worker_death", shows="raised", arguments={"target": BATCHES}),
)


def cases() -> Iterator[Any]:
    """Each place of each row, those outside of the sample marked as stress."""
    drawn = random.Random(5)
    for row in TABLE:
        places = [(epoch, size, rank) for epoch in row.epochs for size in SIZES for rank in range(size)]
        always = drawn.sample(places, row.always)
        for epoch, size, rank in places:
            marks = [
                pytest.mark.ddp(size),
                pytest.mark.ddp_fault(row.kind, rank=rank, epoch=epoch, **row.arguments),
            ]
            if row.shows is not None:
                guilty = [rank] if size > 2 or row.shows not in OF_ALL else None
                marks.append(pytest.mark.ddp_expect(row.shows, guilty=guilty, field=row.named))
            if (epoch, size, rank) not in always:
                marks.append(pytest.mark.stress)
            yield pytest.param(row, epoch, rank, marks=marks, id=f"{row.name}-{epoch}-{rank}of{size}")


@pytest.mark.parametrize(("row", "epoch", "rank"), list(cases()))
def test_it_ends_as_the_table_says(ddp: DDP, row: Row, epoch: int, rank: int) -> None:
    task = miniature_task(ddp.rank, ddp.world_size, steps=row.steps)
    with miniature(ddp.rank, ddp.world_size, task=task, **row.config) as trainer:
        trainer.run()
        ddp.assert_same(alike(trainer))
    result = trainer.history.epochs[epoch - 1]
    # Its batch makes BatchNorm's mean nan, by which the others may come to panic in the same epoch, too.
    assert rank in result.panicking if row.reported == "panicking" else result.panicking == ()
    told = {ranks for each in result.dissent for ranks in each.ranks}
    assert told == ({rank} if row.reported == "dissent" else set())
    assert trainer.compiler.fallbacks == (row.reported == "fallback")
