"""The formulas of the scores, beside those of another library and others written down by hand."""

import numpy as np
import pytest

from tidegate.training.judging import metrics


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(0)


def test_root_mean_square(rng: np.random.Generator) -> None:
    """As the library has it."""
    from sklearn import metrics as oracle  # slow to load

    truth, forecast = rng.normal(size=(2, 500))
    assert metrics.root_mean_square(forecast - truth) == pytest.approx(oracle.root_mean_squared_error(truth, forecast))


@pytest.mark.parametrize("level", [0.1, 0.5, 0.95])
def test_pinball_loss(rng: np.random.Generator, level: float) -> None:
    """As the library has it, level by level."""
    from sklearn import metrics as oracle  # slow to load

    truth, forecast = rng.normal(size=(2, 500))
    both = metrics.pinball(truth, np.stack([forecast + 1, forecast], axis=1), (0.3, level))
    assert both[1] == pytest.approx(oracle.mean_pinball_loss(truth, forecast, alpha=level))
    assert both[0] == pytest.approx(oracle.mean_pinball_loss(truth, forecast + 1, alpha=0.3))


def test_the_true_quantile_has_the_least_pinball_loss(rng: np.random.Generator) -> None:
    """And as many values below it as its level says."""
    truth = rng.normal(size=20_000)
    level = 0.9
    forecast = np.quantile(truth, level) + np.array([-0.2, 0.0, 0.2])
    losses = metrics.pinball(truth, np.tile(forecast, (len(truth), 1)), (level,) * 3)
    assert losses.argmin() == 1
    assert (truth <= forecast[1]).mean() == pytest.approx(level, abs=1e-3)


def test_the_scale_is_the_seasonal_naive_error_within_segments(rng: np.random.Generator) -> None:
    """Neither a missing value nor a difference over a gap counts."""
    values = rng.normal(size=60).astype(np.float32)
    values[10] = np.nan
    moves = [abs(float(values[row]) - float(values[row - 7])) for row in range(60) if row >= 37 or 7 <= row < 30]
    wanted = np.mean([move for move in moves if not np.isnan(move)])
    assert metrics.naive_scale(values, [(0, 30), (30, 60)], 7) == pytest.approx(wanted)


def test_what_never_moves_has_no_scale() -> None:
    """Nor has a segment that is shorter than the season."""
    assert metrics.naive_scale(np.ones(50, np.float32), [(0, 50)], 1) is None
    assert metrics.naive_scale(np.arange(5, dtype=np.float32), [(0, 5)], 7) is None


def test_classes(rng: np.random.Generator) -> None:
    """Confusion, accuracy, F1 and cross-entropy as the library has them, with a class that never occurs."""
    from sklearn import metrics as oracle  # slow to load

    truth = rng.choice([0, 1, 2, 4], size=400)
    probability = rng.dirichlet(np.ones(5), size=400).astype(np.float32)
    guess = np.where(rng.random(400) < 0.5, truth, probability[:, :3].argmax(axis=1))
    confusion = metrics.confusion_matrix(truth, guess, 5)
    np.testing.assert_array_equal(confusion, oracle.confusion_matrix(truth, guess, labels=range(5)))
    assert metrics.accuracy(confusion) == pytest.approx(oracle.accuracy_score(truth, guess))
    assert metrics.macro_f1(confusion) == pytest.approx(oracle.f1_score(truth, guess, average="macro"))
    whole = probability.astype(np.float64)
    loss = oracle.log_loss(truth, whole / whole.sum(axis=1, keepdims=True), labels=range(5))
    assert metrics.surprise(probability, truth).mean() == pytest.approx(loss, rel=1e-5)


def test_a_probability_of_nil_costs_no_infinity() -> None:
    """It counts as the least probability that there is."""
    assert metrics.surprise(np.array([[0.0, 1.0]], np.float32), np.array([0]))[0] == pytest.approx(-np.log(1e-7))


@pytest.mark.parametrize("digits", [1, 6])
def test_average_precision(rng: np.random.Generator, digits: int) -> None:
    """As the library has it, with many equal scores and with hardly any."""
    from sklearn import metrics as oracle  # slow to load

    labels = rng.random(2000) < 0.05
    scores = np.round(rng.random(2000) + 0.5 * labels, digits).astype(np.float32)
    assert metrics.average_precision(labels, scores) == pytest.approx(oracle.average_precision_score(labels, scores))


def test_average_precision_needs_something_to_find() -> None:
    """Without a labelled timestep there is no recall."""
    with pytest.raises(ValueError, match="labelled"):
        metrics.average_precision(np.zeros(3, np.bool_), np.ones(3, np.float32))
