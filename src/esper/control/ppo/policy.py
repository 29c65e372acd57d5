"""The recurrent policy: what it makes of observations, and how likely each choice is."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.control.ppo.space import HEADS, ActionSpace, Choice, Masks, Op

# What a forbidden choice has for a logit: its probability is then 0, and no gradient is nan.
_FORBIDDEN = -1e9
_HEADS = Choice._fields


class MaskTensors(NamedTuple):
    """`Masks` of any number of steps."""

    op: Tensor  # bool (..., ops)
    slot: Tensor  # bool (..., ops, slots)
    target: Tensor  # bool (..., slots, targets)

    @classmethod
    def of(cls, masks: list[Masks]) -> Self:
        """One row a step."""
        return cls(*(torch.tensor([one[index] for one in masks]) for index in range(3)))


class Logits(NamedTuple):
    """What the policy says of each head. Those of `slot` are one row for each operation."""

    op: Tensor  # (..., ops)
    slot: Tensor  # (..., ops, slots)
    blueprint: Tensor
    blend: Tensor
    target: Tensor
    tempo: Tensor


class Sizes(NamedTuple):
    """What a policy's shapes follow from."""

    observation: int
    slots: int
    blueprints: int
    blends: int
    targets: int
    tempos: int

    @classmethod
    def of(cls, observation: int, space: ActionSpace) -> Self:
        """The sizes of a space."""
        heads = (space.slots, space.blueprints, space.blends, space.targets, space.tempos)
        return cls(observation, *(len(head) for head in heads))


class Policy(nn.Module):
    """Observations (T, N, observation) of N episodes to logits and values, through a GRU over T."""

    def __init__(self, sizes: Sizes, hidden: int, seed: int) -> None:
        """The weights follow from `seed`; the global generator is left alone."""
        super().__init__()
        self.sizes, self.hidden = sizes, hidden
        ops = len(Op)
        self._widths = (ops, ops * sizes.slots, *sizes[2:])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.encoder = nn.Linear(sizes.observation, hidden)
            self.memory = nn.GRU(hidden, hidden)
            self.chooser = nn.Linear(hidden, sum(self._widths))
            self.judge = nn.Linear(hidden, 1)
            # At first all choices are about equally likely.
            nn.init.orthogonal_(self.chooser.weight, 0.01)
            nn.init.orthogonal_(self.judge.weight, 1.0)
            nn.init.zeros_(self.chooser.bias)
            nn.init.zeros_(self.judge.bias)

    def forward(self, observations: Tensor, state: Tensor | None = None) -> tuple[Logits, Tensor, Tensor]:
        """Logits, values (T, N) and the state (1, N, hidden) to go on from; None: a start's."""
        features, state = self.memory(torch.tanh(self.encoder(observations)), state)
        op, slot, *others = self.chooser(features).split(self._widths, dim=-1)
        slots = slot.unflatten(-1, (len(Op), self.sizes.slots))
        return Logits(op, slots, *others), self.judge(features).squeeze(-1), state


def _log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    # A row without anything to choose belongs to an operation that can't be chosen.
    empty = ~mask.any(dim=-1, keepdim=True)
    return functional.log_softmax(logits.masked_fill(~(mask | empty), _FORBIDDEN), dim=-1)


def _relevant(head: str, like: Tensor) -> Tensor:
    """By operation whether the head belongs to it, (ops,)."""
    return torch.tensor([head in HEADS[op] for op in Op], dtype=like.dtype, device=like.device)


def _at(table: Tensor, index: Tensor) -> Tensor:
    """Of `table` (..., rows, width) the rows `index` (...)."""
    wanted = index[..., None, None].expand(*index.shape, 1, table.shape[-1])
    return table.gather(-2, wanted).squeeze(-2)


def log_probs(logits: Logits, masks: MaskTensors, choices: Tensor) -> Tensor:
    """Of `choices` (..., heads) the log-probability of each head's, given those before it, (..., heads).
    Their sum is that of the action. 0 for a head that does not belong to the operation.
    """
    op, slot = choices[..., 0], choices[..., 1]
    tables = {
        "op": _log_softmax(logits.op, masks.op),
        "slot": _at(_log_softmax(logits.slot, masks.slot), op),
        "blueprint": functional.log_softmax(logits.blueprint, dim=-1),
        "blend": functional.log_softmax(logits.blend, dim=-1),
        "target": _log_softmax(logits.target, _at(masks.target, slot)),
        "tempo": functional.log_softmax(logits.tempo, dim=-1),
    }
    found = []
    for place, head in enumerate(_HEADS):
        chosen = tables[head].gather(-1, choices[..., place, None]).squeeze(-1)
        found.append(chosen if head == "op" else chosen * _relevant(head, chosen)[op])
    return torch.stack(found, dim=-1)


def entropy(logits: Logits, masks: MaskTensors) -> Tensor:
    """Entropy of the action in nats, (...): by the chain rule, each head's by how likely it is asked."""
    op = _log_softmax(logits.op, masks.op)
    slot = _log_softmax(logits.slot, masks.slot)
    # log P of a target for each slot, (..., slots, targets)
    target = _log_softmax(logits.target[..., None, :].expand_as(masks.target), masks.target)
    of_target = (slot.exp() * _entropy(target)[..., None, :]).sum(-1)  # (..., ops)
    given = {
        "slot": _entropy(slot),
        "blueprint": _entropy(functional.log_softmax(logits.blueprint, dim=-1))[..., None],
        "blend": _entropy(functional.log_softmax(logits.blend, dim=-1))[..., None],
        "target": of_target,
        "tempo": _entropy(functional.log_softmax(logits.tempo, dim=-1))[..., None],
    }
    inner = torch.zeros_like(op)
    for head, value in given.items():
        inner = inner + _relevant(head, op) * value
    return _entropy(op) + (op.exp() * inner).sum(-1)


def _entropy(logs: Tensor) -> Tensor:
    return -(logs.exp() * logs).sum(-1)


def choose(logits: Logits, masks: MaskTensors, generator: torch.Generator | None) -> Tensor:
    """Choices (N, heads) for logits of N: drawn, or without a generator the likeliest of each head."""

    def pick(logs: Tensor) -> Tensor:
        if generator is None:
            return logs.argmax(-1)
        return torch.multinomial(logs.exp(), 1, generator=generator).squeeze(-1)

    op = pick(_log_softmax(logits.op, masks.op))
    slot = pick(_at(_log_softmax(logits.slot, masks.slot), op))
    picked = [
        op,
        slot,
        pick(functional.log_softmax(logits.blueprint, dim=-1)),
        pick(functional.log_softmax(logits.blend, dim=-1)),
        pick(_log_softmax(logits.target, _at(masks.target, slot))),
        pick(functional.log_softmax(logits.tempo, dim=-1)),
    ]
    for place, head in enumerate(_HEADS[1:], 1):
        picked[place] = picked[place] * _relevant(head, logits.op).long()[op]
    return torch.stack(picked, dim=-1)
