"""Scores forecasts beside two simple baselines.

*Persistence* forecasts the last observed value. *Seasonal-naive* forecasts the value one season before. A model must beat
both to be useful. All three are scored on the same timesteps: those with an observed value and a forecast of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from tidegate.core.spec import Array, Floats


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of one target at one horizon.

    `predicted` is the forecast for the last timestep, and `came_true` is the actual value. The errors are mean absolute
    errors, NaN without a scored timestep. `seasonal_mae` is None without a season. `low` and `high` are the bounds of that
    forecast, NaN where the model gives none.
    """

    target: str
    unit: str
    horizon: int
    predicted: float
    came_true: float
    mae: float
    persistence_mae: float
    seasonal_mae: float | None
    scored: int
    low: float = np.nan
    high: float = np.nan

    @property
    def beats_baselines(self) -> bool:
        """Whether the error of the model is below that of every baseline."""
        return self.mae < self.persistence_mae and (self.seasonal_mae is None or self.mae < self.seasonal_mae)


class ForecastScorer:
    """Keeps and scores the forecasts of one stream.

    Args:
        truth: (timesteps, targets), NaN where missing.
        targets: the names of the targets.
        units: their units.
        horizons: in timesteps.
        season: in timesteps; None leaves out seasonal-naive.
        times: the time of each timestep, if known.
        coverage: the share of actual values that the bounds of a forecast should hold; None without bounds.

    Attributes:
        errors: (model, persistence, seasonal) x horizons x targets, sums of absolute errors.
        scored: horizons x targets, the number of scored timesteps.
    """

    def __init__(
        self,
        truth: Floats,
        targets: Sequence[str],
        units: Sequence[str],
        horizons: Sequence[int],
        season: int | None,
        *,
        times: Sequence[datetime] | None = None,
        coverage: float | None = None,
    ) -> None:
        assert truth.shape[1] == len(targets)
        self.truth = truth
        self.targets = targets
        self.units = units or [""] * len(targets)
        self.horizons = horizons
        self.times = times
        self.coverage = coverage
        # With less than two seasons most timesteps would have no seasonal forecast, and would not be scored.
        self.season = season if season is not None and len(truth) >= 2 * season else None
        self.forecasts = np.full((len(truth), len(horizons), len(targets)), np.nan, np.float32)
        self.bounds = np.full((*self.forecasts.shape, 2), np.nan, np.float32)
        self._last_seen = _last_seen(truth)
        self._made = 0

        self.errors = np.zeros((3, len(horizons), len(targets)))
        self.scored = np.zeros((len(horizons), len(targets)), np.int64)

    def add(self, row: int, forecast: Array, quantiles: Array | None = None) -> None:
        """Adds the forecast (horizons, targets) made at a timestep. Rows come in order.

        The outermost of `quantiles` (horizons, targets, quantiles), which are in ascending order, become its bounds.
        """
        self.forecasts[row] = forecast.reshape(len(self.horizons), len(self.targets))
        if quantiles is not None:
            self.bounds[row] = quantiles.reshape(*self.forecasts.shape[1:], -1)[..., [0, -1]]
        self._made = row + 1
        for index, horizon in enumerate(self.horizons):
            if row < horizon:
                continue
            came_true = self.truth[row]
            model = np.abs(self.forecasts[row - horizon, index] - came_true)
            persistence = np.abs(self._last_seen[row - horizon] - came_true)
            seasonal = np.abs(self._seasonal(row, horizon) - came_true)
            counts = np.isfinite(model) & np.isfinite(persistence) & np.isfinite(seasonal)
            for errors, error in zip(self.errors, (model, persistence, seasonal), strict=True):
                errors[index] += np.where(counts, error, 0.0)
            self.scored[index] += counts

    @property
    def last_time(self) -> datetime | None:
        """The time of the last timestep with a forecast, if times are known."""
        return self.times[self._made - 1] if self.times is not None and self._made else None

    def scores(self, others: Sequence["ForecastScorer"] = ()) -> list[Score]:
        """Returns the scores so far, by target and horizon.

        With `others`, the scorers of earlier streams, the errors are over all their timesteps. `seasonal_mae` is None if one of
        them has no season.
        """
        row = self._made - 1
        seasonal = all(scorer.season is not None for scorer in (self, *others))
        scored = sum((scorer.scored for scorer in others), self.scored)
        with np.errstate(invalid="ignore"):  # NaN before the first scored timestep
            mae = sum((scorer.errors for scorer in others), self.errors) / scored
        return [
            Score(
                target=name,
                unit=unit,
                horizon=horizon,
                predicted=float(self.forecasts[row - horizon, index, target]) if row >= horizon else np.nan,
                came_true=float(self.truth[row, target]) if row >= 0 else np.nan,
                mae=float(mae[0, index, target]),
                persistence_mae=float(mae[1, index, target]),
                seasonal_mae=float(mae[2, index, target]) if seasonal else None,
                scored=int(scored[index, target]),
                low=float(self.bounds[row - horizon, index, target, 0]) if row >= horizon else np.nan,
                high=float(self.bounds[row - horizon, index, target, 1]) if row >= horizon else np.nan,
            )
            for target, (name, unit) in enumerate(zip(self.targets, self.units, strict=True))
            for index, horizon in enumerate(self.horizons)
        ]

    def _seasonal(self, row: int, horizon: int) -> Floats:
        """Returns the seasonal-naive forecast for a row, made `horizon` timesteps before it."""
        if self.season is None:
            return np.zeros(len(self.targets), np.float32)
        past = row - self.season * -(-horizon // self.season)
        return self._last_seen[past] if past >= 0 else np.full(len(self.targets), np.nan, np.float32)


def _last_seen(truth: Floats) -> Floats:
    """Replaces each missing value by the last observed one; NaN before the first."""
    rows = np.where(np.isnan(truth), 0, np.arange(len(truth))[:, None])
    return np.take_along_axis(truth, np.maximum.accumulate(rows, axis=0), axis=0)


def percent(share: float) -> str:
    """Formats a share as per cent."""
    return f"{100 * share:.4g} %"
