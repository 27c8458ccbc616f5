"""Principal components of all sensors, the baseline for anomalies: how far a timestep lies within them, and how far off.

T2 is the distance from the training mean within the components, each in its own standard deviations (Hotelling, 1947); Q
is the squared distance from them (Jackson and Mudholkar, Control procedures for residuals associated with principal
component analysis, Technometrics 21, 1979). A timestep is seen together with the one before it, which makes it a dynamic
PCA (Ku, Storer and Georgakis, Chemometrics and Intelligent Laboratory Systems 30, 1995). A missing value is replaced by
the last one seen, so PCA does not see that a sensor is silent.
"""

from dataclasses import dataclass

import numpy as np

from training.data.scaler import fit_scaler
from training.data.series import Floats, Ints, Series, Spans
from training.data.split import Split
from training.judging.metrics import Doubles
from training.judging.ridge import Inputs, every, inputs_of, rows_within

# A timestep and the one before it.
LAGS = 2
# Components that explain this share of the variance; the rest is noise that Q watches.
EXPLAINED = 0.9
# T2 and Q are compared through this quantile of each on the validation part.
USUAL = 0.99
# Rows of a design matrix at a time.
BLOCK = 16_384


@dataclass(frozen=True)
class Pca:
    """Components of the training part, and what T2 and Q usually are on the validation part."""

    mean: Floats  # (features,) of the scaler
    std: Floats
    center: Doubles  # (columns,)
    components: Doubles  # (columns, kept)
    variance: Doubles  # (kept,)
    usual: tuple[float, float]

    def score(self, series: Series, spans: Spans) -> Floats:
        """(rows of the spans,): the larger of T2 and Q, each in units of what is usual. Reads rows before a span too."""
        both = self.distances(inputs_of(series, self.mean, self.std), rows_within(spans))
        return np.asarray(np.maximum(both[0] / self.usual[0], both[1] / self.usual[1]), np.float32)

    def distances(self, inputs: Inputs, rows: Ints) -> tuple[Doubles, Doubles]:
        """T2 and Q of the rows, each (rows,)."""
        t2, q = np.empty(len(rows)), np.empty(len(rows))
        for low in range(0, len(rows), BLOCK):
            away = _design(inputs, rows[low : low + BLOCK]) - self.center
            along = away @ self.components  # (rows, kept)
            t2[low : low + BLOCK] = (np.square(along) / self.variance).sum(axis=1)
            q[low : low + BLOCK] = np.square(away - along @ self.components.T).sum(axis=1)
        return t2, q


def fit_pca(series: Series, split: Split) -> Pca:
    """Fit on the training part; what is usual the validation part says."""
    scaler = fit_scaler(series, split.train)
    inputs = inputs_of(series, scaler.mean, scaler.std)
    design = _design(inputs, every(rows_within(split.train)))
    center = design.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(design, rowvar=False))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]  # the largest first
    kept = int(np.searchsorted(np.cumsum(values), EXPLAINED * values.sum())) + 1
    bare = Pca(scaler.mean, scaler.std, center, vectors[:, :kept], values[:kept], (1.0, 1.0))
    t2, q = (float(np.quantile(part, USUAL)) for part in bare.distances(inputs, rows_within(split.validation)))
    # With as many components as columns nothing is left for Q.
    usual = (t2 or 1.0, q if q > 1e-9 else 1.0)
    return Pca(bare.mean, bare.std, center, bare.components, bare.variance, usual)


def _design(inputs: Inputs, rows: Ints) -> Doubles:
    return inputs.windows(rows, range(inputs.values.shape[1]), LAGS, ())
