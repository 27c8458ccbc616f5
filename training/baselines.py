"""The forecasts that cost nothing, and that a model must beat to be worth serving: persistence and seasonal-naive."""

from collections.abc import Sequence

import numpy as np

from training.data import Floats, Series

DAY_S = 86_400.0


def season_steps(period_s: float | None) -> int | None:
    """Timesteps in a day; None when the period is unknown, does not divide a day, or is itself a day or longer."""
    if period_s is None:
        return None
    steps = DAY_S / period_s
    return round(steps) if steps >= 2 and abs(steps - round(steps)) < 1e-6 * steps else None


def persistence(series: Series, targets: Sequence[int], horizons: Sequence[int], start: int, stop: int) -> Floats:
    """The last observed value, for every horizon: (stop - start, horizons, targets); NaN before the first one."""
    seen = _last_seen(series.values[:stop, list(targets)])[start:]  # (time, targets)
    return np.repeat(seen[:, None, :], len(horizons), axis=1)


def seasonal_naive(
    series: Series, targets: Sequence[int], horizons: Sequence[int], start: int, stop: int, *, season: int
) -> Floats:
    """The value one season before what is forecast (or more seasons, until it lies in the past).

    Reads rows before `start` too: a baseline may know the past. Counts rows, so it is NaN where a time gap lies between.

    Returns:
        (stop - start, horizons, targets).
    """
    values = _last_seen(series.values[:, list(targets)])
    forecast = np.full((stop - start, len(horizons), len(targets)), np.nan, np.float32)
    for first, end in series.stretches(0, stop):
        for index, horizon in enumerate(horizons):
            back = season * -(-horizon // season) - horizon  # rows before the present one, 0 <= back < season
            begin = max(first + back, start)
            if begin < end:
                forecast[begin - start : end - start, index] = values[begin - back : end - back]
    return forecast


def _last_seen(values: Floats) -> Floats:
    """(time, targets) with each missing value replaced by the one before it; NaN before the first."""
    rows = np.where(np.isnan(values), -1, np.arange(len(values))[:, None])
    rows = np.maximum.accumulate(rows, axis=0)
    return np.where(rows < 0, np.float32(np.nan), np.take_along_axis(values, np.maximum(rows, 0), axis=0))
