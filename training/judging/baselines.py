"""Forecasts without a model, which a model must beat to be worth serving: persistence and seasonal-naive."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from tidegate.training.data.future import ALL, FutureValues, Some
from tidegate.training.data.series import Floats, Ints, Series, Spans, forward_fill
from tidegate.training.judging.metrics import Doubles

# Errors that are held at once to take their quantiles: 32 MB in float64.
ERRORS_AT_ONCE = 2**22


class Baseline(Protocol):
    """Forecasts of some rows at a time: those of all rows and horizons at once would fill the memory."""

    def at(self, rows: Ints, horizons: Some = ALL, targets: Some = ALL) -> Floats:
        """(rows, horizons, targets), NaN where there is no forecast."""


class Persistence:
    """The last observed value, for every horizon; NaN before the first of a group."""

    def __init__(self, series: Series, targets: Sequence[int], horizons: Sequence[int]) -> None:
        self._seen = _last_seen(series, targets)
        self._horizons = np.asarray(horizons, np.int64)

    def at(self, rows: Ints, horizons: Some = ALL, targets: Some = ALL) -> Floats:
        """(rows, horizons, targets). The rows share one copy for all horizons."""
        seen = self._seen[rows][:, targets]
        return np.broadcast_to(seen[:, None, :], (len(seen), len(self._horizons[horizons]), seen.shape[1]))


class SeasonalNaive:
    """The value one season before the forecast time, or more seasons, until it lies in the past.

    It counts rows, so it is NaN if a time gap lies between.
    """

    def __init__(self, series: Series, targets: Sequence[int], horizons: Sequence[int], season: int) -> None:
        self._seen = _last_seen(series, targets)
        self._begins = np.zeros(len(series), np.int64)
        for first, end in series.segments():
            self._begins[first:end] = first
        ahead = np.asarray(horizons, np.int64)
        self._back = season * -(-ahead // season) - ahead  # rows before the present one, 0 <= back < season

    def at(self, rows: Ints, horizons: Some = ALL, targets: Some = ALL) -> Floats:
        """(rows, horizons, targets)."""
        past = rows[:, None] - self._back[horizons]
        forecast = self._seen[np.maximum(past, 0)][..., targets]
        forecast[past < self._begins[rows][:, None]] = np.nan
        return forecast


def residual_quantiles(baseline: Baseline, truth: FutureValues, rows: Ints, levels: Sequence[float]) -> Doubles:
    """The quantiles of the errors of a baseline on these rows. Added to its forecast, they are the quantiles of that.

    Returns:
        (horizons, targets, levels); NaN without a known error.
    """
    offsets = np.full((*truth.shape, len(levels)), np.nan)
    for horizons, target in columns_at_once(truth.shape, len(rows)):
        part = horizons, slice(target, target + 1)
        errors = truth.at(rows, *part).astype(np.float64) - baseline.at(rows, *part)
        for place, column in enumerate(errors[..., 0].T, start=horizons.start):
            known = column[~np.isnan(column)]
            if len(known):
                offsets[place, target] = np.quantile(known, levels)
    return offsets


def columns_at_once(shape: tuple[int, int], rows: int) -> Iterator[tuple[slice, int]]:
    """The horizons and targets in parts: a target and some horizons at a time, with at most `ERRORS_AT_ONCE` errors."""
    group = max(ERRORS_AT_ONCE // max(rows, 1), 1)
    for target in range(shape[1]):
        for low in range(0, shape[0], group):
            yield slice(low, min(low + group, shape[0])), target


def _last_seen(series: Series, targets: Sequence[int]) -> Floats:
    """(time, targets), each missing value replaced by the last one of its group; NaN before the first."""
    seen = series.values[:, list(targets)]
    for first, end in series.spans:
        seen[first:end] = forward_fill(seen[first:end])
    return seen


def persistence(series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> Floats:
    """The forecasts of `Persistence` for all rows of the spans: (rows, horizons, targets)."""
    return Persistence(series, targets, horizons).at(np.concatenate([np.arange(*span) for span in spans]))
