"""The nouns of the scores, and the JSON that others read."""

import json
from collections.abc import Callable

import pytest

from tidegate.training.data.series import Series
from tidegate.training.data.split import Split
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.scores import Error, Score, Scores


@pytest.fixture
def scores(graph: Graph, make_series: Callable[..., Series]) -> Scores:
    """Of random weights."""
    return evaluate(graph, make_series(600), split=Split(((0, 350),), ((350, 450),), ((450, 600),)))


def row(model: float, persistence: float, ridge: float | None = None) -> Score:
    """A score with these MAE."""
    baselines = {
        "persistence": Error(persistence, 1),
        "seasonal_naive": None,
        "ridge": None if ridge is None else Error(ridge, 1),
    }
    return Score("s0", "", 1, None, 10, Error(model, 1), **baselines)


def test_every_baseline_must_be_beaten() -> None:
    """Skill is against the best of them."""
    assert row(1.0, 2.0).wins
    assert row(1.0, 2.0).skill == 0.5
    assert not row(1.0, 2.0, 0.8).wins
    assert row(1.0, 2.0, 0.8).skill == pytest.approx(-0.25)


def test_json_keeps_its_shape(scores: Scores) -> None:
    """The keys that the card, the report and the demo read."""
    whole = json.loads(json.dumps(scores.as_json()))
    assert set(whole) == {
        *(
            "data",
            "start",
            "end",
            "rows",
            "season",
            "table",
            "mase_scale",
            "classification",
            "anomaly",
            "anomaly_left_out",
            "cold_start",
        ),
        *("beats_baselines", "missing_baselines", "absent", "left_out"),
    }
    assert set(whole["table"][0]) == {
        *("target", "unit", "horizon", "horizon_s", "count", "model", "persistence", "seasonal_naive", "ridge"),
        *("interval", "skill", "beats_baselines", "share"),
    }
    assert set(whole["table"][0]["ridge"]) == {"mae", "rmse", "mase", "pinball", "coverage", "width", "quantiles"}
    assert [part["level"] for part in whole["table"][0]["model"]["quantiles"]] == [0.1, 0.5, 0.9]
    assert set(whole["cold_start"]["table"][0]) == {"target", "horizon", "cold", "warm", "settled"}


def test_the_summary_is_small_and_equal(scores: Scores) -> None:
    """In five digits, without curves."""
    small, whole = scores.summary(), scores.as_json()
    assert len(json.dumps(small)) < 600 * len(scores.table)
    assert "cold_start" not in small
    for short, full in zip(small["table"], whole["table"], strict=True):
        assert short["model"]["mae"] == pytest.approx(full["model"]["mae"], rel=1e-4)
        assert short["ridge"] == pytest.approx({"mae": full["ridge"]["mae"]}, rel=1e-4)


def test_the_summary_of_many_targets_is_cut() -> None:
    """And says by how many rows."""
    small = Scores(table=tuple(row(1.0, 2.0) for _ in range(100))).summary()
    assert (len(small["table"]), small["rows_left_out"]) == (32, 68)
