import math
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tidegate.cli.forecast_scores import ForecastScorer

nan = math.nan


def last_seen(column: list[float], row: int) -> float:
    """Returns the value of a row, or the last observed one before it."""
    while row >= 0 and math.isnan(column[row]):
        row -= 1
    return column[row] if row >= 0 else nan


def reference_errors(
    truth: Any, forecasts: Any, index: int, horizon: int, target: int, season: int | None
) -> tuple[list[float], list[float], list[float]]:
    """Returns the absolute errors of the model, persistence and seasonal-naive, on the rows where all three have one."""
    column = [float(value) for value in truth[:, target]]
    errors: tuple[list[float], list[float], list[float]] = ([], [], [])
    for row in range(horizon, len(column)):
        made = row - horizon
        model = float(forecasts[made][index][target])
        persistence = last_seen(column, made)
        seasonal = 0.0
        if season is not None:
            past = row
            while past > made:  # the latest row of the same phase that was known when the forecast was made
                past -= season
            seasonal = last_seen(column, past) if past >= 0 else nan
        if any(math.isnan(value) for value in (column[row], model, persistence, seasonal)):
            continue
        for mine, forecast in zip(errors, (model, persistence, seasonal), strict=True):
            mine.append(abs(forecast - column[row]))
    return errors


@pytest.mark.parametrize("season", [None, 5, 12])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_scores_equal_a_reference_computation(season: int | None, missing: float) -> None:
    """Every target at every horizon, also beyond a season, with and without missing values."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(60, 2)).astype(np.float32)
    truth[rng.random(truth.shape) < missing] = nan
    horizons = (1, 4, 7, 13)
    forecasts = rng.normal(size=(60, 4, 2)).astype(np.float32)
    scorer = ForecastScorer(truth, ("u", "v"), ("m", "s"), horizons, season)
    for row in range(60):
        scorer.add(row, forecasts[row])
    scores = scorer.scores()
    assert [(score.target, score.unit, score.horizon) for score in scores] == [
        (target, unit, horizon) for target, unit in (("u", "m"), ("v", "s")) for horizon in horizons
    ]
    for score in scores:
        target, index = ("u", "v").index(score.target), horizons.index(score.horizon)
        model, persistence, seasonal = reference_errors(truth, forecasts, index, score.horizon, target, season)
        assert score.scored == len(model) > 0
        assert score.mae == pytest.approx(np.mean(model), rel=1e-5)
        assert score.persistence_mae == pytest.approx(np.mean(persistence), rel=1e-5)
        if season is None:
            assert score.seasonal_mae is None
        else:
            assert score.seasonal_mae == pytest.approx(np.mean(seasonal), rel=1e-5)


def test_errors_of_several_streams_are_over_all_their_timesteps() -> None:
    """A long stream counts for more than a short one. The last forecast is that of the last stream."""
    rng = np.random.default_rng(4)
    scorers, mine, naive = [], [], []
    for length in (30, 12, 20):
        truth, forecasts = rng.normal(size=(length, 1)), rng.normal(size=(length, 1, 1))
        scorer = ForecastScorer(truth.astype(np.float32), ("u",), (), (3,), None)
        for row in range(length):
            scorer.add(row, forecasts[row])
        scorers.append(scorer)
        mine.extend(np.abs(forecasts[:-3, 0, 0] - truth[3:, 0]))
        naive.extend(np.abs(truth[:-3, 0] - truth[3:, 0]))
    (score,) = scorers[-1].scores(scorers[:-1])
    assert score.scored == len(mine)
    assert score.mae == pytest.approx(np.mean(mine), rel=1e-5)
    assert score.persistence_mae == pytest.approx(np.mean(naive), rel=1e-5)
    assert score.came_true == scorers[-1].scores()[0].came_true


def test_a_short_stream_among_others_leaves_the_seasonal_baseline_out() -> None:
    """The mean would be over other timesteps than that of the model."""
    short, long = (ForecastScorer(np.zeros((length, 1), np.float32), ("u",), (), (1,), 5) for length in (9, 20))
    for scorer in (short, long):
        for row in range(len(scorer.truth)):
            scorer.add(row, np.ones((1, 1)))
    assert long.scores()[0].seasonal_mae == 0
    assert long.scores([short])[0].seasonal_mae is None
    assert short.scores([long])[0].seasonal_mae is None


def test_nothing_is_scored_before_the_first_horizon() -> None:
    """The score is NaN, and beats no baseline."""
    scorer = ForecastScorer(np.zeros((9, 1), np.float32), ("u",), (), (3,), None)
    assert math.isnan(scorer.scores()[0].mae)
    for row in range(3):
        scorer.add(row, np.zeros((1, 1)))
    (score,) = scorer.scores()
    assert math.isnan(score.mae)
    assert score.scored == 0
    assert not score.beats_baselines


def test_the_last_forecast_and_the_actual_value_are_reported() -> None:
    """The forecast for the last row, made `horizon` rows before."""
    scorer = ForecastScorer(np.array([[1], [2], [4]], np.float32), ("u",), ("V",), (1, 2), None)
    for row, forecast in enumerate(([10, 20], [30, 40], [50, 60])):
        scorer.add(row, np.array(forecast, np.float32))
    near, far = scorer.scores()
    assert (near.predicted, near.came_true) == (30, 4)
    assert (far.predicted, far.came_true) == (20, 4)


def test_the_last_forecast_stands_between_its_outermost_quantiles() -> None:
    """The forecast for the last row; NaN where there was none."""
    scorer = ForecastScorer(np.array([[1], [2], [4]], np.float32), ("u",), ("V",), (1, 2), None, coverage=0.8)
    for row in range(2):
        quantiles = [[[1, 2, 3]], [[4, 5, 6]]]
        scorer.add(row, np.zeros((2, 1)), np.array(quantiles, np.float32) + row)
    scorer.add(2, np.zeros((2, 1)))
    near, far = scorer.scores()
    assert (near.low, near.high) == (2, 4)
    assert (far.low, far.high) == (4, 6)


@pytest.mark.parametrize("dated", [True, False])
def test_a_picture_has_dates_and_the_interval_where_they_are_known(dated: bool) -> None:
    """A person sees when it was, and how sure the model was."""
    plot = pytest.importorskip("tidegate.cli.plot", reason="matplotlib is in the extra plot")
    times = [datetime.fromisoformat("2026-03-01") + timedelta(hours=row) for row in range(40)] if dated else None
    scorer = ForecastScorer(
        np.zeros((40, 1), np.float32), ("u",), ("V",), (1,), None, times=times, coverage=0.8 if dated else None
    )
    for row in range(40):
        scorer.add(row, np.ones((1, 1)), np.array([[[0, 2]]]) if dated else None)
    figure = plot.draw_forecasts(scorer, "m/1")
    try:
        (axis,) = figure.axes
        figure.canvas.draw()
        labels = {label.get_text() for label in axis.get_xticklabels()}
        assert ("12:00" in labels) == dated
        assert [shade.get_label() for shade in axis.collections] == (["80 % interval"] if dated else [])
        if dated:
            assert axis.collections[0].get_paths()[0].get_extents().height == 2
    finally:
        plot.plt.close(figure)


def test_a_series_of_less_than_two_seasons_has_no_seasonal_baseline() -> None:
    """Most of its timesteps would not be scored."""
    assert ForecastScorer(np.zeros((9, 1), np.float32), ("u",), (), (1,), 5).season is None
    assert ForecastScorer(np.zeros((10, 1), np.float32), ("u",), (), (1,), 5).season == 5


def test_a_series_that_begins_in_the_middle_is_scored_from_there() -> None:
    """A resumed stream has no forecasts for its first rows."""
    truth = np.arange(8, dtype=np.float32)[:, np.newaxis]
    scorer = ForecastScorer(truth, ("u",), (), (2,), None)
    for row in range(4, 8):
        scorer.add(row, np.array([[row + 2.5]], np.float32))
    (score,) = scorer.scores()
    assert (score.scored, score.mae, score.persistence_mae) == (2, 0.5, 2)


@pytest.mark.parametrize(
    ("errors", "season", "beats"),
    [((1, 2), None, True), ((2, 1), None, False), ((1, 1), None, False)],
)
def test_a_model_beats_the_baselines_only_when_it_is_better(
    errors: tuple[float, float], season: int | None, beats: bool
) -> None:
    """Equal is not better."""
    mine, step = errors
    truth = np.cumsum(np.full((20, 1), step), axis=0).astype(np.float32)  # persistence is wrong by `step` at each row
    scorer = ForecastScorer(truth, ("u",), (), (1,), season)
    for row in range(20):
        scorer.add(row, truth[row] + step + mine)
    assert scorer.scores()[0].beats_baselines is beats
