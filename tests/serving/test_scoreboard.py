import math
from typing import Any

import numpy as np
import pytest

from serving.cli.scoreboard import Scoreboard

nan = math.nan


def last_seen(column: list[float], row: int) -> float:
    """The value of a row, or the last observed one before it."""
    while row >= 0 and math.isnan(column[row]):
        row -= 1
    return column[row] if row >= 0 else nan


def slowly(
    truth: Any, forecasts: Any, place: int, horizon: int, target: int, season: int | None
) -> tuple[list[float], list[float], list[float]]:
    """The absolute errors of the model, of persistence and of seasonal-naive, on the rows where all three have one."""
    column = [float(value) for value in truth[:, target]]
    errors: tuple[list[float], list[float], list[float]] = ([], [], [])
    for row in range(horizon, len(column)):
        made = row - horizon
        model = float(forecasts[made][place][target])
        persistence = last_seen(column, made)
        seasonal = 0.0
        if season is not None:
            past = row
            while past > made:  # the latest moment of the same phase that was known when the forecast was made
                past -= season
            seasonal = last_seen(column, past) if past >= 0 else nan
        if any(math.isnan(value) for value in (column[row], model, persistence, seasonal)):
            continue
        for mine, forecast in zip(errors, (model, persistence, seasonal), strict=True):
            mine.append(abs(forecast - column[row]))
    return errors


@pytest.mark.parametrize("season", [None, 5, 12])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_scores_are_those_of_a_slow_computation(season: int | None, missing: float) -> None:
    """Every target at every horizon, also beyond a season, with and without missing values."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(60, 2)).astype(np.float32)
    truth[rng.random(truth.shape) < missing] = nan
    horizons = (1, 4, 7, 13)
    forecasts = rng.normal(size=(60, 4, 2)).astype(np.float32)
    board = Scoreboard(truth, ("u", "v"), ("m", "s"), horizons, season)
    for row in range(60):
        board.add(row, forecasts[row])
    scores = board.scores()
    assert [(score.target, score.unit, score.horizon) for score in scores] == [
        (target, unit, horizon) for target, unit in (("u", "m"), ("v", "s")) for horizon in horizons
    ]
    for score in scores:
        target, place = ("u", "v").index(score.target), horizons.index(score.horizon)
        model, persistence, seasonal = slowly(truth, forecasts, place, score.horizon, target, season)
        assert score.scored == len(model) > 0
        assert score.mae == pytest.approx(np.mean(model), rel=1e-5)
        assert score.persistence_mae == pytest.approx(np.mean(persistence), rel=1e-5)
        if season is None:
            assert score.seasonal_mae is None
        else:
            assert score.seasonal_mae == pytest.approx(np.mean(seasonal), rel=1e-5)


def test_errors_of_several_streams_are_over_all_their_timesteps() -> None:
    """A long stream has more weight than a short one. The last forecast is that of the last stream."""
    rng = np.random.default_rng(4)
    boards, mine, naive = [], [], []
    for length in (30, 12, 20):
        truth, forecasts = rng.normal(size=(length, 1)), rng.normal(size=(length, 1, 1))
        board = Scoreboard(truth.astype(np.float32), ("u",), (), (3,), None)
        for row in range(length):
            board.add(row, forecasts[row])
        boards.append(board)
        mine.extend(np.abs(forecasts[:-3, 0, 0] - truth[3:, 0]))
        naive.extend(np.abs(truth[:-3, 0] - truth[3:, 0]))
    (score,) = boards[-1].scores(boards[:-1])
    assert score.scored == len(mine)
    assert score.mae == pytest.approx(np.mean(mine), rel=1e-5)
    assert score.persistence_mae == pytest.approx(np.mean(naive), rel=1e-5)
    assert score.came_true == boards[-1].scores()[0].came_true


def test_a_short_stream_among_others_leaves_the_seasonal_baseline_out() -> None:
    """It has no score: a mean over the rest would be over other timesteps than the model's."""
    short, long = (Scoreboard(np.zeros((length, 1), np.float32), ("u",), (), (1,), 5) for length in (9, 20))
    for board in (short, long):
        for row in range(len(board.truth)):
            board.add(row, np.ones((1, 1)))
    assert long.scores()[0].seasonal_mae == 0
    assert long.scores([short])[0].seasonal_mae is None
    assert short.scores([long])[0].seasonal_mae is None


def test_nothing_is_scored_before_the_first_horizon() -> None:
    """The result is NaN, not an error, and beats nothing."""
    board = Scoreboard(np.zeros((9, 1), np.float32), ("u",), (), (3,), None)
    assert math.isnan(board.scores()[0].mae)
    for row in range(3):
        board.add(row, np.zeros((1, 1)))
    (score,) = board.scores()
    assert math.isnan(score.mae)
    assert score.scored == 0
    assert not score.beats_baselines


def test_the_last_forecast_stands_beside_what_came_true() -> None:
    """The forecast for the last row, at the time when it was made."""
    board = Scoreboard(np.array([[1], [2], [4]], np.float32), ("u",), ("V",), (1, 2), None)
    for row, forecast in enumerate(([10, 20], [30, 40], [50, 60])):
        board.add(row, np.array(forecast, np.float32))
    near, far = board.scores()
    assert (near.predicted, near.came_true) == (30, 4)
    assert (far.predicted, far.came_true) == (20, 4)


def test_a_series_of_less_than_two_seasons_has_no_seasonal_baseline() -> None:
    """Most of it would have no score."""
    assert Scoreboard(np.zeros((9, 1), np.float32), ("u",), (), (1,), 5).season is None
    assert Scoreboard(np.zeros((10, 1), np.float32), ("u",), (), (1,), 5).season == 5


def test_a_series_that_begins_in_the_middle_is_scored_from_there() -> None:
    """A resumed stream has no forecasts for its first rows."""
    truth = np.arange(8, dtype=np.float32)[:, np.newaxis]
    board = Scoreboard(truth, ("u",), (), (2,), None)
    for row in range(4, 8):
        board.add(row, np.array([[row + 2.5]], np.float32))
    (score,) = board.scores()
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
    board = Scoreboard(truth, ("u",), (), (1,), season)
    for row in range(20):
        board.add(row, truth[row] + step + mine)
    assert board.scores()[0].beats_baselines is beats
