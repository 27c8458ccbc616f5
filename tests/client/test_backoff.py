"""The waits between tries."""

import pytest

from tidegate.client.retry import Backoff


def waits(dice: float) -> list[float]:
    """The first ten waits, when the dice show that."""
    backoff = Backoff(dice=lambda: dice)
    return [backoff.wait_s(tries) for tries in range(10)]


def test_the_bound_doubles_up_to_the_longest() -> None:
    """At once, then 50 ms, doubling to 1 s."""
    assert waits(1.0) == pytest.approx([0, 0.05, 0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1])


def test_the_jitter_is_full() -> None:
    """The wait is anything from nothing to the bound."""
    assert waits(0.0) == [0.0] * 10
    assert waits(0.5) == pytest.approx([wait / 2 for wait in waits(1.0)])


def test_a_number_of_tries_has_no_end() -> None:
    """A client may try for days."""
    assert Backoff(dice=lambda: 1.0).wait_s(10**6) == 1.0


def test_what_the_server_asks_for_is_waited_at_least() -> None:
    """And up to half of it more; it is never asked again without any wait."""
    assert Backoff(dice=lambda: 0.0).jittered_s(2.0) == 2.0
    assert Backoff(dice=lambda: 1.0).jittered_s(2.0) == 3.0
    assert Backoff(dice=lambda: 0.0).jittered_s(0.0) == 0.05
