"""Matches alarms to faults, counted by event and not by timestep. This module knows no model.

We do not use the "point-adjusted" F1. It counts all timesteps of a fault as found if one of them is, so one lucky alarm in
a long fault counts for all. With it a random alarm beats published detectors (Kim and others, Towards a rigorous evaluation
of time-series anomaly detection, AAAI 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidegate.training.judging.faults import Event
from tidegate.training.judging.metrics import Bools


@dataclass(frozen=True)
class AlarmMatches:
    """The matches of the alarms and events of one stream.

    For each event, `delays` holds the timesteps from its start to the first alarm, None if it was not found; `during` says
    whether an alarm came before its end. `false_alarms` counts the bursts of alarms that belong to no event.
    """

    delays: tuple[int | None, ...]
    during: tuple[bool, ...]
    false_alarms: int


def match_alarms(alarm: Bools, events: Sequence[Event], *, tolerance: int) -> AlarmMatches:
    """Match alarms to events.

    An event is found if an alarm lies inside it, or within `tolerance` timesteps after its end, when the sensor has jumped
    back: the user then knows that the values before were wrong. A burst of alarms, however long, is one false alarm if
    none of its timesteps belongs to an event in this sense.

    Args:
        alarm: (time,) of one stream.
        events: in its rows, in the order of time.
        tolerance: in timesteps.
    """
    delays: list[int | None] = []
    during = []
    matched = np.zeros(len(alarm), np.bool_)
    for event in events:
        inside = alarm[event.first : event.end + tolerance]
        delays.append(int(inside.argmax()) if inside.any() else None)
        during.append(bool(alarm[event.first : event.end].any()))
        matched[event.first : event.end + tolerance] = True
    false = sum(not matched[first:end].any() for first, end in bursts(alarm))
    return AlarmMatches(tuple(delays), tuple(during), false)


def bursts(alarm: Bools) -> list[tuple[int, int]]:
    """The bursts [first, end): consecutive timesteps with an alarm."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], alarm, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def event_labels(events: Sequence[Event], steps: int, *, tolerance: int) -> tuple[Bools, Bools]:
    """(steps,) whether a timestep is faulty, and whether it counts: not in the `tolerance` timesteps after a fault."""
    faulty, counts = np.zeros(steps, np.bool_), np.ones(steps, np.bool_)
    for event in events:
        counts[event.end : event.end + tolerance] = False
    for event in events:
        faulty[event.first : event.end] = True
        counts[event.first : event.end] = True
    return faulty, counts
