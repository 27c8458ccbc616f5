"""Principal components of all sensors, the baseline for anomalies: the distance of a timestep within them, and from them.

T2 is the distance from the training mean within the components, each in its own standard deviations (Hotelling, 1947); Q
is the squared distance from them (Jackson and Mudholkar, Control procedures for residuals associated with principal
component analysis, Technometrics 21, 1979). A timestep counts together with the one before it: a dynamic PCA (Ku, Storer
and Georgakis, Chemometrics and Intelligent Laboratory Systems 30, 1995). A missing value is replaced by the last observed
one, so PCA cannot find a sensor that is missing.
"""

from dataclasses import dataclass

import numpy as np

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Floats, Ints, Series, Spans
from tidegate.training.data.split import Split
from tidegate.training.judging.least_squares import Inputs, linear_inputs, row_indices, subsample
from tidegate.training.judging.metrics import Doubles

# A timestep and the one before it.
LAGS = 2
# The components explain this share of the variance. The rest is noise, which Q measures.
EXPLAINED = 0.9
# T2 and Q are divided by this quantile of each on the validation part, so that they are comparable.
REFERENCE_QUANTILE = 0.99
# Rows of a design matrix at a time.
BLOCK = 16_384


@dataclass(frozen=True)
class Pca:
    """The components of the training part, and the usual size of T2 and Q on the validation part."""

    mean: Floats  # (features,) of the scaler
    std: Floats
    center: Doubles  # (columns,)
    components: Doubles  # (columns, kept)
    variance: Doubles  # (kept,)
    reference: tuple[float, float]

    def score(self, series: Series, spans: Spans) -> Floats:
        """(rows of the spans,): the larger of T2 and Q, each in units of its usual size. It reads rows before a span too."""
        both = self.distances(linear_inputs(series, self.mean, self.std), row_indices(spans))
        return np.asarray(np.maximum(both[0] / self.reference[0], both[1] / self.reference[1]), np.float32)

    def distances(self, inputs: Inputs, rows: Ints) -> tuple[Doubles, Doubles]:
        """T2 and Q of the rows, each (rows,)."""
        t2, q = np.empty(len(rows)), np.empty(len(rows))
        for low in range(0, len(rows), BLOCK):
            residual = _design(inputs, rows[low : low + BLOCK]) - self.center
            projected = residual @ self.components  # (rows, kept)
            t2[low : low + BLOCK] = (np.square(projected) / self.variance).sum(axis=1)
            q[low : low + BLOCK] = np.square(residual - projected @ self.components.T).sum(axis=1)
        return t2, q


def fit_pca(series: Series, split: Split) -> Pca:
    """Fit the components on the training part, and the usual size of T2 and Q on the validation part."""
    scaler = fit_scaler(series, split.train)
    inputs = linear_inputs(series, scaler.mean, scaler.std)
    design = _design(inputs, subsample(row_indices(split.train)))
    center = design.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(design, rowvar=False))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]  # the largest first
    kept = int(np.searchsorted(np.cumsum(values), EXPLAINED * values.sum())) + 1
    unscaled = Pca(scaler.mean, scaler.std, center, vectors[:, :kept], values[:kept], (1.0, 1.0))
    t2, q = (
        float(np.quantile(part, REFERENCE_QUANTILE))
        for part in unscaled.distances(inputs, row_indices(split.validation))
    )
    # With as many components as columns Q is zero.
    reference = (t2 or 1.0, q if q > 1e-9 else 1.0)
    return Pca(unscaled.mean, unscaled.std, center, unscaled.components, unscaled.variance, reference)


def _design(inputs: Inputs, rows: Ints) -> Doubles:
    return inputs.windows(rows, range(inputs.values.shape[1]), LAGS, ())
