"""Scores as people read them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tidegate.training.cli import scoreboard, tables
from tidegate.training.data.series import Series
from tidegate.training.data.split import Split
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.scores import (
    AnomalyScores,
    ClassError,
    ClassScores,
    Detection,
    Error,
    Interval,
    Kind,
    Score,
    Scores,
)
from tidegate.training.judging.verdict import verdict


def lines(scores: Scores) -> list[str]:
    """The tables as they are printed, at their full width."""
    console = Console(width=tables.WIDTH)
    with console.capture() as caught:
        console.print(scoreboard.table(scores))
    return caught.get().splitlines()


def row(target: str, model: float, ridge: float | None = 2.0) -> Score:
    """A full row of the table."""
    error = Error(1234.5678, 2345.678, 0.98765, 345.678, 0.8123, 4567.89)
    baselines = {name: replace(error, mae=3.0) for name in ("persistence", "seasonal_naive")}
    kept = Interval(0.8, 0.7987, 4321.5)
    mine = replace(error, mae=model)
    return Score(
        target, "°C", 36, 21_600.0, 10, mine, **baselines, ridge=ridge and replace(error, mae=ridge), interval=kept
    )


def test_the_widest_table_is_a_hundred_columns() -> None:
    """Nothing is cut when every number is there."""
    printed = lines(Scores("appliances", rows=2961, table=(row("Appliances", 1000.25),)))
    assert max(map(len, printed)) <= 100
    assert not any("…" in line for line in printed)
    assert any("81.2 %" in line and "79.9 %" in line for line in printed)


def test_unknown_values_have_no_column(graph: Graph, make_series: Callable[..., Series]) -> None:
    """Other data than a model's own has no MASE and no ridge."""
    printed = "\n".join(lines(evaluate(graph, make_series(300))))
    assert "pinball" in printed
    assert "MASE" not in printed
    assert "ridge's" not in printed
    assert "its width" not in printed


def test_the_verdict_names_all_baselines() -> None:
    """And, where some are not beaten, the first few targets and how many more there are."""
    assert verdict(Scores(table=(row("a", 1.0),))) == (
        "The model beats persistence, seasonal-naive and ridge at every horizon."
    )
    sentence = verdict(Scores(table=tuple(row(name, 2.5) for name in "abcdef")))
    assert sentence.startswith("The model does NOT beat the baselines for: a 6 h ahead, b 6 h ahead")
    assert "and 2 more of 6" in sentence


@pytest.mark.parametrize(
    ("accuracy", "entropy", "sentence"),
    [
        (0.9, 0.1, "The model beats the class frequencies and a linear classifier."),
        (0.6, 0.1, "The model does NOT beat a linear classifier. Do not serve it."),
        (0.9, 0.9, "The model does NOT beat a linear classifier. Do not serve it."),
    ],
)
def test_a_classifier_must_be_right_more_often_and_less_surprised(
    accuracy: float, entropy: float, sentence: str
) -> None:
    """Than each baseline, and the verdict names those that it does not beat."""
    error = ClassError(accuracy, 0.5, entropy, np.exp(entropy), accuracy, entropy)
    frequencies, linear = (
        replace(error, accuracy=0.5, cross_entropy=1.0),
        replace(error, accuracy=0.7, cross_entropy=0.5),
    )
    part = ClassScores(("a", "b"), 10, 2, error, frequencies, linear, ((18, 2), (1, 3)), ())
    scores = Scores("watch", rows=10, classification=part)
    assert verdict(scores) == sentence
    printed = lines(scores)
    assert any("a linear classifier" in line and "70.0 %" in line for line in printed)
    assert any(line.split() == ["a", "90", "%", "10", "%"] for line in printed)


def test_a_detector_stands_beside_pca() -> None:
    """With what it finds of each kind, and the false alarms a day."""
    kinds = (Kind("spike", 3, 4, 0.0), Kind("drift", 5, 6, 9.0))
    model = Detection(8, 6, 10, 2, 0.8, 0.8, 0.8, 0.75, 3.0, 4, 0.5, 0.001, kinds)
    pca = replace(model, found=4, f1=0.5, kinds=(Kind("spike", 4, 4, 0.0), Kind("drift", 0, 6, None)))
    scores = Scores("x", anomaly=AnomalyScores(1, 6, ("T1",), 0.001, model, pca))
    sentence = verdict(scores)
    assert (
        sentence
        == "It finds 8 of 10 injected faults, 6 of them before they are over, with 0.5 false alarms a day on clean data; "
        "0.1 % of clean timesteps have an alarm, 0.1 % was asked for; PCA finds 4 at that rate."
    )
    printed = lines(scores)
    assert any(line.split() == ["model", "3/4", "5/6"] for line in printed)
    assert any(line.split() == ["PCA", "(T2,", "Q)", "4/4", "0/6"] for line in printed)


def test_what_was_not_measured_is_told() -> None:
    """The verdict says it, also where no fault was scored at all."""
    assert verdict(Scores("x", anomaly_left_out="No injected faults were scored.")) == "No injected faults were scored."


def test_a_cold_start_is_reported_in_percent(graph: Graph, make_series: Callable[..., Series]) -> None:
    """By how much a new stream's error is larger in each band."""
    scores = evaluate(graph, make_series(600), split=Split(((0, 300),), ((300, 400),), ((400, 600),)))
    start = scores.cold_start.table[0]
    wanted = [f"{round(100 * (cold / warm - 1)):+d}" for cold, warm in zip(start.cold, start.warm, strict=True)]
    assert any(line.split()[2:-1] == ["h", *wanted] for line in lines(scores) if line.startswith("s0"))


def test_many_forecasts_have_a_line_for_each_target() -> None:
    """The mean over the horizons, and how many are won; the report has every horizon."""
    table = [
        replace(row(target, 1.0 if horizon > 5 else 4.0), horizon=horizon, horizon_s=3600.0 * horizon)
        for target in ("a", "b")
        for horizon in range(1, 21)
    ]
    printed = lines(Scores("wide", rows=99, table=tuple(table)))
    (of_a,) = [line for line in printed if line.startswith("a, °C")]
    assert "1 h to 20 h" in of_a
    assert of_a.split()[-9:] == ["1.75", "3", "3", "2", "12.5", "%", "15/20", "81.2", "%"]
    assert len([line for line in printed if "°C" in line]) == 2
    assert max(map(len, printed)) <= 100
