"""How far what a model gets has moved from its training part."""

import numpy as np
import pytest

from tidegate.core.drift import HALF_LIFE_SECONDS, Drift, WeightedMoments
from tidegate.core.spec import Feature, Output, Spec


def spec(*features: Feature, outputs: tuple[Output, ...] = ()) -> Spec:
    """A model with these features and outputs."""
    return Spec(
        "toy", "1", "f", "", None, handles_missing=True, features=features, outputs=outputs, state=(), inputs=()
    )


def test_moments_are_those_of_the_rows() -> None:
    """Without a pause between them, every row counts the same."""
    rows = np.random.default_rng(0).normal(5.0, 2.0, (1000, 2))
    moments = WeightedMoments(2)
    for part in np.split(rows, 10):
        moments.add(part, 0.0)
    np.testing.assert_allclose(moments.mean(), rows.mean(axis=0))
    np.testing.assert_allclose(moments.std(), rows.std(axis=0))


def test_old_rows_lose_their_weight() -> None:
    """After a half-life the rows before count half."""
    moments = WeightedMoments(1)
    moments.add(np.zeros((100, 1)), 0.0)
    moments.add(np.ones((50, 1)), HALF_LIFE_SECONDS)
    assert moments.mean() == pytest.approx(0.5)


def test_missing_values_do_not_count() -> None:
    """A column of which nothing is known stays unknown."""
    rows = np.full((100, 2), np.nan)
    rows[:50, 0] = 3.0
    moments = WeightedMoments(2)
    moments.add(rows, 0.0)
    assert moments.mean()[0] == 3.0
    assert np.isnan(moments.mean()[1])


def test_few_rows_say_nothing() -> None:
    """An alert at the first rows after a start would be noise."""
    moments = WeightedMoments(1)
    moments.add(np.full((10, 1), 100.0), 0.0)
    assert np.isnan(moments.mean()).all()
    assert np.isnan(moments.root_mean_square()).all()


def test_inputs_are_told_in_the_units_of_the_training_part() -> None:
    """A feature without moments, or one that never changed in training, is left out."""
    drift = Drift(
        spec(
            Feature("t", mean=20.0, std=2.0),
            Feature("unknown"),
            Feature("p", mean=0.0, std=10.0),
            Feature("c", std=0.0, mean=1.0),
        )
    )
    assert drift.features == ("t", "p")
    x = np.random.default_rng(0).normal([26.0, 0.0, 0.0, 0.0], [4.0, 1.0, 10.0, 1.0], (10_000, 4)).astype(np.float32)
    drift.add(x, (), 0.0)
    np.testing.assert_allclose(drift.input_shift(), [3.0, 0.0], atol=0.1)
    np.testing.assert_allclose(drift.input_spread(), [2.0, 1.0], rtol=0.05)


def test_errors_are_told_in_those_of_the_training() -> None:
    """From the output `surprise`, for each target."""
    outputs = (
        Output("score", np.dtype(np.float32), (1,)),
        Output("surprise", np.dtype(np.float32), (2,), targets=("a", "b")),
    )
    drift = Drift(spec(Feature("t"), outputs=outputs))
    surprise = np.random.default_rng(0).normal(0.0, [1.0, 3.0], (10_000, 2)).astype(np.float32)
    drift.add(np.zeros((10_000, 1), np.float32), (np.zeros((10_000, 1)), surprise), 0.0)
    assert drift.targets == ("a", "b")
    np.testing.assert_allclose(drift.error_spread(), [1.0, 3.0], rtol=0.05)


def test_a_model_that_says_nothing_of_its_training_is_not_measured() -> None:
    """A foreign graph, for example."""
    assert not Drift(spec(Feature("t"))).measurable
