"""Curves: what the replay of a report says, beside the plain definition of it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

from tidegate.training.data.series import Series
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.replay import Replay
from tidegate.training.network.network import Network
from tidegate.training.publishing import curves


@pytest.fixture(scope="module")
def gapped(make_series: Callable[..., Series]) -> Series:
    """A series with a time gap in its held-out rows."""
    return make_series(300, missing=0.05, gap_at=220)


@pytest.fixture(scope="module")
def replayed(exported: tuple[Network, onnx.ModelProto], gapped: Series) -> Replay:
    """The rows from 150 on through the graph of an untrained network."""
    return Replay.of(Graph(exported[1].SerializeToString(), "toy"), gapped, ((150, 300),))


def test_a_due_value_was_forecast_a_horizon_before(replayed: Replay) -> None:
    """Row by row: the forecast of a row is that of a horizon earlier in its segment, and nothing in its first ones."""
    assert replayed.segments == ((0, 70), (70, 150))
    for index, horizon in enumerate(replayed.horizons):
        shifted = replayed.shifted("forecast", index)
        for row in range(150):
            begin = 0 if row < 70 else 70
            if row - horizon < begin:
                assert np.isnan(shifted[row]).all()
            else:
                assert np.array_equal(shifted[row], replayed.outputs["forecast"][row - horizon, index])


def test_errors_are_those_that_were_scored(
    exported: tuple[Network, onnx.ModelProto], make_series: Callable[..., Series]
) -> None:
    """The mean of the drawn errors is the MAE of `evaluate`, which finds its truth another way."""
    graph, series = Graph(exported[1].SerializeToString(), "toy"), make_series(300, missing=0.05)
    replayed = Replay.of(graph, series, ((150, 300),))
    for score in evaluate(graph, series, ((150, 300),)).table:
        errors = replayed.errors(replayed.horizons.index(score.horizon))[:, graph.targets.index(score.target)]
        drawn = errors[np.isfinite(errors)]
        assert len(drawn) == score.count
        assert np.abs(drawn).mean() == pytest.approx(score.model.mae)


def test_the_histogram_holds_every_error_once() -> None:
    """Shares sum to one; what lies beyond the edges is in the outermost bars; NaN is nowhere."""
    errors = np.concatenate([np.random.default_rng(0).normal(size=500), [40.0, -50.0, np.nan]])
    edges = curves.bin_edges([errors])
    shares = curves.histogram(errors, edges)
    assert shares.sum() == pytest.approx(1.0)
    assert edges[0] == -edges[-1]
    assert edges[-1] < 4
    assert shares[0] > 0
    assert shares[-1] > 0
    inner = np.count_nonzero((errors >= edges[7]) & (errors < edges[8]))
    assert shares[7] == pytest.approx(inner / 502)


def test_errors_are_averaged_by_the_hour_in_which_they_came_true() -> None:
    """Each hour has the mean of |error| of its own rows, and NaN where it has none."""
    times = np.datetime64("2024-01-01T22:30", "ns") + np.arange(4) * np.timedelta64(45 * 60 * 10**9, "ns")
    error_by_hour = curves.error_by_hour(times, np.array([1.0, -3.0, 5.0, np.nan]))  # 22:30, 23:15, 00:00, 00:45
    assert error_by_hour[[22, 23, 0]].tolist() == [1.0, 3.0, 5.0]
    assert np.isnan(error_by_hour[1:22]).all()


def test_the_segment_is_usual_and_not_quiet() -> None:
    """Of a quiet part with the very mean of all errors, lively ones with usual errors and one with huge errors: a usual one."""
    part, rng = 2 * curves.WINDOW, np.random.default_rng(0)
    rows = 4 * part
    truth = np.concatenate([np.zeros(part), rng.normal(0, 1, 3 * part)])
    forecast = np.concatenate([np.zeros(3 * part), np.full(part, 3.0)])
    forecast[:part] = np.abs(forecast - truth)[part:].mean()
    made = Replay(
        times=np.datetime64("2024-01-01", "ns") + np.arange(rows) * np.timedelta64(60 * 10**9, "ns"),
        truth=truth[:, None],
        segments=((0, rows),),
        outputs={"forecast": forecast[:, None, None].astype(np.float32)},
        horizons=(1,),
        kept=(0,),
    )
    first, end = curves.typical_window(made, 0)
    assert end - first == curves.WINDOW
    assert part <= first + curves.WINDOW // 2
    assert end - curves.WINDOW // 2 <= 3 * part


def test_a_short_held_out_part_is_shown_whole(replayed: Replay) -> None:
    """Where no segment is as long as the page is wide, the longest one is taken."""
    assert curves.typical_window(replayed, 0) == (70, 150)


def test_a_part_without_truth_is_no_obstacle(replayed: Replay) -> None:
    """Where nothing of a target came true, there is a segment, a histogram and a curve all the same."""
    nothing = replace(replayed, truth=np.full_like(replayed.truth, np.nan))
    first, end = curves.typical_window(nothing, 0)
    errors = nothing.errors(0)[:, 0]
    assert end > first
    assert curves.histogram(errors, curves.bin_edges([errors])).sum() == 0
    assert np.isnan(curves.error_by_hour(nothing.times, errors)).all()
