"""The formulas of the scores, in float64, from arrays to numbers. This module knows no model.

Sources:
    MASE: Hyndman and Koehler, Another look at measures of forecast accuracy, International Journal of Forecasting 22, 2006.
    Pinball loss: Koenker and Bassett, Regression Quantiles, Econometrica 46, 1978.
    F1: van Rijsbergen, Information Retrieval, 1979; the macro average is the plain mean over classes.
    Average precision: the step-wise area under the precision-recall curve, as in Davis and Goadrich, The relationship
        between Precision-Recall and ROC curves, ICML 2006.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Floats, Ints, Span

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# The smallest probability that counts: one that float32 rounds to zero must not make the mean infinite.
MIN_PROBABILITY = 1e-7


def root_mean_square(errors: Doubles) -> float:
    """The root of the mean of e squared."""
    return float(np.sqrt(np.square(errors).mean()))


def naive_scale(values: Floats, segments: Sequence[Span], season: int) -> float | None:
    """The divisor of the MASE: the mean of |y(t) - y(t - season)| within the segments of the training part.

    Args:
        values: (time,) of the target; NaN is missing and does not count.
        segments: rows without a time gap.
        season: in timesteps; 1 is the naive forecast without a season.

    Returns:
        None if no value is known or the values never change: a scaled error has no meaning then.
    """
    changes = [values[first + season : end].astype(np.float64) - values[first : end - season] for first, end in segments
             if end - first > season]  # fmt: skip
    known = np.concatenate([*changes, np.empty(0)])
    known = known[~np.isnan(known)]
    scale = float(np.abs(known).mean()) if len(known) else 0.0
    return scale or None


def pinball(truth: Doubles, quantiles: Doubles, levels: Sequence[float]) -> Doubles:
    """(n,) and (n, levels) -> (levels,): the mean of max(q (y - f), (q - 1)(y - f)) for each level q."""
    missed = truth[:, None] - quantiles
    level = np.asarray(levels, np.float64)
    loss: Doubles = np.maximum(level * missed, (level - 1.0) * missed).mean(axis=0)
    return loss


def confusion_matrix(truth: Ints, predicted: Ints, classes: int) -> Ints:
    """(classes, classes): how often class i was predicted as class j."""
    return (
        np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes).astype(np.int64)
    )


def accuracy(confusion: Ints) -> float:
    """The share of the diagonal of a confusion matrix."""
    return float(np.trace(confusion) / confusion.sum())


def macro_f1(confusion: Ints) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN); a class that neither occurs nor is predicted does not count."""
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float((2.0 * np.diag(confusion)[both > 0] / both[both > 0]).mean())


def surprise(probability: Floats, truth: Ints) -> Doubles:
    """(n, classes) and (n,) -> (n,): -ln p of the true class. Its mean is the cross-entropy, exp of that the perplexity."""
    true_probability = np.take_along_axis(probability, truth[:, None], axis=1)[:, 0].astype(np.float64)
    bits: Doubles = -np.log(np.maximum(true_probability, MIN_PROBABILITY))
    return bits


def average_precision(labels: Bools, scores: Floats) -> float:
    """The sum over thresholds of (recall - previous recall) times precision; equal scores share a threshold.

    Raises:
        ValueError: no timestep is labelled, so that there is no recall.
    """
    if not labels.any():
        raise ValueError("average precision needs at least one labelled timestep")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # the last timestep of each score
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())
