"""Persistence and seasonal-naive."""

from collections.abc import Callable

import numpy as np
import pytest

from tidegate.training.data.future import FutureValues
from tidegate.training.data.series import Series, season_steps
from tidegate.training.judging import baselines as module
from tidegate.training.judging.baselines import SeasonalNaive, persistence, residual_quantiles


def test_persistence_repeats_the_last_seen_value(make_series: Callable[..., Series]) -> None:
    """Also where the present value is missing, and for every horizon."""
    series = make_series(10)
    series.values[5:7, 0] = np.nan
    forecast = persistence(series, [0], [1, 3], ((4, 9),))
    np.testing.assert_array_equal(forecast[:, 0, 0], series.values[[4, 4, 4, 7, 8], 0])
    np.testing.assert_array_equal(forecast[:, 1], forecast[:, 0])


def test_persistence_knows_nothing_before_the_first_value(make_series: Callable[..., Series]) -> None:
    """Until a value was seen there is no forecast."""
    series = make_series(10)
    series.values[:3, 0] = np.nan
    assert np.isnan(persistence(series, [0], [1], ((0, 10),))[:3]).all()


@pytest.mark.parametrize(("horizon", "back"), [(1, 23), (24, 0), (25, 23), (48, 0)])
def test_seasonal_naive_repeats_the_same_time_of_the_last_season(
    make_series: Callable[..., Series], horizon: int, back: int
) -> None:
    """The value a whole number of seasons before what is forecast, the latest that is already known."""
    series = make_series(100)
    forecast = SeasonalNaive(series, [1], [horizon], 24).at(np.arange(60, 70))
    np.testing.assert_array_equal(forecast[:, 0, 0], series.values[60 - back : 70 - back, 1])


def test_seasonal_naive_does_not_look_across_a_gap(make_series: Callable[..., Series]) -> None:
    """After a gap there is no forecast until a season has passed, because rows no longer tell the time of day."""
    forecast = SeasonalNaive(make_series(100, gap_at=50), [0], [1], 24).at(np.arange(50, 100))
    assert np.isnan(forecast[:23]).all()
    assert not np.isnan(forecast[23:]).any()


@pytest.mark.parametrize(
    ("period_s", "steps"),
    [(600.0, 144), (3600.0, 24), (0.02, 4_320_000), (86_400.0, None), (7000.0, None), (None, None)],
)
def test_a_season_is_a_day(period_s: float | None, steps: int | None) -> None:
    """In timesteps; none where a day is not a whole number of them."""
    assert season_steps(period_s) == steps


def test_quantiles_of_errors_do_not_depend_on_how_many_are_held(
    make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A horizon and a target at a time gives the same bits as all of them together, and a future that is unknown none."""
    series = make_series(300, missing=0.1, gap_at=200)
    baseline, rows = SeasonalNaive(series, [0, 2], [1, 5, 290], 24), np.arange(40, 300)
    truth = FutureValues(series, [0, 2], [1, 5, 290], ((40, 300),))
    whole = residual_quantiles(baseline, truth, rows, (0.1, 0.5))
    errors = truth.at(rows).astype(np.float64) - baseline.at(rows)
    np.testing.assert_array_equal(whole[:2], np.moveaxis(np.nanquantile(errors[:, :2], (0.1, 0.5), axis=0), 0, -1))
    assert np.isnan(whole[2]).all()
    monkeypatch.setattr(module, "ERRORS_AT_ONCE", 1)
    np.testing.assert_array_equal(residual_quantiles(baseline, truth, rows, (0.1, 0.5)), whole)
