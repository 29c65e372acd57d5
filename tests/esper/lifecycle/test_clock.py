"""Counted ticks lead where ticks one by one lead."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from esper.errors import EsperError
from esper.lifecycle import AlphaCurve, Blend, SlotConfig, SlotState
from esper.lifecycle.clock import SlotClock

configs = st.builds(
    SlotConfig,
    tempo=st.integers(0, 4),
    curve=st.sampled_from(AlphaCurve),
    alpha_target=st.sampled_from([0.3, 1.0]),
    pruned_epochs=st.integers(1, 2),
    embargoed_epochs=st.integers(1, 3),
)
STEPS = {
    "germinate": lambda state, config: state.germinate("norm", Blend.ADD),
    "advance": lambda state, config: state.advance(config),
    "prune": lambda state, config: state.prune(config.tempo),
    "lower": lambda state, config: state.retarget(0.1, 2, config),
}


@given(configs, st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 7)), max_size=12))
def test_any_life(config: SlotConfig, plan: list[tuple[str, int]]) -> None:
    state = SlotState("r0c0")
    clock = SlotClock(state, config)
    for step, ticks in plan:
        with contextlib.suppress(EsperError):  # refused is as good a step as any
            state = STEPS[step](state, config)
        clock = SlotClock(state, config)
        for _ in range(ticks):
            state = state.tick(config)
            if not clock.tick():
                clock = SlotClock(clock.state.tick(config), config)
            assert clock.state == state
            assert clock.alpha == state.alpha.alpha
