"""A linear classifier of the last few values, the fitted baseline of a classification.

It is fitted in closed form, as `ridge` is, and sees what a network sees. The validation part selects the number of lags, the
penalty and the sharpness.
"""

from dataclasses import dataclass

import numpy as np

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import UNLABELLED, Floats, Series, Spans
from tidegate.training.data.split import Split
from tidegate.training.judging.least_squares import (
    BLOCK,
    PENALTIES,
    NormalEquations,
    blocks,
    linear_inputs,
    one_thread,
    row_indices,
    subsample,
)
from tidegate.training.judging.metrics import Doubles, surprise

CLASSIFIER_LAGS = (1, 8, 25)
CLASSIFIER_COLUMNS = 600
# Least squares to 0 and 1 gives no probabilities. A softmax of it times one of these does; the validation part selects which.
SHARPNESSES = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class LinearClassifier:
    """Least squares to one-hot classes over a window of all features, turned into probabilities by a softmax."""

    lags: int
    penalty: float
    sharpness: float
    weights: Doubles  # (features * lags, classes)
    intercepts: Doubles  # (classes,)
    mean: Floats
    std: Floats

    def probability(self, series: Series, spans: Spans) -> Floats:
        """(rows of the spans, classes). It reads rows before a span too."""
        inputs = linear_inputs(series, self.mean, self.std)
        everything = range(inputs.values.shape[1])
        rows = row_indices(spans)
        prediction = np.empty((len(rows), len(self.intercepts)), np.float32)
        for low in range(0, len(rows), BLOCK):
            window = inputs.windows(rows[low : low + BLOCK], everything, self.lags, ())
            prediction[low : low + BLOCK] = _softmax(self.sharpness * (window @ self.weights + self.intercepts))
        return prediction


@one_thread()
def fit_classifier(series: Series, split: Split) -> LinearClassifier | None:
    """Fit on the training part and select by cross-entropy on the validation part; None if one of them has no labels."""
    assert series.labels is not None  # the caller scores classes
    scaler = fit_scaler(series, split.train)
    inputs = linear_inputs(series, scaler.mean, scaler.std)
    train_rows, validation_rows = (
        rows[series.labels[rows] != UNLABELLED] for rows in (row_indices(split.train), row_indices(split.validation))
    )
    if not (len(train_rows) and len(validation_rows)):
        return None
    train_rows, validation_rows = subsample(train_rows), subsample(validation_rows)
    everything = range(inputs.values.shape[1])
    one_hot = np.eye(len(series.classes))
    best: tuple[float, LinearClassifier] | None = None
    for lags in CLASSIFIER_LAGS:
        if lags > 1 and lags * len(everything) > CLASSIFIER_COLUMNS:
            break
        moments = NormalEquations.over(
            (inputs.windows(part, everything, lags, ()), one_hot[known])
            for part, known in blocks(train_rows, series.labels[train_rows])
        )
        weights, intercepts = moments.solve(np.arange(lags * len(everything)))
        design = inputs.windows(validation_rows, everything, lags, ())
        for place, penalty in enumerate(PENALTIES):
            scores = design @ weights[:, place] + intercepts[place]
            for sharpness in SHARPNESSES:
                loss = float(surprise(_softmax(sharpness * scores), series.labels[validation_rows]).mean())
                if best is None or loss < best[0]:
                    fitted = LinearClassifier(
                        lags, penalty, sharpness, weights[:, place], intercepts[place], scaler.mean, scaler.std
                    )
                    best = loss, fitted
    assert best is not None  # a single lag is always tried
    return best[1]


def _softmax(scores: Doubles) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
