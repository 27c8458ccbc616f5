"""The forecasts that cost nothing, and that a model must beat to be worth serving: persistence and seasonal-naive."""

from collections.abc import Sequence

import numpy as np

from training.data.series import Floats, Series, Span, Spans
from training.judging.metrics import Doubles


def persistence(series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> Floats:
    """The last observed value, for every horizon: (rows of the spans, horizons, targets); NaN before a group's first one.

    Reads rows before a span too: a baseline may know the past of its group.
    """
    seen = np.concatenate([_last_seen(series, targets, span) for span in spans])  # (rows, targets)
    return np.repeat(seen[:, None, :], len(horizons), axis=1)


def seasonal_naive(
    series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans, *, season: int
) -> Floats:
    """The value one season before what is forecast (or more seasons, until it lies in the past).

    Reads rows before a span too. Counts rows, so it is NaN where a time gap lies between.

    Returns:
        (rows of the spans, horizons, targets).
    """
    parts = []
    for first, end in spans:
        past = _group_of(series, first)
        values = _last_seen(series, targets, (past, end))
        forecast = np.full((end - first, len(horizons), len(targets)), np.nan, np.float32)
        for low, high in series.stretches(((past, end),)):
            for index, horizon in enumerate(horizons):
                back = season * -(-horizon // season) - horizon  # rows before the present one, 0 <= back < season
                begin = max(low + back, first)
                if begin < high:
                    forecast[begin - first : high - first, index] = values[begin - back - past : high - back - past]
        parts.append(forecast)
    return np.concatenate(parts)


def residual_quantiles(forecast: Floats, truth: Floats, levels: Sequence[float]) -> Doubles:
    """What has to be added to a forecast to make quantiles of it: those of what it missed on the validation part.

    Args:
        forecast: (rows, horizons, targets).
        truth: the same shape, NaN where unknown.
        levels: of the quantiles.

    Returns:
        (horizons, targets, levels); NaN where nothing is known.
    """
    missed = truth.astype(np.float64) - forecast
    offsets = np.full((*missed.shape[1:], len(levels)), np.nan)
    for place in np.ndindex(offsets.shape[:2]):
        known = missed[(slice(None), *place)]
        known = known[~np.isnan(known)]
        if len(known):
            offsets[place] = np.quantile(known, levels)
    return offsets


def _group_of(series: Series, row: int) -> int:
    """The first row of the group that a row belongs to."""
    return next(first for first, end in series.spans if first <= row < end)


def _last_seen(series: Series, targets: Sequence[int], span: Span) -> Floats:
    """(rows of the span, targets) with each missing value replaced by the one before it in the group; else NaN."""
    first, end = span
    past = _group_of(series, first)
    values = series.values[past:end, list(targets)]
    rows = np.where(np.isnan(values), -1, np.arange(len(values))[:, None])
    rows = np.maximum.accumulate(rows, axis=0)
    held = np.where(rows < 0, np.float32(np.nan), np.take_along_axis(values, np.maximum(rows, 0), axis=0))
    seen: Floats = held[first - past :]
    return seen
