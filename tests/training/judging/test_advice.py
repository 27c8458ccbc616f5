"""What to try next."""

import pytest

from tidegate.training.judging.advice import next_step
from tidegate.training.judging.scores import Error, Interval, Quantile, Score, Scores

QUANTILES = (Quantile(0.1, 1.0, 0.1), Quantile(0.9, 1.0, 0.9))


def row(horizon: int, *, coverage: float | None = 0.8, ridge: float = 2.0, interval: bool = False) -> Score:
    """A model with an error of 1 beside its baselines, one timestep a minute."""
    model = Error(1.0, 1.0, coverage=coverage, quantiles=QUANTILES if coverage else ())
    kept = Interval(0.8, 0.6, 1.0) if interval else None
    return Score(
        "T", "", horizon, 60.0 * horizon, 100, model, Error(3.0, 3.0), Error(3.0, 3.0), Error(ridge, ridge), kept
    )


def test_a_model_that_wins_needs_nothing() -> None:
    """Neither does one without forecasts."""
    assert next_step(Scores(table=(row(1), row(60)))) is None
    assert next_step(Scores()) is None


def test_it_names_the_baseline_and_where_it_wins() -> None:
    """From the nearest to the farthest horizon at which the model loses to it."""
    advice = next_step(Scores(table=(row(1), row(60, ridge=0.9), row(120, ridge=0.9))))
    assert advice
    assert advice.startswith(
        "To try next: it loses to ridge in 2 of 3 forecasts (1 h to 2 h ahead): let `tidegate tune`"
    )


@pytest.mark.parametrize(("coverage", "expected"), [(0.74, True), (0.76, False), (None, False)])
def test_narrow_quantiles_need_an_interval(coverage: float | None, expected: bool) -> None:
    """Their coverage is told beside what it should be, unless it misses that by chance."""
    advice = next_step(Scores(table=(row(1, coverage=coverage),))) or ""
    assert (
        "its quantiles are too narrow, they hold 74.0 % instead of 80.0 %: add --coverage 0.8" in advice
    ) is expected
    assert bool(advice) is expected


def test_an_interval_is_no_reason_to_add_one() -> None:
    """Its width follows the errors already."""
    assert next_step(Scores(table=(row(1, coverage=0.5, interval=True),))) is None
