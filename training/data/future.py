"""The true values at each horizon, for some rows at a time: for all rows at once they are as many as all forecasts."""

from collections.abc import Sequence

import numpy as np

from tidegate.training.data.series import Floats, Ints, Series, Spans, segment_offsets

# Which horizons or targets, by their places.
Some = slice | Sequence[int]
ALL = slice(None)


class FutureValues:
    """What comes true of some rows, as `future_values` says it of all of them.

    Args:
        series: with the targets.
        targets: columns.
        horizons: in timesteps.
        spans: rows whose true values are known; outside them all is unknown.

    """

    def __init__(self, series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> None:
        self._values = series.values
        self._targets = np.asarray(targets, np.int64)
        self._horizons = np.asarray(horizons, np.int64)
        self._ends = np.zeros(len(series), np.int64)  # of the segment of each row within its span
        for _, first, end in segment_offsets(series, spans):
            self._ends[first:end] = end

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of horizons and targets."""
        return len(self._horizons), len(self._targets)

    def at(self, rows: Ints, horizons: Some = ALL, targets: Some = ALL) -> Floats:
        """(rows, horizons, targets), NaN where it is missing, behind a gap, or outside its span."""
        ahead = rows[:, None] + self._horizons[horizons]
        unknown = ahead >= self._ends[rows][:, None]
        ahead[unknown] = 0
        values: Floats = self._values[ahead[..., None], self._targets[targets]]
        values[unknown] = np.nan
        return values
