"""How far another host's clock is ahead, as far as questions and answers tell."""

from esper.lockstep.watchdog.hosts.clocks import Clocks

AHEAD = 1000.0


def asked(clocks: Clocks, at: float, *, told: float, there: float = 0.2, back: float = 0.3) -> None:
    """At `at` here, with so many seconds on the way there and back."""
    read = at + there + AHEAD
    clocks.heard(1, at, read, read + 0.01, at + there + 0.01 + back, told)


def test_a_clock_on_the_wall_that_can_be_right_is_believed() -> None:
    clocks = Clocks()
    asked(clocks, 5.0, told=AHEAD + 0.1)
    assert clocks.ahead(1) == AHEAD + 0.1


def test_one_that_is_wrong_is_believed_as_far_as_answers_allow() -> None:
    clocks = Clocks()
    asked(clocks, 5.0, told=AHEAD + 60.0)
    assert round(clocks.ahead(1) - AHEAD, 6) == 0.2
    asked(clocks, 6.0, told=AHEAD + 60.0, there=0.01)
    assert round(clocks.ahead(1) - AHEAD, 6) == 0.01
    asked(clocks, 7.0, told=AHEAD - 60.0, back=0.02)
    assert round(clocks.ahead(1) - AHEAD, 6) == -0.02


def test_what_was_not_asked_for_bounds_from_below_only() -> None:
    clocks = Clocks()
    clocks.heard(1, None, AHEAD, AHEAD, 0.5, AHEAD + 60.0)
    assert clocks.ahead(1) == AHEAD + 60.0
    clocks.heard(1, None, AHEAD, AHEAD, 0.5, AHEAD - 60.0)
    assert clocks.ahead(1) == AHEAD - 0.5


def test_after_a_clock_was_set_only_the_last_answer_counts() -> None:
    clocks = Clocks()
    asked(clocks, 5.0, told=AHEAD)
    clocks.heard(1, 6.0, 6.2 + 2 * AHEAD, 6.2 + 2 * AHEAD, 6.4, 2 * AHEAD)
    assert clocks.ahead(1) == 2 * AHEAD
