"""A run in one picture: accuracy, each slot's stage, and its alpha, over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from esper.errors import DataError
from esper.lifecycle.record import SlotRecord
from esper.lifecycle.stage import Stage
from esper.training.history import EpochResult, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Cooldown in greys, growth from light to dark: told apart in print and by those who see few colours (after
# ColorBrewer's YlGnBu).
COLOURS: Mapping[Stage, str] = MappingProxyType(
    {
        Stage.DORMANT: "#ffffff",
        Stage.GERMINATED: "#edf8b1",
        Stage.TRAINING: "#c7e9b4",
        Stage.BLENDING: "#7fcdbb",
        Stage.HOLDING: "#41b6c4",
        Stage.FOSSILIZED: "#225ea8",
        Stage.PRUNED: "#969696",
        Stage.EMBARGOED: "#bdbdbd",
        Stage.RESETTING: "#d9d9d9",
    }
)
_T = TypeVar("_T")
_LINES = ("-", "--", "-.", ":")


def draw_run(history: History) -> Figure:
    """A figure of three panels over one axis of epochs: accuracy in points, stages, alpha.

    Stages and alpha are those that an epoch was trained with. Epochs that were undone are marked. Raises
    DataError without epochs or without matplotlib.
    """
    if not history.epochs:
        raise DataError("the run's log", "it has no epochs", "train for at least one")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise DataError("matplotlib", "it is not installed", "install pytest-esper-ddp[train]") from error
    slots = len(history.epochs[0].records)
    figure = Figure(figsize=(9.0, 4.6 + 0.32 * slots), layout="constrained")
    accuracy, stages, alpha = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [2.4, 0.5 + 0.32 * slots, 1.4]}
    )
    _draw_accuracy(accuracy, history.epochs)
    _draw_stages(stages, history.epochs)
    _draw_alpha(alpha, history.epochs)
    alpha.set_xlabel("epoch")
    alpha.set_xlim(history.epochs[0].epoch - 0.5, history.epochs[-1].epoch + 0.5)
    alpha.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def save_picture(history: History, path: Path | str) -> None:
    """Write `draw_run(history)` to `path`; its ending (.png, .svg, .pdf) is the format. Raises DataError."""
    draw_run(history).savefig(path, dpi=120)


def _draw_accuracy(axes: Axes, epochs: Sequence[EpochResult]) -> None:
    numbers = [result.epoch for result in epochs]
    axes.plot(numbers, [result.accuracy for result in epochs], color="#253494", marker=".", label="accuracy")
    undone = [result for result in epochs if result.panicking]
    if undone:
        where = [result.epoch for result in undone]
        values = [result.accuracy for result in undone]
        axes.plot(where, values, "x", color="#cb181d", markersize=9, label="undone")
        axes.legend(loc="lower right", frameon=False)
    axes.set_ylabel("accuracy (points)")
    axes.grid(alpha=0.3)


def _draw_stages(axes: Axes, epochs: Sequence[EpochResult]) -> None:
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    ids = [record.slot_id for record in epochs[0].records]
    first = epochs[0].epoch
    for row in range(len(ids)):
        records = [result.records[row] for result in epochs]
        for stage, begin, length in _stretches(first, [record.stage for record in records]):
            axes.barh(row, length, left=begin - 0.5, height=0.8, color=COLOURS[stage], edgecolor="#636363")
        for life, begin, length in _stretches(first, [_life(record) for record in records]):
            # A life shorter than its blueprint's name leaves the name out.
            if life and length * 100 / len(epochs) >= 1.6 * len(life[0]):
                text = axes.text(begin - 0.4, row, life[0], va="center", size="small")
                text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axes.set_yticks(range(len(ids)), ids)
    axes.invert_yaxis()
    axes.set_ylabel("stage")
    seen = {record.stage for result in epochs for record in result.records}
    patches = [
        Patch(facecolor=COLOURS[stage], edgecolor="#636363", label=stage.name.lower())
        for stage in Stage
        if stage in seen
    ]
    axes.legend(handles=patches, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_alpha(axes: Axes, epochs: Sequence[EpochResult]) -> None:
    numbers = [result.epoch for result in epochs]
    for row, record in enumerate(epochs[0].records):
        values = [result.records[row].alpha for result in epochs]
        if any(values):
            axes.plot(numbers, values, _LINES[row % len(_LINES)], marker=".", label=record.slot_id)
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel("alpha")
    axes.grid(alpha=0.3)


def _life(record: SlotRecord) -> tuple[str, int] | None:
    """What tells one seed in a slot from the next: blueprint and birth."""
    return (record.blueprint, record.birth) if record.blueprint else None


def _stretches(first: int, values: Sequence[_T]) -> list[tuple[_T, int, int]]:
    """(value, first epoch, how many epochs) of each stretch in which it stayed the same."""
    found = []
    epoch = first
    for value, group in groupby(values):
        length = len(list(group))
        found.append((value, epoch, length))
        epoch += length
    return found
