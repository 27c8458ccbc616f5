"""Scores that are summed over rows as they come, beside the plain formulas on all rows at once."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tidegate.training.data.series import Series, future_values
from tidegate.training.data.split import Split
from tidegate.training.judging import graph as graph_module
from tidegate.training.judging import metrics
from tidegate.training.judging.baselines import Persistence, SeasonalNaive
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.forecast_sums import ForecastSums
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.replay import Replay
from tidegate.training.judging.ridge import Ridge, fit_ridge

SPLIT = Split(((0, 350),), ((350, 450),), ((450, 700),))
LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture
def holed(make_series: Callable[..., Series]) -> Series:
    """A series with missing values, and a gap in its held-out part: seasonal-naive has no forecast for a day after it."""
    return make_series(700, missing=0.05, gap_at=600)


@pytest.fixture
def ridge(graph: Graph, holed: Series) -> Ridge:
    """The regression of the series."""
    fitted = fit_ridge(holed, SPLIT, [0, 2], graph.horizons, season=24)
    assert fitted is not None
    return fitted


@pytest.mark.parametrize("values", [2**20, 40, 1])
def test_sums_are_the_formulas_on_all_rows(
    graph: Graph, holed: Series, ridge: Ridge, monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    """To 1e-12, whether all rows come at once, a few or one at a time."""
    truth = future_values(holed, [0, 2], graph.horizons, SPLIT.test).astype(np.float64)
    outputs = Replay.of(graph, holed, SPLIT.test).outputs
    rows = np.arange(*SPLIT.test[0])
    points = {
        "persistence": Persistence(holed, [0, 2], graph.horizons).at(rows),
        "seasonal_naive": SeasonalNaive(holed, [0, 2], graph.horizons, 24).at(rows),
        "ridge": ridge.forecast(holed, SPLIT.test),
    }
    monkeypatch.setattr(graph_module, "VALUES_AT_ONCE", values)
    table = evaluate(graph, holed, split=SPLIT, ridge=ridge).table
    for score in table:
        place = graph.horizons.index(score.horizon), graph.targets.index(score.target)
        forecast, true = outputs["forecast"][:, *place], truth[:, *place]
        known = ~np.isnan(true + forecast + sum(part[:, *place] for part in points.values()))
        assert score.count == known.sum()
        errors = {
            name: part[known][:, *place] - true[known]
            for name, part in (points | {"model": outputs["forecast"]}).items()
        }
        for name, missed in errors.items():
            found = getattr(score, name)
            assert found.mae == pytest.approx(np.abs(missed).mean(), rel=1e-12)
            assert found.rmse == pytest.approx(metrics.root_mean_square(missed), rel=1e-12)
        quantiles = outputs["quantiles"][known][:, *place].astype(np.float64)
        assert [part.pinball for part in score.model.quantiles] == pytest.approx(
            metrics.pinball(true[known], quantiles, LEVELS), rel=1e-12
        )
        assert [part.below for part in score.model.quantiles] == pytest.approx(
            (true[known][:, None] <= quantiles).mean(axis=0), rel=1e-12
        )
        low, high = quantiles[:, 0], quantiles[:, -1]
        share = ((low <= true[known]) & (true[known] <= high)).mean()
        assert (score.model.coverage, score.model.width) == pytest.approx((share, (high - low).mean()), rel=1e-12)


def test_scores_do_not_depend_on_how_many_rows_come_at_once(
    graph: Graph, holed: Series, ridge: Ridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables and new streams alike."""
    whole = evaluate(graph, holed, split=SPLIT, ridge=ridge)
    monkeypatch.setattr(graph_module, "VALUES_AT_ONCE", 7)
    parts = evaluate(graph, holed, split=SPLIT, ridge=ridge)
    assert _numbers(asdict(parts)) == pytest.approx(_numbers(asdict(whole)), rel=1e-12)
    assert len(_numbers(asdict(whole))) > 300


def _numbers(part: object) -> list[float]:
    """All numbers within, in order."""
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list | tuple):
        return [number for one in part for number in _numbers(one)]
    return [float(part)] if isinstance(part, int | float) else []


@pytest.mark.parametrize(("unknown", "kept"), [(0.4, True), (0.6, False)])
def test_a_baseline_that_knows_too_little_is_left_out(
    make_series: Callable[..., Series], unknown: float, kept: bool
) -> None:
    """Without it all rows count; with it only those that it has a forecast for. It is decided for each horizon."""
    series = make_series(200)
    rows = np.arange(100)
    holes = np.zeros((100, 2, 1), np.bool_)
    holes[: int(100 * unknown), 0] = True

    class Holed(Persistence):
        """A baseline without forecasts of one horizon for the first rows."""

        def at(self, rows: np.ndarray, *_: object) -> np.ndarray:
            return np.where(holes[rows], np.float32(np.nan), super().at(rows))

    sums = ForecastSums(
        (2, 1),
        {"persistence": Persistence(series, [0], [1, 2]), "ridge": Holed(series, [0], [1, 2])},
        {},
        (),
    )
    for part in np.array_split(rows, 3):
        sums.add(part, np.zeros((len(part), 2, 1), np.float32), {"forecast": np.ones((len(part), 2, 1), np.float32)})
    first, second = sums.at(0, 0, None, None), sums.at(1, 0, None, None)
    assert first is not None
    assert second is not None
    assert ("ridge" in first.errors) == kept
    assert first.count == (100 - 100 * unknown if kept else 100)
    assert "ridge" in second.errors
    assert second.count == 100


def test_memory_does_not_grow_with_rows_times_horizons(
    make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All forecasts of all rows were most of what scoring needed; what is left is a few numbers a row."""
    monkeypatch.setattr(graph_module, "VALUES_AT_ONCE", 2**14)
    graph = repeating_graph(horizons=96)
    peaks = []
    for rows in (1000, 4000):
        series = make_series(rows)
        tracemalloc.start()
        evaluate(graph, series)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    forecasts = 3000 * 96 * 3 * 4  # bytes, of the rows between
    assert peaks[1] - peaks[0] < forecasts / 4


def repeating_graph(*, horizons: int) -> Graph:
    """A graph made by hand: it forecasts the present values at all horizons."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["x", "axis"], ["row"]),
            helper.make_node("Tile", ["row", "times"], ["forecast"]),
            helper.make_node("Identity", ["last"], ["last_next"]),
        ],
        "repeating",
        [value("x", TensorProto.FLOAT, ["batch", 3]), value("last", TensorProto.FLOAT, ["batch", 1])],
        [
            value("forecast", TensorProto.FLOAT, ["batch", horizons, 3]),
            value("last_next", TensorProto.FLOAT, ["batch", 1]),
        ],
        [
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array([1, horizons, 1], np.int64), "times"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    names = ["s0", "s1", "s2"]
    forecast = {
        "name": "forecast",
        "shape": ["batch", horizons, 3],
        "targets": names,
        "units": ["°C"] * 3,
        "horizons": list(range(1, horizons + 1)),
    }
    description = {
        "period_s": 3600.0,
        "features": [{"name": name} for name in names],
        "outputs": [forecast],
        "state": [{"name": "last", "next": "last_next", "shape": ["batch", 1]}],
    }
    helper.set_model_props(model, {"tidegate": json.dumps(description)})
    return Graph(model.SerializeToString(), "repeating")
