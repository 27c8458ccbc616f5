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

from tidegate.training.data.series import Floats, Series, Span, Spans

Kind = Literal["spike", "stuck", "fixed", "drift", "leak", "dropout", "noise", "scale", "decoupled"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Clean timesteps before each fault: a detector with a memory must settle, otherwise one fault hides the next.
REST_STEPS = 96
# The mean change of the values, as a share of the size of a fault, that makes it visible. A constant sensor cannot be
# stuck: where a fault would change almost nothing, another column is tried.
MIN_CHANGE = 0.25


@dataclass(frozen=True)
class FaultSpec:
    """The length and the size of a fault, in standard deviations of the sensor or (`of_steps`) of its steps.

    A slow fault lasts `least_s` seconds, if those are more timesteps.
    """

    steps: int
    size: float
    of_steps: bool
    least_s: float = 0.0

    def length(self, period_s: float | None) -> int:
        """The length in timesteps of this period; None: it is not known."""
        return max(self.steps, round(self.least_s / period_s)) if period_s else self.steps


FAULT_SPECS: dict[Kind, FaultSpec] = {
    # One value too high or too low.
    "spike": FaultSpec(steps=1, size=10.0, of_steps=True),
    # Repeats the last value; the size is how far the true value moves.
    "stuck": FaultSpec(steps=48, size=4.0, of_steps=True),
    # Repeats the training mean, a plausible value.
    "fixed": FaultSpec(steps=48, size=1.0, of_steps=False),
    # Adds a straight line, up or down, that ends at the size.
    "drift": FaultSpec(steps=48, size=3.0, of_steps=False),
    # Takes away more and more, slowly, up to the size.
    "leak": FaultSpec(steps=192, size=2.0, of_steps=False, least_s=1800.0),
    # Only missing values.
    "dropout": FaultSpec(steps=24, size=0.0, of_steps=False),
    # Adds a Gaussian of that size.
    "noise": FaultSpec(steps=24, size=6.0, of_steps=True),
    # Adds the distance from the training mean, times the size.
    "scale": FaultSpec(steps=24, size=2.0, of_steps=False),
    # Moves from the last value on as it did at another time: plausible by itself, but its coupling with other sensors is lost.
    "decoupled": FaultSpec(steps=192, size=1.0, of_steps=False, least_s=1800.0),
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
    period_s: float | None = None,
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
        period_s: seconds from row to row; slow faults are longer at a short period.

    Returns:
        (time, features) and the events in time order.
    """
    rng = np.random.default_rng(seed)
    lengths = {kind: FAULT_SPECS[kind].length(period_s) for kind in kinds}
    order = _kind_order(rng, lengths, count, len(values) - warm)
    faulty, events = values.copy(), []
    spare = len(values) - warm - sum(lengths[kind] + REST_STEPS for kind in order)
    first = warm
    for kind, pause in zip(order, _shares(rng, spare, len(order)), strict=True):
        first += pause
        end = first + lengths[kind]
        shuffled = rng.permutation(np.asarray(columns, np.int64))
        column = _inject_one(values, faulty, moments, kind, shuffled, (first, end), rng)
        if column is not None:
            events.append(Event(kind, column, first, end))
        first = end + REST_STEPS
    return faulty, tuple(events)


def _kind_order(rng: np.random.Generator, lengths: dict[Kind, int], count: int, room: int) -> list[Kind]:
    """The order of the kinds: every kind once before any comes twice, as many as there is room for.

    A kind that finds no room any more is left out, and shorter ones go on.
    """
    order: list[Kind] = []
    kinds = list(lengths)
    while len(order) < count and kinds:
        for kind in [kinds[place] for place in rng.permutation(len(kinds))]:
            if len(order) == count:
                break
            if lengths[kind] + REST_STEPS > room:
                kinds.remove(kind)
            else:
                order.append(kind)
                room -= lengths[kind] + REST_STEPS
    return order


def _shares(rng: np.random.Generator, spare: int, count: int) -> list[int]:
    """Divide the spare timesteps at random into a pause before each fault and one after the last."""
    cuts = np.sort(rng.integers(0, spare + 1, count))
    return [int(pause) for pause in np.diff(cuts, prepend=0)]


def _inject_one(
    values: Floats,
    faulty: Floats,
    moments: FeatureMoments,
    kind: Kind,
    columns: npt.NDArray[np.int64],
    span: Span,
    rng: np.random.Generator,
) -> int | None:
    """Inject a fault into the rows of the span, in the first of the columns that shows it; returns the column, or None."""
    spec = FAULT_SPECS[kind]
    first, end = span
    for column in columns:
        clean = values[first:end, column].astype(np.float64)
        size = spec.size * float((moments.step_std if spec.of_steps else moments.std)[column])
        before = float(values[first - 1, column]) if first else np.nan
        other = _other_time(values[:, column].astype(np.float64), span, rng) if kind == "decoupled" else clean
        faulty_values = _faulty_values(
            kind, clean, size=size, mean=float(moments.mean[column]), before=before, other=other, rng=rng
        )
        if _is_visible(kind, clean, faulty_values, size):
            faulty[first:end, column] = faulty_values
            return int(column)
    return None


def _other_time(values: npt.NDArray[np.float64], span: Span, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """As many steps of the sensor from its value before them, at a time outside the span; NaN if there is no such time."""
    length = span[1] - span[0]
    starts = np.concatenate([np.arange(1, span[0] - length + 1), np.arange(span[1] + 1, len(values) - length + 1)])
    if not len(starts):
        return np.full(length, np.nan)
    start = int(rng.choice(starts))
    return np.asarray(values[start : start + length] - values[start - 1])


def _faulty_values(
    kind: Kind,
    clean: npt.NDArray[np.float64],
    *,
    size: float,
    mean: float,
    before: float,
    other: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """(time,) the values with the fault; a missing value stays missing, unless the sensor is stuck."""
    sign = 1.0 if rng.random() < 0.5 else -1.0
    match kind:
        case "spike":
            values = clean + sign * size
        case "stuck":
            values = np.full_like(clean, before)
        case "fixed":
            values = np.full_like(clean, mean)
        case "drift":
            values = clean + sign * size * np.arange(1, len(clean) + 1) / len(clean)
        case "leak":
            values = clean - size * np.arange(1, len(clean) + 1) / len(clean)
        case "dropout":
            values = np.full_like(clean, np.nan)
        case "noise":
            values = clean + rng.normal(0.0, size, len(clean))
        case "scale":
            values = clean + FAULT_SPECS["scale"].size * (clean - mean)
        case "decoupled":
            values = before + other
    return np.asarray(values, np.float64)


def _is_visible(
    kind: Kind, clean: npt.NDArray[np.float64], faulty_values: npt.NDArray[np.float64], size: float
) -> bool:
    """Whether the fault changes the values enough to be visible."""
    known = ~np.isnan(clean)
    if known.mean() < 0.5:  # most values are missing anyway
        return False
    if kind == "dropout":
        return True
    change = np.abs(faulty_values - clean)[
        known
    ].mean()  # NaN, which is never larger, without a value before or elsewhere
    return bool(size > 0 and change >= MIN_CHANGE * size)


def _mean_std(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The mean and standard deviation of each column, without missing values; 0 if all are missing."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / count
    std = np.sqrt(np.where(known, np.square(values - mean), 0.0).sum(axis=0) / count)
    return mean, std
