"""Lines through the last few values: ridge autoregression and a linear classifier, the baselines that have to be learned.

Both are fitted in closed form in float64 (Hoerl and Kennard, Ridge Regression, Technometrics 12, 1970), on the training
part alone; how many lags and how much shrinkage the validation part chooses. They see what a network sees: missing values
are replaced by the last one seen, and by the training mean before the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from training.data.scaler import fit_scaler
from training.data.series import UNLABELLED, Floats, Ints, Series, Spans, ahead, rows_of
from training.data.split import Split
from training.judging.metrics import Doubles, surprise

# Numbers of lags to choose from; a season and one more joins them, which sees the same time of the last season.
LAGS = (1, 6, 24, 72)
# Beyond that a design matrix costs more than it tells.
MOST_LAGS = 300
CLASSIFIER_LAGS = (1, 8, 25)
CLASSIFIER_COLUMNS = 600
# In units of the mean square of a scaled column, which is about 1. The largest leaves little but a constant, the median of
# the validation part: for a target that nothing foretells that is the best there is.
SHRINKAGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# What a line of a few hundred numbers needs; of a longer part every second row is taken, or every third, and so on.
MOST_ROWS = 100_000
# Rows of a design matrix at a time: 40 MB for 300 columns.
BLOCK = 16_384
# When this share of the rows that some horizon can learn from serves all horizons, they share one matrix.
SHARED = 0.8
# What least squares to 0 and 1 says is no probability; a softmax of it times one of these is, and validation chooses.
SHARPNESSES = (1.0, 2.0, 4.0, 8.0, 16.0)


Number = TypeVar("Number", np.float32, np.int64)


@dataclass(frozen=True)
class Inputs:
    """What the lines read.

    Attributes:
        values: (time, features) scaled and without holes.
        begins: (time,) the first row of the stretch that a row belongs to; lags before it repeat its value.
    """

    values: Floats
    begins: Ints

    def windows(self, rows: Ints, lagged: Sequence[int], lags: int, others: Sequence[int]) -> Doubles:
        """(rows, lagged * lags + others): the last values of the lagged columns, the latest first; and the others' last."""
        back = np.maximum(rows[:, None] - np.arange(lags), self.begins[rows][:, None])  # (rows, lags)
        own = self.values[back][..., list(lagged)] if len(lagged) > 1 else self.values[back, lagged[0]]
        return np.concatenate(
            [own.reshape(len(rows), -1), self.values[rows][:, list(others)]], axis=1, dtype=np.float64
        )


@dataclass(frozen=True)
class Line:
    """A fitted line for one target and horizon, in the target's unit."""

    lags: int
    shrinkage: float
    weights: Doubles  # (lags + features - 1,)
    intercept: float


@dataclass(frozen=True)
class Ridge:
    """Direct ridge autoregression: a line for each target and horizon, over its own last values and those of the others.

    It is fitted to squares and judged by absolute errors as well, so the median of its errors on the validation part is
    added to it: on a spiky target the plain line would lose to a constant.
    """

    targets: tuple[int, ...]
    lines: tuple[tuple[Line, ...], ...]  # (targets, horizons)
    mean: Floats
    std: Floats

    def forecast(self, series: Series, spans: Spans) -> Floats:
        """(rows of the spans, horizons, targets). Reads rows before a span too."""
        inputs = inputs_of(series, self.mean, self.std)
        rows = rows_within(spans)
        forecast = np.empty((len(rows), len(self.lines[0]), len(self.targets)), np.float32)
        for place, (target, lines) in enumerate(zip(self.targets, self.lines, strict=True)):
            others = _others(inputs, target)
            longest = max(line.lags for line in lines)
            for low in range(0, len(rows), BLOCK):
                block = inputs.windows(rows[low : low + BLOCK], [target], longest, others)
                for index, line in enumerate(lines):
                    said = block[:, _columns(line.lags, longest, len(others))] @ line.weights + line.intercept
                    forecast[low : low + BLOCK, index, place] = said
        return forecast


def fit_ridge(
    series: Series, split: Split, targets: Sequence[int], horizons: Sequence[int], *, season: int | None
) -> Ridge | None:
    """Fit on the training part and choose on the validation part; None when one of them has no truth for some horizon."""
    scaler = fit_scaler(series, split.train)
    inputs = inputs_of(series, scaler.mean, scaler.std)
    teach, choose = every(rows_within(split.train)), every(rows_within(split.validation))
    learned, chosen = (_truth(series, targets, horizons, spans) for spans in (split.train, split.validation))
    if not (_known_everywhere(learned) and _known_everywhere(chosen)):
        return None
    lags = sorted({*LAGS, *((season + 1,) if season and season < MOST_LAGS else ())})
    lines = tuple(
        _fit_target(inputs, target, lags, (teach, learned[..., place]), (choose, chosen[..., place]))
        for place, target in enumerate(targets)
    )
    return Ridge(tuple(targets), lines, scaler.mean, scaler.std)


def _fit_target(
    inputs: Inputs, target: int, lags: Sequence[int], teach: tuple[Ints, Floats], choose: tuple[Ints, Floats]
) -> tuple[Line, ...]:
    """The lines of one target, a horizon each; `teach` and `choose` are rows (n,) and their truth (n, horizons)."""
    others = _others(inputs, target)
    rows, truth = teach
    known = ~np.isnan(truth)
    together = known.all(axis=1)
    shared = together.sum() >= SHARED * known.any(axis=1).sum()
    horizons = range(truth.shape[1])
    lines = []
    moments = _Moments.of(inputs, rows[together], truth[together], target, lags[-1], others) if shared else None
    for index in horizons:
        mine = known[:, index]
        part = (moments.only(index) if moments else
                _Moments.of(inputs, rows[mine], truth[mine][:, [index]], target, lags[-1], others))  # fmt: skip
        there = ~np.isnan(choose[1][:, index])
        lines.append(_choose(inputs, part, target, lags, others, (choose[0][there], choose[1][there, index])))
    return tuple(lines)


def _choose(
    inputs: Inputs,
    moments: "_Moments",
    target: int,
    lags: Sequence[int],
    others: Sequence[int],
    choose: tuple[Ints, Floats],
) -> Line:
    """The line with the smallest mean absolute error on the rows that choose."""
    rows, truth = choose
    design = inputs.windows(rows, [target], lags[-1], others)
    best: tuple[float, Line] | None = None
    for count in lags:
        columns = _columns(count, lags[-1], len(others))
        weights, intercepts = moments.solve(columns)  # (columns, shrinkages, 1), (shrinkages, 1)
        left = truth[:, None] - design[:, columns] @ weights[..., 0] - intercepts[:, 0]  # (rows, shrinkages)
        shift = np.median(left, axis=0)
        errors = np.abs(left - shift).mean(axis=0)
        place = int(errors.argmin())
        if best is None or errors[place] < best[0]:
            line = Line(count, SHRINKAGES[place], weights[:, place, 0], float(intercepts[place, 0] + shift[place]))
            best = float(errors[place]), line
    assert best is not None  # there is always a lag to try
    return best[1]


@dataclass(frozen=True)
class _Moments:
    """What the normal equations need: counts, means and products of the design x (columns) and the truth y (outputs)."""

    x: Doubles  # (columns,) mean
    y: Doubles  # (outputs,) mean
    xx: Doubles  # (columns, columns) covariance
    xy: Doubles  # (columns, outputs) covariance

    @classmethod
    def of(cls, inputs: Inputs, rows: Ints, truth: Floats, target: int, lags: int, others: Sequence[int]) -> "_Moments":
        """Those of the rows, in one pass over blocks of them."""
        return cls.over((inputs.windows(part, [target], lags, others), known) for part, known in _blocks(rows, truth))

    @classmethod
    def over(cls, blocks: Iterator[tuple[Doubles, npt.NDArray[np.floating]]]) -> "_Moments":
        """Those of blocks of x (rows, columns) and y (rows, outputs). Columns are about 1, so sums lose no digits."""
        count, x, y, xx, xy = 0, np.zeros(()), np.zeros(()), np.zeros(()), np.zeros(())
        for design, truth in blocks:
            count += len(design)
            x, y = x + design.sum(axis=0), y + truth.sum(axis=0)
            xx, xy = xx + design.T @ design, xy + design.T @ truth
        x, y = x / count, y / count
        return cls(x, y, xx / count - np.outer(x, x), xy / count - np.outer(x, y))

    def only(self, output: int) -> "_Moments":
        """Those of one output."""
        return _Moments(self.x, self.y[[output]], self.xx, self.xy[:, [output]])

    def solve(self, columns: Ints) -> tuple[Doubles, Doubles]:
        """Weights (columns, shrinkages, outputs) and intercepts (shrinkages, outputs) of the line over some columns."""
        values, vectors = np.linalg.eigh(self.xx[np.ix_(columns, columns)])
        turned = vectors.T @ self.xy[columns]  # (columns, outputs)
        # A constant column has an eigenvalue of nil, which rounding may make negative.
        shrunk = np.maximum(values, 0.0)[:, None] + np.asarray(SHRINKAGES)  # (columns, shrinkages)
        weights = np.einsum("ij,jso->iso", vectors, turned[:, None, :] / shrunk[..., None])
        return weights, self.y - np.einsum("i,iso->so", self.x[columns], weights)


@dataclass(frozen=True)
class LinearClassifier:
    """Least squares to one-hot classes over a window of all features, sharpened into probabilities."""

    lags: int
    shrinkage: float
    sharpness: float
    weights: Doubles  # (features * lags, classes)
    intercepts: Doubles  # (classes,)
    mean: Floats
    std: Floats

    def probability(self, series: Series, spans: Spans) -> Floats:
        """(rows of the spans, classes). Reads rows before a span too."""
        inputs = inputs_of(series, self.mean, self.std)
        everything = range(inputs.values.shape[1])
        rows = rows_within(spans)
        said = np.empty((len(rows), len(self.intercepts)), np.float32)
        for low in range(0, len(rows), BLOCK):
            window = inputs.windows(rows[low : low + BLOCK], everything, self.lags, ())
            said[low : low + BLOCK] = _softmax(self.sharpness * (window @ self.weights + self.intercepts))
        return said


def fit_classifier(series: Series, split: Split) -> LinearClassifier | None:
    """Fit on the training part, choose by cross-entropy on the validation part; None when one of them has no labels."""
    assert series.labels is not None  # the caller scores classes
    scaler = fit_scaler(series, split.train)
    inputs = inputs_of(series, scaler.mean, scaler.std)
    teach, choose = (
        rows[series.labels[rows] != UNLABELLED] for rows in (rows_within(split.train), rows_within(split.validation))
    )
    if not (len(teach) and len(choose)):
        return None
    teach, choose = every(teach), every(choose)
    everything = range(inputs.values.shape[1])
    wanted = np.eye(len(series.classes))
    best: tuple[float, LinearClassifier] | None = None
    for lags in CLASSIFIER_LAGS:
        if lags > 1 and lags * len(everything) > CLASSIFIER_COLUMNS:
            break
        moments = _Moments.over(
            (inputs.windows(part, everything, lags, ()), wanted[known])
            for part, known in _blocks(teach, series.labels[teach])
        )
        weights, intercepts = moments.solve(np.arange(lags * len(everything)))
        design = inputs.windows(choose, everything, lags, ())
        for place, shrinkage in enumerate(SHRINKAGES):
            scores = design @ weights[:, place] + intercepts[place]
            for sharpness in SHARPNESSES:
                loss = float(surprise(_softmax(sharpness * scores), series.labels[choose]).mean())
                if best is None or loss < best[0]:
                    fitted = LinearClassifier(
                        lags, shrinkage, sharpness, weights[:, place], intercepts[place], scaler.mean, scaler.std
                    )
                    best = loss, fitted
    assert best is not None  # a single lag is always tried
    return best[1]


def hold(values: Floats, spans: Spans) -> Floats:
    """(time, features) with each missing value replaced by the one before it in its span, and by 0 before the first."""
    held = np.empty_like(values)
    for first, end in spans:
        part = values[first:end]
        rows = np.maximum.accumulate(np.where(np.isnan(part), -1, np.arange(len(part))[:, None]), axis=0)
        held[first:end] = np.where(rows < 0, np.float32(0.0), np.take_along_axis(part, np.maximum(rows, 0), axis=0))
    return held


def inputs_of(series: Series, mean: Floats, std: Floats) -> Inputs:
    """The series as the lines read it; `mean` and `std` (features,) are those of the training part."""
    begins = np.zeros(len(series), np.int64)
    for first, end in series.stretches():
        begins[first:end] = first
    return Inputs(hold((series.values - mean) / std, series.spans), begins)


def _others(inputs: Inputs, target: int) -> list[int]:
    return [column for column in range(inputs.values.shape[1]) if column != target]


def _columns(lags: int, longest: int, others: int) -> Ints:
    """Of a design with the longest lags, the columns of one with fewer."""
    return np.concatenate([np.arange(lags), longest + np.arange(others)])


def rows_within(spans: Spans) -> Ints:
    """All rows of the spans, end to end."""
    return np.concatenate([np.arange(first, end, dtype=np.int64) for first, end in spans])


def every(rows: Ints) -> Ints:
    """At most `MOST_ROWS`, evenly chosen."""
    return rows[:: max(-(-len(rows) // MOST_ROWS), 1)]


def _truth(series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> Floats:
    """What comes true of the rows that `every` takes: (rows, horizons, targets), horizon by horizon to stay small."""
    places = every(np.arange(rows_of(spans)))
    return np.stack([ahead(series, targets, (horizon,), spans)[places, 0] for horizon in horizons], axis=1)


def _known_everywhere(truth: Floats) -> bool:
    return bool((~np.isnan(truth)).any(axis=0).all())


def _blocks(rows: Ints, truth: npt.NDArray[Number]) -> Iterator[tuple[Ints, npt.NDArray[Number]]]:
    for low in range(0, len(rows), BLOCK):
        yield rows[low : low + BLOCK], truth[low : low + BLOCK]


def _softmax(scores: Doubles) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
