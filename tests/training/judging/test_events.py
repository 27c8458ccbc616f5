"""Alarms against events."""

import numpy as np
import pytest

from tidegate.training.judging.events import bursts, event_labels, match_alarms
from tidegate.training.judging.faults import Event
from tidegate.training.judging.metrics import Bools


def alarms(*rows: int) -> Bools:
    """A hundred timesteps with alarms at these."""
    alarm = np.zeros(100, np.bool_)
    alarm[list(rows)] = True
    return alarm


LONG, SHORT = Event("stuck", 0, 20, 40), Event("spike", 1, 60, 61)


@pytest.mark.parametrize(
    ("rows", "delays", "false"),
    [
        ((), (None, None), 0),
        ((20,), (0, None), 0),
        ((39, 39), (19, None), 0),
        ((66,), (None, 6), 0),
        ((45,), (25, None), 0),  # by the jump back
        ((67,), (None, None), 1),
        ((19,), (None, None), 1),
        ((18, 19, 20), (0, None), 0),  # a burst that reaches into an event belongs to it
        ((5, 6, 7, 9), (None, None), 2),  # however long a burst is, it is one
        ((25, 30, 62, 80), (5, 2), 1),
    ],
)
def test_alarms_are_matched_to_events(rows: tuple[int, ...], delays: tuple[int | None, ...], false: int) -> None:
    """Inside an event or within six timesteps after its end it is found; elsewhere a burst is one false alarm."""
    found = match_alarms(alarms(*rows), (LONG, SHORT), tolerance=6)
    assert (found.delays, found.false_alarms) == (delays, false)


def test_one_lucky_alarm_is_one_event() -> None:
    """The point-adjusted count would give a recall of 20/21 for the single alarm in the long event; here it is a half."""
    found = match_alarms(alarms(30), (LONG, SHORT), tolerance=6)
    assert sum(delay is not None for delay in found.delays) / len(found.delays) == 0.5


def test_bursts_are_runs() -> None:
    """At both ends of the stream too."""
    assert bursts(alarms(0, 1, 50, 98, 99)) == [(0, 2), (50, 51), (98, 100)]
    assert bursts(alarms()) == []


def test_the_aftermath_does_not_count() -> None:
    """Unless the next event begins in it."""
    faulty, counts = event_labels((LONG, Event("noise", 0, 43, 45)), 100, tolerance=6)
    assert np.flatnonzero(faulty).tolist() == [*range(20, 40), 43, 44]
    assert np.flatnonzero(~counts).tolist() == [40, 41, 42, *range(45, 51)]
