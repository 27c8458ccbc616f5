"""Forecasts without a model, which a model must beat to be worth serving: persistence and seasonal-naive."""

from collections.abc import Sequence

import numpy as np

from tidegate.training.data.series import Floats, Series, Span, Spans, forward_fill
from tidegate.training.judging.metrics import Doubles


def persistence(series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> Floats:
    """The last observed value, for every horizon: (rows of the spans, horizons, targets); NaN before the first of a group.

    It reads rows before a span too: a baseline may know the past of its group.
    """
    seen = np.concatenate([_last_seen(series, targets, span) for span in spans])  # (rows, targets)
    return np.broadcast_to(seen[:, None, :], (len(seen), len(horizons), len(targets)))  # one copy for all horizons


def seasonal_naive(
    series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans, *, season: int
) -> Floats:
    """The value one season before the forecast time (or more seasons, until it lies in the past).

    It reads rows before a span too. It counts rows, so it is NaN if a time gap lies between.

    Returns:
        (rows of the spans, horizons, targets).
    """
    parts = []
    for first, end in spans:
        past = _group_of(series, first)
        values = _last_seen(series, targets, (past, end))
        forecast = np.full((end - first, len(horizons), len(targets)), np.nan, np.float32)
        for low, high in series.segments(((past, end),)):
            for index, horizon in enumerate(horizons):
                back = season * -(-horizon // season) - horizon  # rows before the present one, 0 <= back < season
                begin = max(low + back, first)
                if begin < high:
                    forecast[begin - first : high - first, index] = values[begin - back - past : high - back - past]
        parts.append(forecast)
    return np.concatenate(parts)


def residual_quantiles(forecast: Floats, truth: Floats, levels: Sequence[float]) -> Doubles:
    """The quantiles of the errors of a forecast. Added to the forecast, they are its quantiles.

    Args:
        forecast: (rows, horizons, targets).
        truth: the same shape, NaN if unknown.
        levels: of the quantiles.

    Returns:
        (horizons, targets, levels); NaN without a known error.
    """
    offsets = np.full((*truth.shape[1:], len(levels)), np.nan)
    for horizon, target in np.ndindex(offsets.shape[:2]):  # all at once are twice the memory of all forecasts
        place = horizon, target
        known = truth[:, horizon, target].astype(np.float64) - forecast[:, horizon, target]
        known = known[~np.isnan(known)]
        if len(known):
            offsets[place] = np.quantile(known, levels)
    return offsets


def _group_of(series: Series, row: int) -> int:
    """The first row of the group that a row belongs to."""
    return next(first for first, end in series.spans if first <= row < end)


def _last_seen(series: Series, targets: Sequence[int], span: Span) -> Floats:
    """(rows of the span, targets), each missing value replaced by the last one of its group; NaN before the first."""
    first, end = span
    past = _group_of(series, first)
    return forward_fill(series.values[past:end, list(targets)])[first - past :]
