"""Decisions compare across processes."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from esper.control import Action, Advance, Decision, Germinate, Prune

names = st.text(max_size=5)
actions: st.SearchStrategy[Action] = st.one_of(
    st.builds(Germinate, names, names), st.builds(Advance, names), st.builds(Prune, names)
)
decisions = st.builds(Decision, st.lists(actions, max_size=3).map(tuple))


@given(decisions, decisions)
def test_digests_are_equal_when_decisions_are(one: Decision, other: Decision) -> None:
    assert (one.digest() == other.digest()) == (one == other)
    assert 0 <= one.digest() < 2**63


def test_the_digest_is_the_same_in_another_process() -> None:
    code = "from esper.control import *; print(Decision((Germinate('r0c0', 'norm'), Prune('r0c1'))).digest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == Decision((Germinate("r0c0", "norm"), Prune("r0c1"))).digest()


def test_order_and_kind_count() -> None:
    one, other = Advance("r0c0"), Prune("r0c0")
    orders: list[tuple[Action, ...]] = [(), (one,), (other,), (one, other), (other, one)]
    assert len({Decision(order).digest() for order in orders}) == 5
