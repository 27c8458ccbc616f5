"""Fresh streams beside one that has run for long."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tidegate.training.data.series import Series
from tidegate.training.judging import cold_start as module
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.graph import Graph


def test_bands_hold_the_errors_of_new_streams(
    graph: Graph, make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of streams that are replayed one at a time, and the warm ones those of the single long stream."""
    monkeypatch.setattr(module, "STREAMS", 7)
    series = make_series(300, missing=0.1)
    scores = evaluate(graph, series, ((100, 300),)).cold_start
    assert scores is not None
    assert (scores.streams, scores.steps) == (7, (1, 2, 5, 10, 20, 50))
    long = graph.replay(series.values[100:300, None])[0]["forecast"][:, 0, 1, 1]
    fresh, warm = [], []
    for first in np.linspace(150, 249, 7).astype(int):
        truth = series.values[first + 3 : first + 53, 2]
        forecast = graph.replay(series.values[first : first + 50, None])[0]["forecast"][: len(truth), 0, 1, 1]
        fresh.append(np.pad(np.abs(forecast - truth), (0, 50 - len(truth)), constant_values=np.nan))
        warm.append(
            np.pad(np.abs(long[first - 100 :][:50][: len(truth)] - truth), (0, 50 - len(truth)), constant_values=np.nan)
        )
    start = next(start for start in scores.table if (start.target, start.horizon) == ("s2", 3))
    bands = [slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 10), slice(10, 20), slice(20, 50)]
    np.testing.assert_allclose(start.cold, [np.nanmean(np.array(fresh)[:, band]) for band in bands], rtol=1e-5)
    np.testing.assert_allclose(start.warm, [np.nanmean(np.array(warm)[:, band]) for band in bands], rtol=1e-5)


@pytest.mark.parametrize(
    ("fresh", "settled"),
    [([1.0, 1.0, 1.0, 1.0], 0), ([9.0, 1.0, 1.0, 1.0], 1), ([1.0, 1.2, 1.04, 1.04], 2), ([9.0, 9.0, 9.0, 9.0], None)],
)
def test_a_stream_has_settled_when_no_later_band_is_worse(fresh: list[float], settled: int | None) -> None:
    """Within the tolerance; never, when the last band is still worse."""
    start = module._start(("s0", 1), (1, 2, 5, 10), np.array(fresh), np.ones(4))
    assert start is not None
    assert start.settled == settled


def test_short_segments_have_no_room(graph: Graph, make_series: Callable[..., Series]) -> None:
    """A new stream needs a long one beside it; a single step has room nearly everywhere."""
    series = make_series(300)
    assert evaluate(graph, series, ((294, 300),)).cold_start.steps == (1, 2)
    assert module._starts(series, ((297, 299),)) is None


def test_classes_have_a_cold_start_too(classifier: Graph, make_series: Callable[..., Series]) -> None:
    """Its errors are shares of wrong classes; rows without a label do not count."""
    series = make_series(300)
    labels = np.random.default_rng(0).integers(-1, 3, 300)
    scores = evaluate(classifier, replace(series, labels=labels, classes=("idle", "run", "walk")))
    (start,) = scores.cold_start.table
    assert all(0.3 < error < 1 for error in start.warm)
