"""Linear models of the last few values: ridge autoregression and a linear classifier, the fitted baselines.

Both are fitted in closed form in float64 (Hoerl and Kennard, Ridge Regression, Technometrics 12, 1970), on the training
part alone. The validation part selects the number of lags and the ridge penalty. They see what a network sees: a missing
value is replaced by the last observed one, and by the training mean before the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import (
    UNLABELLED,
    Floats,
    Ints,
    Series,
    Spans,
    count_rows,
    forward_fill,
    future_values,
)
from tidegate.training.data.split import Split
from tidegate.training.judging.metrics import Doubles, surprise

# The candidate numbers of lags. A season and one more is another, which sees the same time of the last season.
LAGS = (1, 6, 24, 72)
# More lags cost more time and improve no forecast.
MAX_LAGS = 300
CLASSIFIER_LAGS = (1, 8, 25)
CLASSIFIER_COLUMNS = 600
# In units of the mean square of a scaled column, which is about 1. The largest leaves little but a constant, the median of
# the validation part. That is best for a target that no feature predicts.
RIDGE_PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# Enough rows for a few hundred weights. Of a longer part every second row is taken, or every third, and so on.
MAX_ROWS = 100_000
# Rows of a design matrix at a time: 40 MB for 300 columns.
BLOCK = 16_384
# All horizons share one matrix if this share of the rows that any horizon can use serves all.
SHARED_ROWS = 0.8
# Least squares to 0 and 1 gives no probabilities. A softmax of it times one of these does; the validation part selects which.
SHARPNESSES = (1.0, 2.0, 4.0, 8.0, 16.0)


Number = TypeVar("Number", np.float32, np.int64)


@dataclass(frozen=True)
class Inputs:
    """The inputs of the linear models.

    Attributes:
        values: (time, features) scaled, without missing values.
        begins: (time,) the first row of the segment of each row; lags before it repeat its value.
    """

    values: Floats
    begins: Ints

    def windows(self, rows: Ints, lagged: Sequence[int], lags: int, others: Sequence[int]) -> Doubles:
        """(rows, lagged * lags + others): the lags of the lagged columns, the latest first, and the last value of others."""
        back = np.maximum(rows[:, None] - np.arange(lags), self.begins[rows][:, None])  # (rows, lags)
        own = self.values[back][..., list(lagged)] if len(lagged) > 1 else self.values[back, lagged[0]]
        return np.concatenate(
            [own.reshape(len(rows), -1), self.values[rows][:, list(others)]], axis=1, dtype=np.float64
        )


@dataclass(frozen=True)
class Line:
    """A fitted regression for one target and horizon, in the unit of the target."""

    lags: int
    penalty: float
    weights: Doubles  # (lags + features - 1,)
    intercept: float


@dataclass(frozen=True)
class Ridge:
    """Direct ridge autoregression: a regression for each target and horizon, on its own lags and on the other features.

    It minimises squared errors, but is also scored by absolute ones. So the median of its errors on the validation part is
    added; without it, on a spiky target, it would be worse than a constant.
    """

    targets: tuple[int, ...]
    lines: tuple[tuple[Line, ...], ...]  # (targets, horizons)
    mean: Floats
    std: Floats

    def forecast(self, series: Series, spans: Spans) -> Floats:
        """(rows of the spans, horizons, targets). It reads rows before a span too."""
        inputs = linear_inputs(series, self.mean, self.std)
        rows = row_indices(spans)
        forecast = np.empty((len(rows), len(self.lines[0]), len(self.targets)), np.float32)
        for place, (target, lines) in enumerate(zip(self.targets, self.lines, strict=True)):
            others = _other_columns(inputs, target)
            longest = max(line.lags for line in lines)
            for low in range(0, len(rows), BLOCK):
                block = inputs.windows(rows[low : low + BLOCK], [target], longest, others)
                for index, line in enumerate(lines):
                    prediction = block[:, _columns(line.lags, longest, len(others))] @ line.weights + line.intercept
                    forecast[low : low + BLOCK, index, place] = prediction
        return forecast


def fit_ridge(
    series: Series, split: Split, targets: Sequence[int], horizons: Sequence[int], *, season: int | None
) -> Ridge | None:
    """Fit on the training part and select on the validation part; None if a horizon has no true value in one of them."""
    scaler = fit_scaler(series, split.train)
    inputs = linear_inputs(series, scaler.mean, scaler.std)
    train_rows, validation_rows = subsample(row_indices(split.train)), subsample(row_indices(split.validation))
    train_truth, validation_truth = (
        _truth(series, targets, horizons, spans) for spans in (split.train, split.validation)
    )
    if not (_known_everywhere(train_truth) and _known_everywhere(validation_truth)):
        return None
    lags = sorted({*LAGS, *((season + 1,) if season and season < MAX_LAGS else ())})
    lines = tuple(
        _fit_target(
            inputs, target, lags, (train_rows, train_truth[..., place]), (validation_rows, validation_truth[..., place])
        )
        for place, target in enumerate(targets)
    )
    return Ridge(tuple(targets), lines, scaler.mean, scaler.std)


def _fit_target(
    inputs: Inputs, target: int, lags: Sequence[int], train: tuple[Ints, Floats], validation: tuple[Ints, Floats]
) -> tuple[Line, ...]:
    """The regressions of one target, one for each horizon; `train` and `validation` are rows (n,) and truth (n, horizons)."""
    others = _other_columns(inputs, target)
    rows, truth = train
    known = ~np.isnan(truth)
    complete = known.all(axis=1)
    shared = complete.sum() >= SHARED_ROWS * known.any(axis=1).sum()
    horizons = range(truth.shape[1])
    lines = []
    moments = _NormalEquations.of(inputs, rows[complete], truth[complete], target, lags[-1], others) if shared else None
    for index in horizons:
        known_rows = known[:, index]
        part = (moments.only(index) if moments else
                _NormalEquations.of(inputs, rows[known_rows], truth[known_rows][:, [index]], target, lags[-1], others))  # fmt: skip
        validation_known = ~np.isnan(validation[1][:, index])
        lines.append(
            _choose(
                inputs,
                part,
                target,
                lags,
                others,
                (validation[0][validation_known], validation[1][validation_known, index]),
            )
        )
    return tuple(lines)


def _choose(
    inputs: Inputs,
    moments: "_NormalEquations",
    target: int,
    lags: Sequence[int],
    others: Sequence[int],
    validation: tuple[Ints, Floats],
) -> Line:
    """The regression with the smallest mean absolute error on the validation rows."""
    rows, truth = validation
    design = inputs.windows(rows, [target], lags[-1], others)
    best: tuple[float, Line] | None = None
    for count in lags:
        columns = _columns(count, lags[-1], len(others))
        weights, intercepts = moments.solve(columns)  # (columns, shrinkages, 1), (shrinkages, 1)
        residuals = truth[:, None] - design[:, columns] @ weights[..., 0] - intercepts[:, 0]  # (rows, shrinkages)
        offset = np.median(residuals, axis=0)
        errors = np.abs(residuals - offset).mean(axis=0)
        place = int(errors.argmin())
        if best is None or errors[place] < best[0]:
            line = Line(
                count, RIDGE_PENALTIES[place], weights[:, place, 0], float(intercepts[place, 0] + offset[place])
            )
            best = float(errors[place]), line
    assert best is not None  # there is always a lag to try
    return best[1]


@dataclass(frozen=True)
class _NormalEquations:
    """The moments of the design x (columns) and the truth y (outputs) that the normal equations need."""

    x: Doubles  # (columns,) mean
    y: Doubles  # (outputs,) mean
    xx: Doubles  # (columns, columns) covariance
    xy: Doubles  # (columns, outputs) covariance

    @classmethod
    def of(
        cls, inputs: Inputs, rows: Ints, truth: Floats, target: int, lags: int, others: Sequence[int]
    ) -> "_NormalEquations":
        """The moments of the rows, in one pass over blocks of them."""
        return cls.over((inputs.windows(part, [target], lags, others), known) for part, known in _blocks(rows, truth))

    @classmethod
    def over(cls, blocks: Iterator[tuple[Doubles, npt.NDArray[np.floating]]]) -> "_NormalEquations":
        """The moments of blocks of x (rows, columns) and y (rows, outputs). Columns are about 1, so sums lose no digits."""
        count, x, y, xx, xy = 0, np.zeros(()), np.zeros(()), np.zeros(()), np.zeros(())
        for design, truth in blocks:
            count += len(design)
            x, y = x + design.sum(axis=0), y + truth.sum(axis=0)
            xx, xy = xx + design.T @ design, xy + design.T @ truth
        x, y = x / count, y / count
        return cls(x, y, xx / count - np.outer(x, x), xy / count - np.outer(x, y))

    def only(self, output: int) -> "_NormalEquations":
        """The moments of one output."""
        return _NormalEquations(self.x, self.y[[output]], self.xx, self.xy[:, [output]])

    def solve(self, columns: Ints) -> tuple[Doubles, Doubles]:
        """Weights (columns, shrinkages, outputs) and intercepts (shrinkages, outputs) of the line over some columns."""
        values, vectors = np.linalg.eigh(self.xx[np.ix_(columns, columns)])
        turned = vectors.T @ self.xy[columns]  # (columns, outputs)
        # A constant column has an eigenvalue of zero, which rounding may make negative.
        shrunk = np.maximum(values, 0.0)[:, None] + np.asarray(RIDGE_PENALTIES)  # (columns, shrinkages)
        weights = np.einsum("ij,jso->iso", vectors, turned[:, None, :] / shrunk[..., None])
        return weights, self.y - np.einsum("i,iso->so", self.x[columns], weights)


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
        moments = _NormalEquations.over(
            (inputs.windows(part, everything, lags, ()), one_hot[known])
            for part, known in _blocks(train_rows, series.labels[train_rows])
        )
        weights, intercepts = moments.solve(np.arange(lags * len(everything)))
        design = inputs.windows(validation_rows, everything, lags, ())
        for place, penalty in enumerate(RIDGE_PENALTIES):
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


def linear_inputs(series: Series, mean: Floats, std: Floats) -> Inputs:
    """The series as input of the linear models; `mean` and `std` (features,) are those of the training part."""
    begins = np.zeros(len(series), np.int64)
    for first, end in series.segments():
        begins[first:end] = first
    filled = (series.values - mean) / std
    for first, end in series.spans:
        filled[first:end] = forward_fill(filled[first:end])
    return Inputs(np.nan_to_num(filled, copy=False), begins)


def _other_columns(inputs: Inputs, target: int) -> list[int]:
    return [column for column in range(inputs.values.shape[1]) if column != target]


def _columns(lags: int, longest: int, others: int) -> Ints:
    """The columns of a design with fewer lags within that with the most."""
    return np.concatenate([np.arange(lags), longest + np.arange(others)])


def row_indices(spans: Spans) -> Ints:
    """The indices of all rows of the spans."""
    return np.concatenate([np.arange(first, end, dtype=np.int64) for first, end in spans])


def subsample(rows: Ints) -> Ints:
    """At most `MAX_ROWS`, evenly chosen."""
    return rows[:: max(-(-len(rows) // MAX_ROWS), 1)]


def _truth(series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> Floats:
    """The true values of the rows that `subsample` takes: (rows, horizons, targets), by horizon to save memory."""
    places = subsample(np.arange(count_rows(spans)))
    return np.stack([future_values(series, targets, (horizon,), spans)[places, 0] for horizon in horizons], axis=1)


def _known_everywhere(truth: Floats) -> bool:
    return bool((~np.isnan(truth)).any(axis=0).all())


def _blocks(rows: Ints, truth: npt.NDArray[Number]) -> Iterator[tuple[Ints, npt.NDArray[Number]]]:
    for low in range(0, len(rows), BLOCK):
        yield rows[low : low + BLOCK], truth[low : low + BLOCK]


def _softmax(scores: Doubles) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
