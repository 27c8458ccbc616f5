"""Ridge autoregression and the linear classifier: what they compute, what they read, what they may not read."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Group, Series, future_values
from tidegate.training.data.split import Split, split_by_time
from tidegate.training.judging import least_squares, ridge
from tidegate.training.judging.baselines import persistence
from tidegate.training.judging.least_squares import PENALTIES, linear_inputs
from tidegate.training.judging.linear_classifier import fit_classifier
from tidegate.training.judging.ridge import fit_ridge


@pytest.fixture
def split() -> Split:
    """Of 600 rows."""
    return Split(((0, 400),), ((400, 500),), ((500, 600),))


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_a_line_is_that_of_another_library(
    make_series: Callable[..., Series], split: Split, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    """On the training rows, with their median error added; through zero, with the past alone, with the level, and with all features."""
    from sklearn.linear_model import Ridge as Oracle  # slow to load

    penalty = 3
    monkeypatch.setattr(ridge, "_choose", lambda errors: [(errors.shape[1] - ridge.KINDS + kind, penalty)])
    series = make_series(600)
    fitted = fit_ridge(series, split, [1], [3], season=24)
    assert fitted is not None
    line = fitted.lines[-1][0][0]
    assert line.lags == 25
    scaler = fit_scaler(series, split.train)
    scaled = ((series.values - scaler.mean) / scaler.std).astype(np.float64)

    def design(first: int, end: int) -> np.ndarray:
        now = scaled[first:end, [1]]
        own = [scaled[np.maximum(np.arange(first, end) - lag, 0), 1] for lag in range(1, line.lags)]
        return np.concatenate([np.stack(own, axis=1) - now, *[[], [], [now], [scaled[first:end]]][kind]], axis=1)

    def base(first: int, end: int) -> np.ndarray:
        return scaled[first:end, 1] if kind < 2 else np.zeros(end - first)

    truth = scaled[3:400, 1] - base(0, 397)
    oracle = Oracle(alpha=PENALTIES[penalty] * 397, solver="svd", fit_intercept=kind > 0).fit(design(0, 397), truth)
    shift = np.median(truth - oracle.predict(design(0, 397))) if kind else 0.0
    wanted = (oracle.predict(design(500, 600)) + base(500, 600) + shift) * scaler.std[1] + scaler.mean[1]
    np.testing.assert_allclose(fitted.forecast(series, split.test)[:, 0, 0], wanted, rtol=1e-4)


def test_a_kind_that_knows_more_must_be_better_in_every_fold() -> None:
    """Better in both replaces, better on the mean alone joins, and worse is left out."""
    errors = np.full((2, ridge.KINDS, 1), 1.0)  # (folds, kinds, penalties)
    errors[:, 1] = 0.8
    assert ridge._choose(errors) == [(1, 0)]
    errors[:, 1, 0] = 0.5, 1.1
    assert ridge._choose(errors) == [(0, 0), (1, 0)]
    errors[:, 1, 0] = 0.9, 1.3
    assert ridge._choose(errors) == [(0, 0)]


def test_a_line_on_a_random_walk_holds_at_every_level(make_series: Callable[..., Series], split: Split) -> None:
    """It hardly knows a level; so what stands twenty standard deviations higher is forecast as much higher."""
    series = make_series(600)
    walk = np.cumsum(np.random.default_rng(1).normal(0, 1, 600))[:, None]
    series = replace(series, values=(series.values + walk).astype(np.float32))
    fitted = fit_ridge(series, split, [0], [6], season=24)
    assert fitted is not None
    moved = replace(series, values=series.values + np.float32(100))
    np.testing.assert_allclose(
        fitted.forecast(moved, split.test), fitted.forecast(series, split.test) + 100, rtol=0, atol=3
    )


def test_a_short_past_has_lines_of_its_own(make_series: Callable[..., Series], split: Split) -> None:
    """The first row of a group is forecast from its value alone, whatever the other lines say of a past that is not there."""
    series = make_series(600)
    fitted = fit_ridge(series, split, [0], [6], season=24)
    assert fitted is not None
    assert fitted.lags[0] == 1
    assert fitted.lags[-1] > 8
    others = replace(fitted, lines=(fitted.lines[0], *[fitted.lines[-1]] * (len(fitted.lags) - 1)))
    first, later = ((0, 1),), ((100, 200),)
    np.testing.assert_array_equal(fitted.forecast(series, first), others.forecast(series, first))
    np.testing.assert_array_equal(fitted.forecast(series, later), others.forecast(series, later))
    assert not np.array_equal(fitted.forecast(series, ((8, 20),)), others.forecast(series, ((8, 20),)))


def test_it_forecasts_what_a_line_can(make_series: Callable[..., Series], split: Split) -> None:
    """Two waves and noise: close to the noise, far better than persistence."""
    series = make_series(600)
    fitted = fit_ridge(series, split, [0], [6], season=24)
    assert fitted is not None
    truth = future_values(series, [0], [6], split.test)
    error = np.nanmean(np.abs(fitted.forecast(series, split.test) - truth))
    assert error < 0.6
    assert error < 0.2 * np.nanmean(np.abs(persistence(series, [0], [6], split.test) - truth))


def test_the_held_out_part_teaches_nothing(make_series: Callable[..., Series], split: Split) -> None:
    """Whatever stands in it, the same line comes out."""
    series = make_series(600)
    changed = replace(series, values=series.values.copy())
    changed.values[500:] = 99
    first, second = (fit_ridge(each, split, [0], [1], season=24) for each in (series, changed))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.lines[-1][0][0].window, second.lines[-1][0][0].window)


def test_a_forecast_does_not_know_the_future(make_series: Callable[..., Series], split: Split) -> None:
    """Rows after a timestep do not change what is said at it."""
    series = make_series(600)
    fitted = fit_ridge(series, split, [0, 2], [1, 6], season=24)
    assert fitted is not None
    before = fitted.forecast(series, split.test)
    series.values[550:] = 99
    np.testing.assert_array_equal(fitted.forecast(series, split.test)[:50], before[:50])


def test_missing_values_are_held(make_series: Callable[..., Series], split: Split) -> None:
    """Holes neither stop the fit nor the forecast: there is one for every row."""
    series = make_series(600, missing=0.2)
    fitted = fit_ridge(series, split, [0], [1, 3], season=24)
    assert fitted is not None
    assert np.isfinite(fitted.forecast(series, series.spans)).all()


def test_horizons_share_a_matrix_or_have_their_own(
    make_series: Callable[..., Series], split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both give nearly the same lines: they differ by the last few rows of the training part."""
    series = make_series(600)
    shared = fit_ridge(series, split, [0], [1, 6], season=24)
    monkeypatch.setattr(ridge, "SHARED_ROWS", 2.0)
    own = fit_ridge(series, split, [0], [1, 6], season=24)
    assert shared is not None
    assert own is not None
    forecasts = [each.forecast(series, split.test) for each in (shared, own)]
    assert not np.array_equal(*forecasts)
    np.testing.assert_allclose(*forecasts, atol=0.3)


def test_without_truth_there_is_no_line(make_series: Callable[..., Series], split: Split) -> None:
    """A validation part that is shorter than the horizon cannot choose."""
    assert fit_ridge(make_series(600), split, [0], [1, 100], season=24) is None


def test_lags_end_at_a_gap(make_series: Callable[..., Series]) -> None:
    """The first timestep after a gap is repeated, because the rows before it are of another time."""
    series = make_series(600, gap_at=550)
    inputs = linear_inputs(series, np.zeros(3, np.float32), np.ones(3, np.float32))
    window = inputs.windows(np.array([551]), [0], 4, [2])
    np.testing.assert_array_equal(window[0], series.values[[551, 550, 550, 550, 551], [0, 0, 0, 0, 2]])


def test_inputs_repeat_the_last_value_of_the_group() -> None:
    """Before the first value of a group they are 0, the training mean."""
    values = np.array([[np.nan], [1], [np.nan], [np.nan], [2]], np.float32)
    times = np.datetime64(0, "ns") + np.arange(5) * np.timedelta64(1, "h")
    groups = (Group("a", 0, 3), Group("b", 3, 5))
    series = Series("toy", "0" * 64, ("s0",), ("",), values, times, 3600.0, groups)
    inputs = linear_inputs(series, np.zeros(1, np.float32), np.ones(1, np.float32))
    assert inputs.values[:, 0].tolist() == [0, 1, 1, 0, 2]


@pytest.fixture
def labelled(make_series: Callable[..., Series]) -> Series:
    """Two classes that the last few values of a sensor tell apart, but not the last one alone; some rows unlabelled."""
    series = make_series(1000)
    labels = (np.gradient(series.values[:, 2]) > 0).astype(np.int64)
    labels[::17] = -1
    return replace(series, labels=labels, classes=("down", "up"))


def test_the_classifier_reads_a_window(labelled: Series) -> None:
    """It chooses more than one lag, is right far more often than not, and gives probabilities."""
    split = split_by_time(labelled, train=0.6, validation=0.2, horizon=1)
    fitted = fit_classifier(labelled, split)
    assert fitted is not None
    assert fitted.lags > 1
    probability = fitted.probability(labelled, split.test)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
    truth = labelled.labels[slice(*split.test[0])]
    known = truth >= 0
    assert (probability.argmax(axis=1) == truth)[known].mean() > 0.75


def test_the_classifier_needs_labels_in_both_parts(labelled: Series) -> None:
    """A validation part without one cannot choose."""
    labelled.labels[600:800] = -1
    assert fit_classifier(labelled, split_by_time(labelled, train=0.6, validation=0.2, horizon=1)) is None


def test_lines_are_solved_in_one_thread(
    make_series: Callable[..., Series], split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two threads of BLAS the decompositions took seven times the processor time."""
    seen: list[int] = []
    solve = least_squares.NormalEquations.solve

    def spied(self: least_squares.NormalEquations, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return solve(self, columns)

    monkeypatch.setattr(least_squares.NormalEquations, "solve", spied)
    fit_ridge(make_series(600), split, [1], [3], season=24)
    assert seen
    assert set(seen) == {1}
