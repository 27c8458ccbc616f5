"""Scores: computed from the graph, beside baselines, on the same timesteps."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tidegate.training import errors
from tidegate.training.data.series import Group, Series
from tidegate.training.data.split import Split
from tidegate.training.judging import evaluate as module
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.ridge import fit_ridge
from tidegate.training.judging.scores import Error
from tidegate.training.judging.verdict import verdict
from tidegate.training.network.network import Network


def test_the_replay_is_the_network_s_own(
    exported: tuple[Network, onnx.ModelProto], graph: Graph, make_series: Callable[..., Series]
) -> None:
    """The scored errors are those of the forecasts that the network gives for the same rows, after those before them."""
    network, _ = exported
    series = make_series(300)
    scores = evaluate(graph, series, ((200, 300),))
    x = torch.from_numpy(series.values[:, None])
    with torch.no_grad():
        forecasts = network.sequence(x, network.initial_state(1))[0]["forecast"][200:, 0].numpy()
    score = next(score for score in scores.table if (score.target, score.horizon) == ("s2", 3))
    errors_now = forecasts[:-3, 1, 1] - series.values[203:, 2]
    assert score.count == 97
    assert score.model.mae == pytest.approx(np.abs(errors_now).mean(), rel=1e-4)
    assert score.model.rmse == pytest.approx(np.sqrt(np.square(errors_now).mean()), rel=1e-4)


def test_baselines_stand_beside_the_model(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Persistence and seasonal-naive are scored with what they would have forecast, the day taken from the period."""
    series = make_series(300)
    scores = evaluate(graph, series, ((200, 300),))
    s0 = series.values[:, 0].astype(np.float64)
    score = scores.table[1]
    assert (score.target, score.horizon, scores.season) == ("s0", 3, 24)
    assert score.persistence.mae == pytest.approx(np.abs(s0[200:297] - s0[203:]).mean())
    assert score.seasonal_naive.mae == pytest.approx(np.abs(s0[179:276] - s0[203:]).mean())


def test_a_season_may_be_given(graph: Graph, make_series: Callable[..., Series]) -> None:
    """In timesteps, whatever the period."""
    assert evaluate(graph, make_series(300), ((200, 300),), season=7).season == 7


def test_without_a_period_there_is_no_season(graph: Graph, make_series: Callable[..., Series]) -> None:
    """An irregular series is scored beside persistence alone."""
    scores = evaluate(graph, dataclasses.replace(make_series(300), period_s=None), ((200, 300),))
    assert scores.season is None
    assert scores.table[0].seasonal_naive is None
    assert "persistence" in verdict(scores) or "baselines" in verdict(scores)


def test_columns_may_stand_in_any_order(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Features are found by name, and others are ignored."""
    series = make_series(300)
    turned = dataclasses.replace(
        series,
        names=("extra", *reversed(series.names)),
        units=("", *series.units),
        values=np.column_stack([np.ones(300, np.float32), series.values[:, ::-1]]).astype(np.float32),
    )
    assert evaluate(graph, turned, ((200, 300),)).table == evaluate(graph, series, ((200, 300),)).table


def test_a_missing_feature_is_refused(graph: Graph, make_series: Callable[..., Series]) -> None:
    """The message names it."""
    with pytest.raises(errors.MissingColumn, match="'s2', which the model needs"):
        evaluate(graph, make_series(300, features=2))


def test_after_a_gap_the_state_is_fresh(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Both sides of a gap are scored as streams of their own."""
    series = make_series(200, gap_at=120)
    whole = evaluate(graph, series, season=5)
    parts = [
        evaluate(graph, series, ((0, 120),), season=5),
        evaluate(graph, series, ((120, 200),), season=5),
    ]
    for score, *halves in zip(whole.table, *(part.table for part in parts), strict=True):
        counts = [half.count for half in halves]
        assert score.count == sum(counts)
        assert score.model.mae == pytest.approx(np.average([half.model.mae for half in halves], weights=counts))


def test_missing_truth_is_not_scored(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Timesteps whose truth is missing are left out for the model and the baselines alike."""
    series = make_series(300)
    full = evaluate(graph, series, ((200, 300),)).table[0].count
    series.values[250:260, 0] = np.nan
    scores = evaluate(graph, series, ((200, 300),))
    assert scores.table[0].count == full - 10
    assert np.isfinite(scores.table[0].model.mae)


def test_too_few_rows_are_refused(graph: Graph, make_series: Callable[..., Series]) -> None:
    """When nothing that was forecast came true there is no score."""
    with pytest.raises(errors.SeriesTooShort, match=r"'s0' 3 steps ahead"):
        evaluate(graph, make_series(300), ((297, 300),))


def test_a_lost_comparison_is_reported(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Random weights lose, and the verdict says for what."""
    scores = evaluate(graph, make_series(300), ((200, 300),))
    assert not scores.wins
    assert "does NOT beat the baselines for: s0 1 h ahead" in verdict(scores)


def test_skill_is_against_the_better_baseline(graph: Graph, make_series: Callable[..., Series]) -> None:
    """0 is as good as the better of the two, 1 is perfect."""
    score = evaluate(graph, make_series(300), ((200, 300),)).table[0]
    better = min(score.persistence.mae, score.seasonal_naive.mae)
    assert score.skill == pytest.approx(1 - score.model.mae / better)
    assert score.wins == (score.skill > 0)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """A file that is not there, and one that is no graph, are told in one line."""
    with pytest.raises(errors.ModelUnreadable, match="No such file"):
        Graph.load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(errors.ModelUnreadable, match="not a readable ONNX file"):
        Graph.load(tmp_path)


def test_a_graph_without_description_is_refused(exported: tuple[Network, onnx.ModelProto], tmp_path: Path) -> None:
    """Foreign graphs cannot be scored, because nothing says what they forecast."""
    model = type(exported[1])()
    model.CopyFrom(exported[1])
    del model.metadata_props[:]
    with pytest.raises(errors.ModelUnreadable, match="does not describe itself"):
        Graph(model.SerializeToString(), "foreign")


SPLIT = Split(((0, 350),), ((350, 450),), ((450, 600),))


def test_quantiles_are_scored(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Those of the graph as the formulas have them; the interval is from the lowest to the highest."""
    from sklearn.metrics import mean_pinball_loss  # slow to load

    series = make_series(600)
    score = evaluate(graph, series, split=SPLIT).table[2]
    assert (score.target, score.horizon) == ("s2", 1)
    quantiles = graph.replay(series.values[:, None])[0]["quantiles"][450:-1, 0, 0, 1].astype(np.float64)
    truth = series.values[451:, 2].astype(np.float64)
    for place, level in enumerate((0.1, 0.5, 0.9)):
        quantile = score.model.quantiles[place]
        assert quantile.level == level
        assert quantile.pinball == pytest.approx(mean_pinball_loss(truth, quantiles[:, place], alpha=level), rel=1e-5)
        assert quantile.below == pytest.approx((truth <= quantiles[:, place]).mean())
    assert score.model.pinball == pytest.approx(np.mean([quantile.pinball for quantile in score.model.quantiles]))
    assert score.model.coverage == pytest.approx(((quantiles[:, 0] <= truth) & (truth <= quantiles[:, 2])).mean())
    assert score.model.width == pytest.approx((quantiles[:, 2] - quantiles[:, 0]).mean(), rel=1e-5)


def test_baselines_get_constant_quantiles_of_their_validation_errors(
    graph: Graph, make_series: Callable[..., Series]
) -> None:
    """So that pinball loss and coverage can be compared."""
    series = make_series(600)
    score = evaluate(graph, series, split=SPLIT).table[0]
    s0 = series.values[:, 0].astype(np.float64)
    offset = np.quantile(s0[351:450] - s0[350:449], 0.9)
    missed = s0[451:600] - (s0[450:599] + offset)
    wanted = np.maximum(0.9 * missed, -0.1 * missed).mean()
    assert score.persistence.quantiles[2].pinball == pytest.approx(wanted)
    assert 0.7 < score.ridge.coverage < 0.9


def test_a_regression_that_is_solved_already_is_not_solved_again(
    graph: Graph, make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the linear link is the baseline too: the scores are the same."""
    series = make_series(600)
    scores = evaluate(graph, series, split=SPLIT)
    targets = [series.column(name) for name in graph.targets]
    ridge = fit_ridge(series, SPLIT, targets, graph.horizons, season=scores.season)
    monkeypatch.setattr(module, "fit_ridge", None)
    assert evaluate(graph, series, split=SPLIT, ridge=ridge) == scores


def test_the_scaled_error_is_in_units_of_the_training_part(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Of its seasonal naive error; other data uses the scale that the card has kept."""
    series = make_series(600)
    scores = evaluate(graph, series, split=SPLIT)
    scale = np.abs(series.values[24:350, 0].astype(np.float64) - series.values[:326, 0]).mean()
    assert scores.mase_scale["s0"] == pytest.approx(scale)
    assert scores.table[0].model.mase == pytest.approx(scores.table[0].model.mae / scale)
    elsewhere = evaluate(graph, make_series(300, seed=5), scales=scores.mase_scale)
    assert elsewhere.table[0].model.mase == pytest.approx(elsewhere.table[0].model.mae / scale)
    assert elsewhere.mase_scale == scores.mase_scale


def test_other_data_has_no_fitted_baselines(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Without the training part there is neither a ridge nor a quantile of a naive forecast, nor a scale."""
    score = evaluate(graph, make_series(300)).table[0]
    assert (score.ridge, score.persistence.pinball, score.model.mase) == (None, None, None)
    assert score.model.pinball is not None


def test_all_forecasters_are_scored_on_the_same_timesteps(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Where one has no forecast none is scored: seasonal-naive has none in the first day after a gap."""
    series = make_series(600, gap_at=500)
    scores = evaluate(graph, series, split=SPLIT)
    assert scores.table[0].count == 49 + 99 - 23
    assert scores.table[0].ridge is not None
    assert "beats persistence, seasonal-naive and ridge" in verdict(
        dataclasses.replace(scores, table=(dataclasses.replace(scores.table[0], model=Error(0.0, 0.0)),))
    )


def test_groups_are_streams_of_their_own(graph: Graph, make_series: Callable[..., Series]) -> None:
    """The errors over two groups are those of each, weighted by their timesteps."""
    series = make_series(400)
    both = dataclasses.replace(series, groups=(Group("a", 0, 150), Group("b", 150, 400)))
    whole = evaluate(graph, both, season=5)
    parts = [evaluate(graph, series, (span,), season=5) for span in ((0, 150),)]
    other = dataclasses.replace(series, values=series.values[150:], times=series.times[150:])
    parts.append(evaluate(graph, other, season=5))
    for score, *halves in zip(whole.table, *(part.table for part in parts), strict=True):
        counts = [half.count for half in halves]
        assert score.count == sum(counts)
        assert score.model.mae == pytest.approx(np.average([half.model.mae for half in halves], weights=counts))
        assert score.seasonal_naive.mae == pytest.approx(
            np.average([half.seasonal_naive.mae for half in halves], weights=counts)
        )


def test_a_season_longer_than_the_series_is_no_baseline(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Seasonal-naive would have no forecast, and nothing could be scored: the others are scored without it."""
    score = evaluate(graph, make_series(600), split=SPLIT, season=4_320_000).table[0]
    assert score.seasonal_naive is None
    assert score.count == 149
    assert score.ridge is not None
    assert score.model.mase is not None
