"""Decisions compare across processes."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.control import Action, Advance, Decision, Germinate, Prune, SetAlpha
from esper.lifecycle import Blend

names = st.text(max_size=5)
tempos = st.none() | st.integers(0, 3)
targets = st.sampled_from([-0.0, 0, 0.0, 0.7, 1, 1.0])  # some of which are equal and look otherwise
actions: st.SearchStrategy[Action] = st.one_of(
    st.builds(Germinate, names, names, st.none() | st.sampled_from(Blend)),
    st.builds(Advance, names),
    st.builds(Prune, names, tempos),
    st.builds(SetAlpha, names, targets, tempos),
)
decisions = st.builds(Decision, st.lists(actions, max_size=3).map(tuple))


def test_why_something_is_done_is_no_part_of_what_is_decided() -> None:
    one, other = (Decision((Advance("r0c0"),), (reason,)) for reason in ("drawn", ""))
    assert one == other == Decision((Advance("r0c0"),))
    assert one.digest() == other.digest()
    with pytest.raises(ValueError, match="2 reasons for 1 actions"):
        Decision((Advance("r0c0"),), ("drawn", "twice"))


@given(decisions, decisions)
def test_digests_are_equal_when_decisions_are(one: Decision, other: Decision) -> None:
    assert (one.digest() == other.digest()) == (one == other)
    assert 0 <= one.digest() < 2**63


def test_the_digest_is_the_same_in_another_process() -> None:
    actions = (Germinate("r0c0", "norm", Blend.GATE), Prune("r0c1", 2), SetAlpha("r0c2", 0.7, 3))
    code = (
        "from esper.control import *; from esper.lifecycle import Blend; print(Decision("
        "(Germinate('r0c0', 'norm', Blend.GATE), Prune('r0c1', 2), SetAlpha('r0c2', 0.7, 3))).digest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == Decision(actions).digest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Germinate("r0c0", "norm"), Germinate("r0c0", "norm", Blend.ADD)),
        (Germinate("r0c0", "norm", Blend.GATE), Germinate("r0c0", "norm", Blend.ADD)),
        (Prune("r0c0"), Prune("r0c0", 0)),
        (Prune("r0c0", 1), Prune("r0c0", 2)),
        (SetAlpha("r0c0", 0.7), SetAlpha("r0c0", 0.5)),
        (SetAlpha("r0c0", 0.7), SetAlpha("r0c0", 0.7, 3)),
    ],
)
def test_how_counts_as_much_as_what(one: Action, other: Action) -> None:
    assert Decision((one,)).digest() != Decision((other,)).digest()
    assert one.manner != other.manner


def test_a_number_is_the_same_however_it_is_written() -> None:
    one, other = Decision((SetAlpha("r0c0", 1, 2),)), Decision((SetAlpha("r0c0", 1.0, 2),))
    assert (one, one.digest()) == (other, other.digest())


@pytest.mark.parametrize(
    ("action", "manner"),
    [
        (Advance("r0c0"), ""),
        (Germinate("r0c0", "norm"), ""),
        (Germinate("r0c0", "norm", Blend.GATE), "by gate"),
        (Prune("r0c0"), ""),
        (Prune("r0c0", 0), "at once"),
        (Prune("r0c0", 1), "over 1 epoch"),
        (SetAlpha("r0c0", 0.7), "to 0.7"),
        (SetAlpha("r0c0", 0.7, 3), "to 0.7 over 3 epochs"),
    ],
)
def test_an_action_says_how(action: Action, manner: str) -> None:
    assert action.manner == manner


def test_order_and_kind_count() -> None:
    one, other = Advance("r0c0"), Prune("r0c0")
    orders: list[tuple[Action, ...]] = [(), (one,), (other,), (one, other), (other, one)]
    assert len({Decision(order).digest() for order in orders}) == 5
