"""What a model would say if some alphas were others: many questions about one input, the work shared.

Variants that agree up to a slot share the host up to there, and at the slot the seed's output. Nothing in
the model changes, so any number of threads may ask at once.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

Variant = Mapping[str, float | Tensor]


@runtime_checkable
class Segmented(Protocol):
    """A host that can be run piece by piece."""

    def segment(self, index: int, h: Tensor) -> Tensor:
        """The stretch that ends at slot point `index`; one past the last: the rest, down to the logits."""
        ...


class Mixer(Protocol):
    """What the walk needs of a slot."""

    @property
    def in_forward(self) -> bool: ...

    def variants(self, h: Tensor, alphas: Sequence[Tensor | None]) -> list[Tensor]: ...


def leave_one_out(slot_ids: Sequence[str]) -> dict[tuple[str, ...], dict[str, float | Tensor]]:
    """Each slot off by itself: the slots that are off, to the overrides."""
    return {(slot_id,): {slot_id: 0.0} for slot_id in slot_ids}


def all_off(slot_ids: Sequence[str]) -> dict[tuple[str, ...], dict[str, float | Tensor]]:
    """All of these slots off at once: the host alone."""
    return {tuple(slot_ids): dict.fromkeys(slot_ids, 0.0)}


def pairs_off(slot_ids: Sequence[str]) -> dict[tuple[str, ...], dict[str, float | Tensor]]:
    """Each two of these slots off together."""
    return {pair: dict.fromkeys(pair, 0.0) for pair in combinations(slot_ids, 2)}


def walk(
    host: nn.Module, slots: Sequence[tuple[str, Mixer]], x: Tensor, variants: Sequence[Mapping[str, Tensor]]
) -> list[Tensor]:
    """The logits of each variant, in order; the host must be `Segmented`."""
    assert isinstance(host, Segmented)
    answers: list[Tensor | None] = [None] * len(variants)

    def go(index: int, h: Tensor, members: Sequence[int]) -> None:
        h = host.segment(index, h)
        if index == len(slots):
            for member in members:
                answers[member] = h
            return
        slot_id, slot = slots[index]
        groups: dict[int | None, tuple[Tensor | None, list[int]]] = {}
        for member in members:
            # The same tensor object for the same number: see `GrownModel.counterfactuals`.
            alpha = variants[member].get(slot_id) if slot.in_forward else None
            groups.setdefault(None if alpha is None else id(alpha), (alpha, []))[1].append(member)
        features = slot.variants(h, [alpha for alpha, _ in groups.values()])
        del h  # a deep host would keep the features of every level alive
        for each, (_, group) in zip(features, groups.values(), strict=True):
            go(index + 1, each, group)

    go(0, x, range(len(variants)))
    return [answer for answer in answers if answer is not None]
