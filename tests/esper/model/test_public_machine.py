"""Whatever is asked of a model's slots, in any order: it happens whole, or is refused and changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from esper.errors import EsperError
from esper.lifecycle import AlphaCurve, AlphaMode, Blend, SlotConfig, SlotRecord, Stage, can_move, has_seed
from esper.model import CnnHost, GrownModel, SeedSlot

X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SLOTS = st.sampled_from(["r0c0", "r0c1", "r0c2"])
WRONG = st.sampled_from(["r9c9", "", "r0c0 "])
TEMPOS = st.sampled_from([0, 1, 3, -1])


class AnyUse(RuleBasedStateMachine):
    """Three slots in one host, used by someone without a plan."""

    @initialize(
        blend=st.sampled_from(Blend),
        curve=st.sampled_from(AlphaCurve),
        tempo=st.integers(0, 3),
        full=st.sampled_from([0.4, 1.0]),
    )
    def build(self, blend: Blend, curve: AlphaCurve, tempo: int, full: float) -> None:
        torch.manual_seed(0)
        host = CnnHost(width=2, blocks=3)
        config = SlotConfig(
            blend=blend, curve=curve, tempo=tempo, alpha_target=full, embargoed_epochs=2, pruned_epochs=1
        )
        self.model = GrownModel(host, config).eval()
        self.births = 0
        with torch.no_grad():
            self.alone = host(X)

    def attempt(self, step: Callable[[], object], slot_id: str | None, *, ticks: bool = False) -> None:
        before = {record.slot_id: record for record in self.model.records()}
        prints, rng = self.model.fingerprint(), torch.get_rng_state()
        try:
            step()
        except EsperError:
            assert {record.slot_id: record for record in self.model.records()} == before
            assert self.model.fingerprint() == prints
        for record in self.model.records():
            self.moved(before[record.slot_id], record, may_move=ticks or record.slot_id == slot_id)
        assert torch.equal(torch.get_rng_state(), rng)

    def moved(self, before: SlotRecord, after: SlotRecord, *, may_move: bool) -> None:
        if not may_move:
            assert after == before
            return
        assert after.stage is before.stage or can_move(before.stage, after.stage)
        if before.stage is Stage.FOSSILIZED:
            assert (after.blueprint, after.alpha) == (before.blueprint, before.alpha)
        if before.alpha_mode == AlphaMode.UP and has_seed(after.stage):
            assert before.alpha <= after.alpha <= before.alpha_target or after.alpha_mode == AlphaMode.DOWN
        if before.alpha_mode == AlphaMode.DOWN and has_seed(after.stage):
            assert before.alpha_target <= after.alpha <= before.alpha

    @rule(
        slot_id=SLOTS,
        name=st.sampled_from(["norm", "attention", "conv_small", "lora", "nosuch"]),
        blend=st.none() | st.sampled_from(Blend),
    )
    def germinate(self, slot_id: str, name: str, blend: Blend | None) -> None:
        def step() -> None:
            slot, self.births = self.model.slots[slot_id], self.births + 1
            generator = torch.Generator().manual_seed(self.births)
            slot.commit(name, slot.prepare(name, generator, blend), blend)

        self.attempt(step, slot_id)

    @rule(slot_id=SLOTS)
    def advance(self, slot_id: str) -> None:
        self.attempt(self.model.slots[slot_id].advance, slot_id)

    @rule(slot_id=SLOTS, tempo=st.none() | TEMPOS)
    def prune(self, slot_id: str, tempo: int | None) -> None:
        self.attempt(lambda: self.model.slots[slot_id].prune(tempo), slot_id)

    @rule(slot_id=SLOTS, full=st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.5]), tempo=TEMPOS)
    def retarget(self, slot_id: str, full: float, tempo: int) -> None:
        self.attempt(lambda: self.model.slots[slot_id].retarget(full, tempo), slot_id)

    @rule(times=st.integers(1, 4))
    def tick(self, times: int) -> None:
        for _ in range(times):
            self.attempt(self.model.tick, None, ticks=True)

    @rule(slot_id=SLOTS)
    def tick_one(self, slot_id: str) -> None:
        self.attempt(self.model.slots[slot_id].tick, slot_id)

    @rule(slot_id=WRONG)
    def ask_for_no_slot(self, slot_id: str) -> None:
        self.attempt(lambda: self.model.slots[slot_id].prepare("norm", torch.Generator()), None)
        self.attempt(lambda: self.model(X, alpha_overrides={slot_id: 0.0}), None)

    @rule(slot_id=SLOTS, alpha=st.sampled_from([-0.1, 0.0, 0.5, 1.0, 2.0, float("nan")]))
    def override(self, slot_id: str, alpha: float) -> None:
        self.attempt(lambda: self.model(X, alpha_overrides={slot_id: alpha}), None)

    @rule(slot_id=SLOTS)
    def force(self, slot_id: str) -> None:
        self.attempt(lambda: self.model.slots[slot_id].force_alpha(1.0), None)

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.model = copy.deepcopy(self.model)

    @rule(slot_id=SLOTS)
    def go_on_from_what_was_saved(self, slot_id: str) -> None:
        old = self.model.slots[slot_id]
        new = SeedSlot(slot_id, old.channels, "cnn", old.config).eval()
        new.load_lifecycle_state(old.lifecycle_state())
        new.load_state_dict(old.state_dict())
        assert new.record() == old.record()
        h = torch.randn(1, old.channels, 3, 3, generator=torch.Generator().manual_seed(1))
        assert torch.equal(new(h), old(h))

    @invariant()
    def what_shows_is_what_the_stages_say(self) -> None:
        records = self.model.records()
        assert self.model.alphas.tolist() == [torch.tensor(record.alpha).item() for record in records]
        for record in records:
            slot = self.model.slots[record.slot_id]
            assert (slot.seed is not None) == (record.blueprint is not None) == has_seed(record.stage)
            if record.alpha_mode == AlphaMode.DOWN:
                assert not any(parameter.requires_grad for parameter in slot.parameters())
        with torch.no_grad():
            off = dict.fromkeys(self.model.slot_ids, 0.0)
            assert torch.equal(self.model(X, alpha_overrides=off), self.alone)
            if all(record.alpha == 0.0 for record in records):
                assert torch.equal(self.model(X), self.alone)


AnyUse.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAnyUse = AnyUse.TestCase
