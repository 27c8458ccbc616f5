"""Faults of sensors, put into clean values by seed: what an anomaly model must find. Knows no model and no score.

Each kind has a length in timesteps and a size in a unit of the training part: the standard deviation of the sensor, or
that of its steps (from one timestep to the next) where the fault is a matter of how the sensor moves. A slow room
temperature that jumps by ten usual steps is faulty long before it leaves its range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from training.data.series import Floats, Series, Spans

Kind = Literal["spike", "stuck", "drift", "dropout", "noise", "scale"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Timesteps without a fault before each one: a detector with a memory must come to rest, else one fault hides the next.
REST = 96
# A place where a fault would change next to nothing holds no fault: a sensor that stands still is not stuck. Other
# columns are tried there; the part of a fault's size by which the values must change on average is:
VISIBLE = 0.25


@dataclass(frozen=True)
class Recipe:
    """How long a fault lasts and how large it is, in standard deviations of the sensor or (`of_steps`) of its steps."""

    steps: int
    size: float
    of_steps: bool


RECIPES: dict[Kind, Recipe] = {
    "spike": Recipe(steps=1, size=10.0, of_steps=True),  # one value too high or too low
    "stuck": Recipe(steps=48, size=4.0, of_steps=True),  # the value before is repeated; size: how far the truth moves
    "drift": Recipe(steps=48, size=3.0, of_steps=False),  # a straight line away, up or down, that ends at the size
    "dropout": Recipe(steps=24, size=0.0, of_steps=False),  # nothing but missing values
    "noise": Recipe(steps=24, size=6.0, of_steps=True),  # a Gaussian of that size on top
    "scale": Recipe(steps=24, size=2.0, of_steps=False),  # the distance from the training mean, that many times more
}


@dataclass(frozen=True)
class Event:
    """A fault of one column in the rows [first, end)."""

    kind: Kind
    column: int
    first: int
    end: int


@dataclass(frozen=True)
class Moments:
    """What is usual in the training part, per feature: mean, standard deviation, and that of its steps; all (features,)."""

    mean: Floats
    std: Floats
    step_std: Floats

    @classmethod
    def of(cls, series: Series, spans: Spans) -> "Moments":
        """Those of the rows in the spans; steps over a time gap or a missing value do not count. 0 where all is missing."""
        values = np.concatenate([series.values[first:end] for first, end in spans]).astype(np.float64)
        steps = np.concatenate(
            [np.diff(series.values[first:end].astype(np.float64), axis=0) for first, end in series.stretches(spans)]
        )
        mean, std = _mean_std(values)
        return cls(mean.astype(np.float32), std.astype(np.float32), _mean_std(steps)[1].astype(np.float32))


def inject(
    values: Floats,
    moments: Moments,
    *,
    columns: Sequence[int],
    count: int,
    seed: int,
    kinds: Sequence[Kind] = KINDS,
    warm: int = REST,
) -> tuple[Floats, tuple[Event, ...]]:
    """Put faults into a copy of the values, one after another, each in one column.

    The kinds take turns, in an order that the seed shuffles, as do the columns; a place where no column would show the
    fault stays clean. Each fault has at least `REST` clean timesteps behind it.

    Args:
        values: (time, features) raw, without a time gap.
        moments: of the training part.
        columns: those that may be faulty.
        count: how many faults, or as many as there is room for.
        seed: the same seed gives the same faults.
        kinds: the faults to choose from.
        warm: timesteps at the beginning that stay clean.

    Returns:
        (time, features) and the events in the order of time.
    """
    rng = np.random.default_rng(seed)
    turns = _turns(rng, kinds, count, len(values) - warm)
    faulty, events = values.copy(), []
    spare = len(values) - warm - sum(RECIPES[kind].steps + REST for kind in turns)
    first = warm
    for kind, pause in zip(turns, _shares(rng, spare, len(turns)), strict=True):
        first += pause
        end = first + RECIPES[kind].steps
        column = _break(faulty, moments, kind, rng.permutation(np.asarray(columns, np.int64)), first, rng)
        if column is not None:
            events.append(Event(kind, column, first, end))
        first = end + REST
    return faulty, tuple(events)


def _turns(rng: np.random.Generator, kinds: Sequence[Kind], count: int, room: int) -> list[Kind]:
    """The kinds in the order in which they come: every kind once before any comes twice, as many as there is room for."""
    turns: list[Kind] = []
    while len(turns) < count:
        for place in rng.permutation(len(kinds)):
            room -= RECIPES[kinds[place]].steps + REST
            if room < 0 or len(turns) == count:
                return turns
            turns.append(kinds[place])
    return turns


def _shares(rng: np.random.Generator, spare: int, count: int) -> list[int]:
    """Cut the spare timesteps at random into the pauses before each fault and one more after the last."""
    cuts = np.sort(rng.integers(0, spare + 1, count))
    return [int(pause) for pause in np.diff(cuts, prepend=0)]


def _break(
    values: Floats, moments: Moments, kind: Kind, columns: npt.NDArray[np.int64], first: int, rng: np.random.Generator
) -> int | None:
    """Break the first of the columns that shows the fault, in place; None when none does."""
    recipe = RECIPES[kind]
    rows = slice(first, first + recipe.steps)
    for column in columns:
        clean = values[rows, column].astype(np.float64)
        size = recipe.size * float((moments.step_std if recipe.of_steps else moments.std)[column])
        before = float(values[first - 1, column]) if first else np.nan
        broken = _broken(kind, clean, size=size, mean=float(moments.mean[column]), before=before, rng=rng)
        if _shows(kind, clean, broken, size):
            values[rows, column] = broken
            return int(column)
    return None


def _broken(
    kind: Kind, clean: npt.NDArray[np.float64], *, size: float, mean: float, before: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """(time,) the values with the fault; what was missing stays so, unless the sensor is stuck."""
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
            return clean + RECIPES["scale"].size * (clean - mean)


def _shows(kind: Kind, clean: npt.NDArray[np.float64], broken: npt.NDArray[np.float64], size: float) -> bool:
    """Whether the fault changes the values by enough to be one."""
    seen = ~np.isnan(clean)
    if seen.mean() < 0.5:  # most of it was missing anyway
        return False
    if kind == "dropout":
        return True
    change = np.abs(broken - clean)[seen].mean()
    return bool(size > 0 and change >= VISIBLE * size)


def _mean_std(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """By column, without the missing values; 0 where there is no other."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / count
    std = np.sqrt(np.where(known, np.square(values - mean), 0.0).sum(axis=0) / count)
    return mean, std
