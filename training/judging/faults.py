"""Injects sensor faults into clean values, by seed: an anomaly model must find them. This module knows no model and no score.

Each kind of fault has a length in timesteps and a size. The unit of the size is the standard deviation of the sensor in the
training part, or that of its steps (from one timestep to the next) if the fault changes how the sensor moves. A slow room
temperature that jumps by ten usual steps is faulty long before it leaves its range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Floats, Series, Spans

Kind = Literal["spike", "stuck", "drift", "dropout", "noise", "scale"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Clean timesteps before each fault: a detector with a memory must settle, otherwise one fault hides the next.
REST_STEPS = 96
# The mean change of the values, as a share of the size of a fault, that makes it visible. A constant sensor cannot be
# stuck: where a fault would change almost nothing, another column is tried.
MIN_CHANGE = 0.25


@dataclass(frozen=True)
class FaultSpec:
    """The length and the size of a fault, in standard deviations of the sensor or (`of_steps`) of its steps."""

    steps: int
    size: float
    of_steps: bool


FAULT_SPECS: dict[Kind, FaultSpec] = {
    # One value too high or too low.
    "spike": FaultSpec(steps=1, size=10.0, of_steps=True),
    # Repeats the last value; the size is how far the true value moves.
    "stuck": FaultSpec(steps=48, size=4.0, of_steps=True),
    # Adds a straight line, up or down, that ends at the size.
    "drift": FaultSpec(steps=48, size=3.0, of_steps=False),
    # Only missing values.
    "dropout": FaultSpec(steps=24, size=0.0, of_steps=False),
    # Adds a Gaussian of that size.
    "noise": FaultSpec(steps=24, size=6.0, of_steps=True),
    # Adds the distance from the training mean, times the size.
    "scale": FaultSpec(steps=24, size=2.0, of_steps=False),
}


@dataclass(frozen=True)
class Event:
    """A fault of one column in the rows [first, end)."""

    kind: Kind
    column: int
    first: int
    end: int


@dataclass(frozen=True)
class FeatureMoments:
    """The mean, the standard deviation, and that of the steps, of each feature in the training part; all (features,)."""

    mean: Floats
    std: Floats
    step_std: Floats

    @classmethod
    def of(cls, series: Series, spans: Spans) -> "FeatureMoments":
        """The moments of the rows in the spans, without steps over a gap or a missing value. 0 if all is missing."""
        values = np.concatenate([series.values[first:end] for first, end in spans]).astype(np.float64)
        steps = np.concatenate(
            [np.diff(series.values[first:end].astype(np.float64), axis=0) for first, end in series.segments(spans)]
        )
        mean, std = _mean_std(values)
        return cls(mean.astype(np.float32), std.astype(np.float32), _mean_std(steps)[1].astype(np.float32))


def inject(
    values: Floats,
    moments: FeatureMoments,
    *,
    columns: Sequence[int],
    count: int,
    seed: int,
    kinds: Sequence[Kind] = KINDS,
    warm: int = REST_STEPS,
) -> tuple[Floats, tuple[Event, ...]]:
    """Inject faults into a copy of the values, one after another, each in one column.

    The seed shuffles the kinds and the columns. A place where no column would show the fault stays clean. At least
    `REST_STEPS` clean timesteps follow each fault.

    Args:
        values: (time, features) raw, without a time gap.
        moments: of the training part.
        columns: that may be faulty.
        count: the number of faults; fewer if there is no room.
        seed: the same seed gives the same faults.
        kinds: of faults.
        warm: timesteps at the start that stay clean.

    Returns:
        (time, features) and the events in time order.
    """
    rng = np.random.default_rng(seed)
    order = _kind_order(rng, kinds, count, len(values) - warm)
    faulty, events = values.copy(), []
    spare = len(values) - warm - sum(FAULT_SPECS[kind].steps + REST_STEPS for kind in order)
    first = warm
    for kind, pause in zip(order, _shares(rng, spare, len(order)), strict=True):
        first += pause
        end = first + FAULT_SPECS[kind].steps
        column = _inject_one(faulty, moments, kind, rng.permutation(np.asarray(columns, np.int64)), first, rng)
        if column is not None:
            events.append(Event(kind, column, first, end))
        first = end + REST_STEPS
    return faulty, tuple(events)


def _kind_order(rng: np.random.Generator, kinds: Sequence[Kind], count: int, room: int) -> list[Kind]:
    """The order of the kinds: every kind once before any comes twice, as many as there is room for."""
    order: list[Kind] = []
    while len(order) < count:
        for place in rng.permutation(len(kinds)):
            room -= FAULT_SPECS[kinds[place]].steps + REST_STEPS
            if room < 0 or len(order) == count:
                return order
            order.append(kinds[place])
    return order


def _shares(rng: np.random.Generator, spare: int, count: int) -> list[int]:
    """Divide the spare timesteps at random into a pause before each fault and one after the last."""
    cuts = np.sort(rng.integers(0, spare + 1, count))
    return [int(pause) for pause in np.diff(cuts, prepend=0)]


def _inject_one(
    values: Floats,
    moments: FeatureMoments,
    kind: Kind,
    columns: npt.NDArray[np.int64],
    first: int,
    rng: np.random.Generator,
) -> int | None:
    """Inject a fault, in place, into the first of the columns that shows it; returns the column, or None."""
    spec = FAULT_SPECS[kind]
    rows = slice(first, first + spec.steps)
    for column in columns:
        clean = values[rows, column].astype(np.float64)
        size = spec.size * float((moments.step_std if spec.of_steps else moments.std)[column])
        before = float(values[first - 1, column]) if first else np.nan
        faulty_values = _faulty_values(kind, clean, size=size, mean=float(moments.mean[column]), before=before, rng=rng)
        if _is_visible(kind, clean, faulty_values, size):
            values[rows, column] = faulty_values
            return int(column)
    return None


def _faulty_values(
    kind: Kind, clean: npt.NDArray[np.float64], *, size: float, mean: float, before: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """(time,) the values with the fault; a missing value stays missing, unless the sensor is stuck."""
    sign = 1.0 if rng.random() < 0.5 else -1.0
    match kind:
        case "spike":
            return clean + sign * size
        case "stuck":
            return np.full_like(clean, before)
        case "drift":
            return clean + sign * size * np.arange(1, len(clean) + 1) / len(clean)
        case "dropout":
            return np.full_like(clean, np.nan)
        case "noise":
            return clean + rng.normal(0.0, size, len(clean))
        case "scale":
            return clean + FAULT_SPECS["scale"].size * (clean - mean)


def _is_visible(
    kind: Kind, clean: npt.NDArray[np.float64], faulty_values: npt.NDArray[np.float64], size: float
) -> bool:
    """Whether the fault changes the values enough to be visible."""
    known = ~np.isnan(clean)
    if known.mean() < 0.5:  # most values are missing anyway
        return False
    if kind == "dropout":
        return True
    change = np.abs(faulty_values - clean)[known].mean()
    return bool(size > 0 and change >= MIN_CHANGE * size)


def _mean_std(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The mean and standard deviation of each column, without missing values; 0 if all are missing."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / count
    std = np.sqrt(np.where(known, np.square(values - mean), 0.0).sum(axis=0) / count)
    return mean, std
