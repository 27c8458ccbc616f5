"""Least squares on windows of a series: the inputs, and the normal equations with a penalty, solved for many penalties at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from tidegate.training.data.series import Floats, Ints, Series, Spans, forward_fill
from tidegate.training.judging.metrics import Doubles

# Steps of about a factor of three: on series that drift, steps of ten cost a near forecast a quarter of a percent, at times two.
# In units of the mean square of a scaled column, which is about 1. The largest leaves little but a constant, the median of
# the validation part. That is best for a target that no feature predicts.
PENALTIES = (1e-6, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 100.0)
# Enough rows for a few hundred weights. Of a longer part every second row is taken, or every third, and so on.
MAX_ROWS = 100_000
# Rows of a design matrix at a time: 40 MB for 300 columns.
BLOCK = 16_384

Number = TypeVar("Number", np.float32, np.int64)


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS in one thread: at a few hundred columns a second one costs seven times the processor time, and saves little."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


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

    def centred(self, rows: Ints, target: int, lags: int, features: Sequence[int]) -> Doubles:
        """(rows, lags - 1 + features): what the target was above its present value, the latest first, then these features."""
        now = self.values[rows, target].astype(np.float64)[:, None]
        own = self.windows(rows, [target], lags, ())[:, 1:] - now
        return np.concatenate([own, self.values[rows][:, list(features)]], axis=1, dtype=np.float64)


@dataclass(frozen=True)
class NormalEquations:
    """The moments of the design x (columns) and the truth y (outputs) that the normal equations need."""

    x: Doubles  # (columns,) mean
    y: Doubles  # (outputs,) mean
    xx: Doubles  # (columns, columns) covariance
    xy: Doubles  # (columns, outputs) covariance

    @classmethod
    def over(cls, blocks: Iterator[tuple[Doubles, npt.NDArray[np.floating]]]) -> "NormalEquations":
        """The moments of blocks of x (rows, columns) and y (rows, outputs). Columns are about 1, so sums lose no digits."""
        count, x, y, xx, xy = 0, np.zeros(()), np.zeros(()), np.zeros(()), np.zeros(())
        for design, truth in blocks:
            count += len(design)
            x, y = x + design.sum(axis=0), y + truth.sum(axis=0)
            xx, xy = xx + design.T @ design, xy + design.T @ truth
        x, y = x / count, y / count
        return cls(x, y, xx / count - np.outer(x, x), xy / count - np.outer(x, y))

    def less(self, column: int) -> "NormalEquations":
        """The moments with the truth less one column of the design."""
        return NormalEquations(self.x, self.y - self.x[column], self.xx, self.xy - self.xx[:, [column]])

    def through_zero(self) -> "NormalEquations":
        """The moments of a line without an intercept."""
        xx, xy = self.xx + np.outer(self.x, self.x), self.xy + np.outer(self.x, self.y)
        return NormalEquations(np.zeros_like(self.x), np.zeros_like(self.y), xx, xy)

    def solve(self, columns: Ints) -> tuple[Doubles, Doubles]:
        """Weights (columns, shrinkages, outputs) and intercepts (shrinkages, outputs) of the line over some columns."""
        values, vectors = np.linalg.eigh(self.xx[np.ix_(columns, columns)])
        turned = vectors.T @ self.xy[columns]  # (columns, outputs)
        # A constant column has an eigenvalue of zero, which rounding may make negative.
        shrunk = np.maximum(values, 0.0)[:, None] + np.asarray(PENALTIES)  # (columns, shrinkages)
        weights = np.tensordot(vectors, turned[:, None, :] / shrunk[..., None], 1)
        return weights, self.y - np.tensordot(self.x[columns], weights, 1)


def linear_inputs(series: Series, mean: Floats, std: Floats) -> Inputs:
    """The series as input of the linear models; `mean` and `std` (features,) are those of the training part."""
    begins = np.zeros(len(series), np.int64)
    for first, end in series.segments():
        begins[first:end] = first
    filled = (series.values - mean) / std
    for first, end in series.spans:
        filled[first:end] = forward_fill(filled[first:end])
    return Inputs(np.nan_to_num(filled, copy=False), begins)


def row_indices(spans: Spans) -> Ints:
    """The indices of all rows of the spans."""
    return np.concatenate([np.arange(first, end, dtype=np.int64) for first, end in spans])


def subsample(rows: Ints) -> Ints:
    """At most `MAX_ROWS`, evenly chosen."""
    return rows[:: max(-(-len(rows) // MAX_ROWS), 1)]


def blocks(rows: Ints, truth: npt.NDArray[Number]) -> Iterator[tuple[Ints, npt.NDArray[Number]]]:
    """The rows and their true values, block by block."""
    for low in range(0, len(rows), BLOCK):
        yield rows[low : low + BLOCK], truth[low : low + BLOCK]
