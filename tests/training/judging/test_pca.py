"""Principal components as a detector."""

from collections.abc import Callable

import numpy as np
import pytest

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import Split
from tidegate.training.judging.least_squares import linear_inputs, row_indices
from tidegate.training.judging.pca import EXPLAINED, fit_pca

SPLIT = Split(((0, 350),), ((350, 450),), ((450, 600),))


def test_distances_are_those_of_another_library(make_series: Callable[..., Series]) -> None:
    """T2 within the components and Q from them, over a timestep and the one before it."""
    from sklearn.decomposition import PCA  # slow to load

    series = make_series(600)
    fitted = fit_pca(series, SPLIT)
    scaler = fit_scaler(series, SPLIT.train)
    scaled = ((series.values - scaler.mean) / scaler.std).astype(np.float64)
    design = np.stack([scaled, np.concatenate([scaled[:1], scaled[:-1]])], axis=1).reshape(600, -1)
    oracle = PCA(n_components=EXPLAINED, svd_solver="full").fit(design[:350])
    along = oracle.transform(design)
    t2, q = fitted.distances(linear_inputs(series, fitted.mean, fitted.std), row_indices(series.spans))
    np.testing.assert_allclose(t2, (along**2 / oracle.explained_variance_).sum(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q, ((design - oracle.inverse_transform(along)) ** 2).sum(axis=1), rtol=1e-4, atol=1e-5)


def test_the_score_is_one_at_what_is_rarely_passed(make_series: Callable[..., Series]) -> None:
    """On the validation part at most a fiftieth lies above 1: a hundredth for T2, and one for Q."""
    series = make_series(4000)
    split = Split(((0, 2000),), ((2000, 3000),), ((3000, 4000),))
    score = fit_pca(series, split).score(series, split.validation)
    assert 0.01 <= (score > 1).mean() <= 0.02


def test_a_spike_stands_out(make_series: Callable[..., Series]) -> None:
    """It has the highest score of the held-out part."""
    series = make_series(600)
    fitted = fit_pca(series, SPLIT)
    series.values[500, 1] += 15
    assert fitted.score(series, SPLIT.test).argmax() + 450 in (500, 501)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_there_is_a_score_for_every_row(make_series: Callable[..., Series], missing: float) -> None:
    """With a constant sensor and missing values too."""
    series = make_series(600, missing=missing)
    series.values[:, 2] = 7
    assert np.isfinite(fit_pca(series, SPLIT).score(series, series.spans)).all()
