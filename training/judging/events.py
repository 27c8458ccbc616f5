"""Were the faults found? Alarms against events, counted by event and not by timestep. Knows no model.

Never the "point-adjusted" F1, which counts every timestep of a fault as found when a single one of them is: with it an
alarm drawn by lot beats published detectors (Kim and others, Towards a rigorous evaluation of time-series anomaly
detection, AAAI 2022), because one lucky alarm in a long fault is worth all its timesteps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.judging.faults import Event
from training.judging.metrics import Bools


@dataclass(frozen=True)
class Found:
    """What became of the events of one stream.

    `delays` holds for each event the timesteps from its first to the first alarm, None when it was not found, and
    `during` whether that alarm came before the event was over; `false_alarms` counts the bursts of alarms that belong to none.
    """

    delays: tuple[int | None, ...]
    during: tuple[bool, ...]
    false_alarms: int


def find(alarm: Bools, events: Sequence[Event], *, tolerance: int) -> Found:
    """Match alarms to events.

    An event is found when an alarm falls inside it or within `tolerance` timesteps after its end, when the sensor has
    jumped back: whoever is told then knows what to think of the values before. A burst of alarms, however long, is one
    false alarm when no timestep of it belongs to an event in this sense.

    Args:
        alarm: (time,) of one stream.
        events: in its rows, in the order of time.
        tolerance: in timesteps.
    """
    delays: list[int | None] = []
    during = []
    excused = np.zeros(len(alarm), np.bool_)
    for event in events:
        inside = alarm[event.first : event.end + tolerance]
        delays.append(int(inside.argmax()) if inside.any() else None)
        during.append(bool(alarm[event.first : event.end].any()))
        excused[event.first : event.end + tolerance] = True
    false = sum(not excused[first:end].any() for first, end in bursts(alarm))
    return Found(tuple(delays), tuple(during), false)


def bursts(alarm: Bools) -> list[tuple[int, int]]:
    """The runs [first, end) of timesteps with an alarm."""
    edges = np.diff(np.concatenate([[False], alarm, [False]]).astype(np.int8))
    return [
        (int(first), int(end)) for first, end in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True)
    ]


def labels_of(events: Sequence[Event], steps: int, *, tolerance: int) -> tuple[Bools, Bools]:
    """(steps,) whether a timestep is faulty, and whether it counts: not in the `tolerance` timesteps after a fault."""
    faulty, counts = np.zeros(steps, np.bool_), np.ones(steps, np.bool_)
    for event in events:
        counts[event.end : event.end + tolerance] = False
    for event in events:
        faulty[event.first : event.end] = True
        counts[event.first : event.end] = True
    return faulty, counts
