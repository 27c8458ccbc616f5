"""Fits the buffers of an alarm.

It is fitted on the training and the validation part together, because its tails need many rows. Only the usual error of a
forecast comes from the validation part alone: a network is better on the rows that it was trained on. The errors of the
training part are stretched to that size.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tidegate.training.data.series import Floats, Series, latest_rows
from tidegate.training.data.split import Split
from tidegate.training.learning.chunks import Chunk, replay_chunks
from tidegate.training.network.alarm import MIN_THRESHOLD, Alarm
from tidegate.training.network.monitors import Observation
from tidegate.training.network.network import Network

# The alarm is fitted on the latest rows of the training part and of the validation part, so many of each. The tails then
# have thousands of values; more would only take time.
MAX_ROWS = 200_000

# A tail begins at the quantile that this share of the timesteps exceed, or so many timesteps if those are more, but at
# most the largest share. The tail of few values is a guess from the shape of the rest.
TAIL = 0.02
TAIL_VALUES = 40
MAX_TAIL = 0.15
# The range of the shape of a tail. At 0 it is exponential and the formula divides by zero; from a half on it has no variance.
SHAPES = (0.01, 0.5)
# The scale of a tail without data: in standard deviations, or in timesteps of a flatline or a missing run.
MIN_TAIL_SCALE = 0.5
# The threshold is the quantile of so many timesteps above it, extended to the alarm rate: the unit of evidence is made so
# that its tail is exponential.
THRESHOLD_VALUES = 20
# Regularises the covariance of the errors: rounding must not separate targets that always move together.
ERROR_RIDGE = 0.05
# The same for the levels of features. It is smaller, because more rows determine their correlations.
LEVEL_RIDGE = 0.01
# An error counts for the correlations up to this many standard deviations.
CLIP = 5.0
# The errors of the training part are stretched by at most this factor.
MAX_STRETCH = 4.0

Doubles = npt.NDArray[np.float64]


def fit_alarm(monitor: Alarm, network: Network, series: Series, split: Split) -> None:
    """Fit the usual errors and levels, the tails of all statistics, and the threshold for the alarm rate, in place.

    Args:
        monitor: of the network.
        network: with its trained weights, in evaluation mode.
        series: that it was trained on.
        split: of the series; the held-out part is not read.
    """
    training = list(replay_chunks(network, series, latest_rows(split.train, MAX_ROWS)))
    validation = list(replay_chunks(network, series, latest_rows(split.validation, MAX_ROWS)))
    errors = np.concatenate([_errors(monitor, chunk) for chunk in validation])
    bias, spread = _mean(errors), _spread(errors)
    training = _stretched(monitor, training, bias, spread)
    chunks = [*training, *validation]
    weights, mean = _level_regression(monitor, chunks, validation)
    monitor.mix.copy_(_float32(_block_diagonal(np.diag(1.0 / spread), weights)))
    monitor.offset.copy_(_float32(np.concatenate([-bias / spread, -mean])))
    precision = _precision([(_errors(monitor, chunk) - bias) / spread for chunk in chunks])
    monitor.own.copy_(_float32(precision / np.sqrt(np.diag(precision))))
    monitor.white.copy_(_float32(np.asarray(np.linalg.cholesky(precision), np.float64)))
    parts = _alarm_statistics(monitor, chunks)  # (rows, 7 * targets + 2)
    monitor.tail.copy_(_float32(np.array([_fit_tail(column) for column in parts.T]).T))
    evidence = monitor.evidence(torch.from_numpy(parts)).numpy().astype(np.float64)
    monitor.start.fill_(max(_threshold(evidence, monitor.alarm_rate), MIN_THRESHOLD))
    monitor.fitted.fill_(len(evidence))


def _threshold(evidence: Doubles, alarm_rate: float) -> float:
    """The quantile of the evidence that belongs to the alarm rate, at the upper end of what n values above it tell."""
    share = max(alarm_rate, min(THRESHOLD_VALUES / len(evidence), MAX_TAIL))
    # Two standard errors of the logarithm of a share: better too few alarms than too many.
    error = 2.0 / math.sqrt(share * len(evidence))
    return float(np.quantile(evidence, 1.0 - share)) + math.log(share / alarm_rate) + error


def _block_diagonal(first: Doubles, second: Doubles) -> Doubles:
    """The block-diagonal matrix of two matrices."""
    (rows, columns), (more, others) = first.shape, second.shape
    return np.block([[first, np.zeros((rows, others))], [np.zeros((more, columns)), second]])


def _errors(monitor: Alarm, chunk: Chunk) -> Doubles:
    """The errors of the one-step forecasts: (rows - 1, targets), NaN where the value is missing."""
    truth = chunk.values[1:, monitor.targets].masked_fill(chunk.missing[1:, monitor.targets], torch.nan)
    errors: Doubles = (truth - chunk.head_outputs["forecast"][:-1, monitor.next]).double().numpy()
    return errors


def _stretched(monitor: Alarm, chunks: Sequence[Chunk], bias: Doubles, spread: Doubles) -> list[Chunk]:
    """The chunks with forecasts whose errors have this mean, and this standard deviation if theirs is smaller."""
    errors = np.concatenate([_errors(monitor, chunk) for chunk in chunks])
    middle, factor = _mean(errors), np.clip(spread / _spread(errors), 1.0, MAX_STRETCH)
    stretched = []
    for chunk in chunks:
        forecast = chunk.head_outputs["forecast"].clone()
        truth = chunk.values[1:, monitor.targets]
        error = truth - forecast[:-1, monitor.next]
        forecast[:-1, monitor.next] = truth - ((error - _float32(middle)) * _float32(factor) + _float32(bias))
        stretched.append(replace(chunk, head_outputs={"forecast": forecast}))
    return stretched


def _precision(errors: Sequence[Doubles]) -> Doubles:
    """(targets, targets): the inverse P of the covariance of the errors.

    P e / sqrt(diag P) is the part of each error that the others do not explain; it has variance 1, and is e without
    correlations. With the Cholesky factor L of P, L^T e has independent components, and e^T P e is the squared length.
    """
    known = np.clip(np.nan_to_num(np.concatenate(errors)), -CLIP, CLIP)
    covariance = known.T @ known / max(len(known), 1)
    return _inverse(covariance + np.diag(ERROR_RIDGE * np.diag(covariance) + 1e-6))


def _level_regression(monitor: Alarm, chunks: Sequence[Chunk], validation: Sequence[Chunk]) -> tuple[Doubles, Doubles]:
    """The regression of each target on all other features (targets, features), and the mean of its residuals (targets,).

    In standard deviations of the residuals in the validation part. It is fitted on the distances from the running mean,
    which is what the alarm looks at: levels that wander alone would seem to have much in common.
    """
    near = np.concatenate([_from_running_mean(chunk.values, monitor.times.memory) for chunk in chunks])
    covariance = near.T @ near / len(near)
    size = np.diag(covariance) + 1e-6
    inverse = _inverse(covariance + LEVEL_RIDGE * np.diag(size))
    weights = (inverse / np.diag(inverse))[:, monitor.targets.numpy()]  # (features, targets)
    residuals = np.concatenate(
        [_from_running_mean(chunk.values, monitor.times.memory) @ weights for chunk in validation]
    )
    spread = _spread(residuals)
    levels = np.concatenate([chunk.values.numpy() for chunk in validation]).astype(np.float64) @ weights
    return (weights / spread).T, _mean(levels) / spread


def _from_running_mean(values: Tensor, memory: float) -> Doubles:
    """(rows, features) less the exponential mean of the rows before, which is the plain mean at the start."""
    rows = values.numpy().astype(np.float64)
    mean = rows[0].copy()
    near = np.empty_like(rows)
    for place, row in enumerate(rows):
        near[place] = row - mean
        mean += near[place] * max(1.0 / memory, 1.0 / (place + 1.0))
    return near


def _alarm_statistics(monitor: Alarm, chunks: Sequence[Chunk]) -> Floats:
    """The statistics (rows, 7 * targets + 2) of all warm timesteps, with the pieces side by side as new streams."""
    batch, longest = len(chunks), max(len(chunk) for chunk in chunks)
    features, forecast_shape = chunks[0].values.shape[1], chunks[0].head_outputs["forecast"].shape[1:]
    values = torch.zeros(longest, batch, features)
    missing = torch.ones(longest, batch, features, dtype=torch.bool)
    forecast = torch.zeros(longest, batch, *forecast_shape)
    counts = torch.zeros(longest, batch, dtype=torch.bool)
    for element, chunk in enumerate(chunks):
        values[: len(chunk), element], missing[: len(chunk), element] = chunk.values, chunk.missing
        forecast[: len(chunk), element] = chunk.head_outputs["forecast"]
        counts[min(monitor.times.warm_up, len(chunk) // 2) : len(chunk), element] = True
    previous = torch.stack([chunk.previous for chunk in chunks])
    state = monitor.initial_state(batch)
    monitor.start.fill_(torch.inf)  # no alarm
    rows: list[Tensor] = []
    for step in range(longest):
        observation = Observation(values[step], previous, missing[step])
        statistics = monitor.measure(observation, state)
        _, state = monitor.decide(statistics, {"forecast": forecast[step]})
        rows.append(statistics.parts[counts[step]])
        previous = values[step]
    parts: Floats = torch.cat(rows).numpy()
    return parts


def _fit_tail(values: Floats) -> tuple[float, float, float]:
    """Factor and summand within the logarithm of a statistic, and the factor before it, see `Alarm.evidence`.

    A generalised Pareto distribution, fitted by its moments (Hosking and Wallis, Technometrics 29, 1987). With shape k and
    scale s, -log of the tail is log(1 + k / s * excess) / k.
    """
    begin = float(np.quantile(values, 1.0 - min(max(TAIL, TAIL_VALUES / len(values)), MAX_TAIL)))
    excess = values[values > begin].astype(np.float64) - begin
    shape, scale = SHAPES[0], 0.0
    if len(excess):
        mean, variance = float(excess.mean()), float(excess.var())
        # The tail of an exponential distribution whose scale is known from n values has the shape 1 / n.
        # Of values that come in bursts, a burst counts once.
        high = values > begin
        bursts = int((high[1:] & ~high[:-1]).sum() + high[0])
        least = max(SHAPES[0], min(1.0 / bursts, SHAPES[1]))
        shape = min(max(0.5 * (1.0 - mean**2 / max(variance, 1e-12)), least), SHAPES[1])
        scale = mean * (1.0 - shape)
    scale = scale if scale > 0 else MIN_TAIL_SCALE
    return shape / scale, 1.0 - begin * shape / scale, 1.0 / shape


def _inverse(matrix: Doubles) -> Doubles:
    return np.asarray(np.linalg.inv(matrix), np.float64)


def _mean(values: Doubles) -> Doubles:
    """The mean of each column without NaN; 0 where all is NaN."""
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def _spread(values: Doubles) -> Doubles:
    """The standard deviation of each column without NaN; 1 where it is zero, so that it can be a divisor."""
    known = ~np.isnan(values)
    square = np.where(known, np.square(values - _mean(values)), 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.asarray(np.where(square > 1e-12, np.sqrt(square), 1.0))


def _float32(values: Doubles) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
