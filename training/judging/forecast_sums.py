"""The errors of a model and its baselines, summed over rows that come some at a time.

All forecasts at once are rows times horizons times targets, times the quantiles. Sums are as many as horizons and targets.

Source of the coverage and the width of intervals: Gneiting, Balabdaoui and Raftery, Probabilistic forecasts, calibration and
sharpness, Journal of the Royal Statistical Society B 69, 2007.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from tidegate.training.data.series import Floats, Ints
from tidegate.training.judging.baselines import Baseline
from tidegate.training.judging.metrics import Bools, Doubles
from tidegate.training.judging.scores import Error, Interval, Quantile

# A baseline with forecasts for a smaller share of the timesteps is left out; otherwise all would be scored on those few.
# An example is seasonal-naive on segments shorter than a season.
MIN_SHARE = 0.5
MODEL, PERSISTENCE = "model", "persistence"

Shape = tuple[int, int]  # horizons and targets


@dataclass
class _ErrorSums:
    """Of one forecast on the rows that count: each (horizons, targets) or (horizons, targets, levels)."""

    absolute: Doubles
    square: Doubles
    pinball: Doubles
    below: Doubles
    inside: Doubles
    width: Doubles

    @classmethod
    def zeros(cls, shape: Shape, levels: int) -> "_ErrorSums":
        """Of no row."""
        plain, by_level = (shape, (*shape, levels))
        return cls(*(np.zeros(part) for part in (plain, plain, by_level, by_level, plain, plain)))

    def add(self, other: "_ErrorSums") -> None:
        """Add the sums of other rows."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class _Sums:
    """On the rows where some forecasters have a forecast each: their number (horizons, targets), and the errors."""

    count: Ints
    errors: dict[str, _ErrorSums]
    inside: Doubles  # of the interval
    width: Doubles

    def add(self, other: "_Sums") -> None:
        """Add the sums of other rows."""
        self.count += other.count
        self.inside += other.inside
        self.width += other.width
        for name, errors in self.errors.items():
            errors.add(other.errors[name])


@dataclass(frozen=True)
class _Chunk:
    """Some rows: true values and point forecasts (rows, horizons, targets), and quantiles (..., levels) of some."""

    truth: Doubles
    points: dict[str, Floats]
    quantiles: dict[str, Doubles]
    interval: Floats | None


class ForecastSums:
    """The errors at each horizon of each target.

    A row counts if the model and all baselines have a forecast. Which baselines are kept is known at the end, so there are
    sums for every choice of those that may be left out.

    Args:
        shape: the numbers of horizons and targets.
        baselines: by name; `persistence` is one of them.
        offsets: (horizons, targets, levels) the quantiles of the errors of some baselines.
        levels: of the quantiles.

    """

    def __init__(
        self, shape: Shape, baselines: Mapping[str, Baseline], offsets: Mapping[str, Doubles], levels: Sequence[float]
    ) -> None:
        self._shape = shape
        self._baselines = baselines
        self._offsets = offsets
        self._levels = tuple(levels)
        optional = [name for name in baselines if name != PERSISTENCE]
        self._sums = {
            frozenset(chosen): self._zeros((MODEL, PERSISTENCE, *chosen))
            for size in range(len(optional) + 1)
            for chosen in combinations(optional, size)
        }
        self._required: Ints = np.zeros(shape, np.int64)
        self._known = {name: np.zeros(shape, np.int64) for name in optional}

    def _zeros(self, names: Sequence[str]) -> _Sums:
        errors = {name: _ErrorSums.zeros(self._shape, len(self._levels)) for name in names}
        return _Sums(np.zeros(self._shape, np.int64), errors, np.zeros(self._shape), np.zeros(self._shape))

    def add(self, rows: Ints, truth: Floats, outputs: Mapping[str, Floats]) -> None:
        """Add rows of the series (n,), with their true values (n, horizons, targets) and the outputs of the graph."""
        points = {MODEL: outputs["forecast"]} | {name: part.at(rows) for name, part in self._baselines.items()}
        chunk = _Chunk(truth.astype(np.float64), points, self._quantiles(points, outputs), outputs.get("interval"))
        required = ~np.isnan(chunk.truth + points[MODEL] + points[PERSISTENCE])
        self._required += required.sum(axis=0)
        known = {name: required & ~np.isnan(points[name]) for name in self._known}
        for name, part in known.items():
            self._known[name] += part.sum(axis=0)
        # Most rows count for every choice: what is summed once serves all.
        summed: list[tuple[Bools, _Sums]] = []
        for chosen, sums in self._sums.items():
            counts = np.logical_and.reduce([required, *(known[name] for name in chosen)])
            own = next((own for other, own in summed if np.array_equal(other, counts)), None)
            if own is None:
                own = self._of(chunk, counts)
                summed.append((counts, own))
            sums.add(own)

    def _quantiles(self, points: Mapping[str, Floats], outputs: Mapping[str, Floats]) -> dict[str, Doubles]:
        """(rows, horizons, targets, levels) of each forecast that has quantiles."""
        if not self._levels:
            return {}
        found = {name: points[name].astype(np.float64)[..., None] + part for name, part in self._offsets.items()}
        return found | ({MODEL: outputs["quantiles"].astype(np.float64)} if "quantiles" in outputs else {})

    def _of(self, chunk: _Chunk, counts: Bools) -> _Sums:
        """The sums of a chunk over the rows that count (rows, horizons, targets)."""
        sums = self._zeros(list(chunk.points))
        sums.count += counts.sum(axis=0)
        truth = np.where(counts, chunk.truth, 0.0)
        for name, errors in sums.errors.items():
            missed = np.where(counts, chunk.points[name] - truth, 0.0)
            errors.absolute += np.abs(missed).sum(axis=0)
            errors.square += np.square(missed).sum(axis=0)
            if name in chunk.quantiles:
                self._add_quantiles(errors, truth, chunk.quantiles[name], counts)
        if chunk.interval is not None:
            low, high = np.moveaxis(chunk.interval.astype(np.float64), -1, 0)
            sums.inside += (counts & (low <= truth) & (truth <= high)).sum(axis=0)
            sums.width += np.where(counts, high - low, 0.0).sum(axis=0)
        return sums

    def _add_quantiles(self, errors: _ErrorSums, truth: Doubles, quantiles: Doubles, counts: Bools) -> None:
        for place, level in enumerate(self._levels):
            quantile = quantiles[..., place]
            missed = np.where(counts, truth - quantile, 0.0)
            errors.pinball[..., place] += np.maximum(level * missed, (level - 1.0) * missed).sum(axis=0)
            errors.below[..., place] += (counts & (truth <= quantile)).sum(axis=0)
        low, high = quantiles[..., 0], quantiles[..., -1]
        errors.inside += (counts & (low <= truth) & (truth <= high)).sum(axis=0)
        errors.width += np.where(counts, high - low, 0.0).sum(axis=0)

    def at(self, horizon: int, target: int, scale: float | None, nominal: float | None) -> "Summed | None":
        """The errors at one horizon of one target; None if no row counts.

        Args:
            horizon: its place.
            target: its place.
            scale: the divisor of a MAE that gives the MASE.
            nominal: the coverage that the interval of the graph is to have.
        """
        place = horizon, target
        kept = frozenset(
            name for name, known in self._known.items() if known[place] >= MIN_SHARE * self._required[place]
        )
        sums = self._sums[kept]
        count = int(sums.count[place])
        if not count:
            return None
        errors = {name: self._error(name, part, place, count, scale) for name, part in sums.errors.items()}
        return Summed(
            count, errors, Interval(nominal, float(sums.inside[place]) / count, float(sums.width[place]) / count)
        )

    def _error(self, name: str, sums: _ErrorSums, place: Shape, count: int, scale: float | None) -> Error:
        mae = float(sums.absolute[place]) / count
        error = Error(
            mae=mae, rmse=float(np.sqrt(sums.square[place] / count)), mase=None if scale is None else mae / scale
        )
        offsets = None if name == MODEL else self._offsets.get(name)
        if not self._levels or (name != MODEL and (offsets is None or np.isnan(offsets[place]).any())):
            return error
        losses = sums.pinball[place] / count
        several = len(self._levels) > 1  # a single quantile makes no interval
        return replace(
            error,
            pinball=float(losses.mean()),
            coverage=float(sums.inside[place]) / count if several else None,
            width=float(sums.width[place]) / count if several else None,
            quantiles=tuple(
                Quantile(level, float(loss), float(below))
                for level, loss, below in zip(self._levels, losses, sums.below[place] / count, strict=True)
            ),
        )


@dataclass(frozen=True)
class Summed:
    """The errors of the model and of the kept baselines by name on `count` rows; and of the interval, if there is one."""

    count: int
    errors: dict[str, Error]
    interval: Interval
