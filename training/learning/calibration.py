"""Fits the buffers of the monitors before the export, from a replay of the network over known rows.

The replay carries the state, as in serving. The alarm is fitted on the training and the validation part together, because
its tails need many rows. Only the usual error of a forecast comes from the validation part alone: a network is better on
the rows that it was trained on. The intervals are fitted on the validation part alone, for the same reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tidegate.training.data.series import Floats, Series, Spans, count_rows
from tidegate.training.data.split import Split
from tidegate.training.network.monitors import (
    MIN_HALF_WIDTH,
    MIN_THRESHOLD,
    WARM_UP_STEPS,
    Alarm,
    Intervals,
    Observation,
)
from tidegate.training.network.network import Network, fill_forward
from tidegate.training.network.quantiles import Quantiles

# Timesteps of one call of the network: enough to be fast, few enough to be small.
CHUNK = 4096
# The alarm is fitted on the latest rows of the training part and of the validation part, so many of each. The tails then
# have thousands of values; more would only take time.
MAX_ROWS = 200_000

# The quantiles are fitted on the latest rows of the validation part, step by step.
QUANTILE_ROWS = 4096

# A tail begins at the quantile that this share of the timesteps exceed.
TAIL = 0.02
# A tail needs so many values. With fewer it begins at the largest.
MIN_TAIL_VALUES = 8
# The range of the shape of a tail. At 0 it is exponential and the formula divides by zero; from a half on it has no variance.
SHAPES = (0.01, 0.5)
# The scale of a tail without data: in standard deviations, or in timesteps of a flatline or a missing run.
MIN_TAIL_SCALE = 0.5
# Regularises the covariance of the errors: rounding must not separate targets that always move together.
ERROR_RIDGE = 0.05
# The same for the levels of features. It is smaller, because more rows determine their correlations.
LEVEL_RIDGE = 0.01
# An error counts for the correlations up to this many standard deviations.
CLIP = 5.0

Doubles = npt.NDArray[np.float64]


def calibrate(network: Network, series: Series, split: Split) -> None:
    """Fit the buffers of all monitors of the network, in place.

    Args:
        network: with its trained weights.
        series: that it was trained on.
        split: of the series; the held-out part is not read.
    """
    network.eval()
    with torch.no_grad():
        for monitor in network.monitors:
            if isinstance(monitor, Intervals):
                _fit_intervals(monitor, network, series, split.validation)
            elif isinstance(monitor, Quantiles):
                _fit_quantiles(monitor, network, series, split.validation)
            elif isinstance(monitor, Alarm):
                _fit_alarm(monitor, network, series, split)


@dataclass(frozen=True)
class _Chunk:
    """Consecutive rows of a replay: the filled values (rows, features) and the head's outputs (rows, ...), both scaled."""

    new_stream: bool  # whether a stream begins with the first row
    previous: Tensor  # (features,) the values before the first row
    values: Tensor
    missing: Tensor
    head_outputs: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.values)


def _replay(network: Network, series: Series, spans: Spans) -> Iterator[_Chunk]:
    """Replay the rows of the spans, with the state carried through each segment."""
    for start, stop in series.segments(spans):
        state = network.initial_state(1)
        for first in range(start, stop, CHUNK):
            x = torch.from_numpy(series.values[first : min(first + CHUNK, stop)]).unsqueeze(1)
            previous, missing = state[0], torch.isnan(x)
            head_outputs, state = network.scaled_sequence(x, state)
            values = fill_forward(network.scaled(x), missing, previous)
            yield _Chunk(
                first == start,
                previous[0],
                values[:, 0],
                missing[:, 0],
                {name: part[:, 0] for name, part in head_outputs.items()},
            )


def _fit_intervals(monitor: Intervals, network: Network, series: Series, spans: Spans) -> None:
    """Fit, for each horizon and target, the quantile of the scores at the coverage, and their spread."""
    scores: list[list[Tensor]] = [[] for _ in monitor.horizons]
    known = torch.empty(0)
    for chunk in _replay(network, series, spans):
        bands = torch.stack(monitor.band(chunk.head_outputs)).reshape(
            2, -1, *monitor.shape
        )  # (2, rows, horizons, targets)
        known = bands if chunk.new_stream else torch.cat([known[:, -max(monitor.horizons) :], bands], dim=1)
        truth = chunk.values[:, monitor.targets].masked_fill(chunk.missing[:, monitor.targets], torch.nan)
        for index, horizon in enumerate(monitor.horizons):
            # The forecasts for these rows. There are none for the first rows of a stream.
            centre, half = known[:, : max(known.shape[1] - horizon, 0), index][:, -len(truth) :]
            scores[index].append((truth[len(truth) - len(centre) :] - centre).abs() - half)
    start, scale = monitor.start.view(monitor.shape), monitor.scale.view(monitor.shape)
    for index, parts in enumerate(scores):
        values = torch.cat(parts).numpy()  # (rows, targets)
        for target, column in enumerate(values.T):
            score = column[~np.isnan(column)].astype(np.float64)
            if len(score) == 0:
                continue  # no forecast can be scored: the interval starts as the network predicts it
            middle = np.quantile(score, monitor.coverage)
            start[index, target] = float(middle)
            # Never zero: a series with perfect forecasts may change.
            scale[index, target] = max(float(np.abs(score - middle).mean()), MIN_HALF_WIDTH)


def _fit_quantiles(monitor: Quantiles, network: Network, series: Series, spans: Spans) -> None:
    """Fit the factors of a new stream: the mean of those that the monitor itself comes to on the latest rows.

    None is below 1: a calm validation part says little about the next months.
    """
    monitor.start.fill_(1.0)
    total, count = torch.zeros_like(monitor.start), 0
    for chunk in _replay(network, series, _latest(spans, QUANTILE_ROWS)):
        state = monitor.initial_state(1)
        for row, values in enumerate(chunk.values):
            observation = Observation(values[None], values[None], chunk.missing[row][None])
            head_outputs = {name: part[row][None] for name, part in chunk.head_outputs.items()}
            _, state = monitor.step(observation, head_outputs, state)
            if row >= len(chunk) // 4:  # it begins at 1, and moves slowly at long horizons
                total += state[0][0, -monitor.start.numel() :].view(monitor.shape)
                count += 1
    monitor.start += (total / max(count, 1)).clamp(min=0.0)


def _fit_alarm(monitor: Alarm, network: Network, series: Series, split: Split) -> None:
    """Fit the usual errors and levels, the tails of all statistics, and the threshold for the alarm rate."""
    training = list(_replay(network, series, _latest(split.train, MAX_ROWS)))
    validation = list(_replay(network, series, _latest(split.validation, MAX_ROWS)))
    chunks = [*training, *validation]
    errors = np.concatenate([_errors(monitor, chunk) for chunk in validation])
    bias, spread = _mean(errors), _spread(errors)
    weights, mean = _level_regression(monitor, chunks, validation)
    monitor.mix.copy_(_float32(_block_diagonal(np.diag(1.0 / spread), weights)))
    monitor.offset.copy_(_float32(np.concatenate([-bias / spread, -mean])))
    own = _decorrelation([(_errors(monitor, chunk) - bias) / spread for chunk in chunks])
    monitor.own.copy_(_float32(own))
    parts = _alarm_statistics(monitor, chunks)  # (rows, 5 * targets)
    monitor.tail.copy_(_float32(np.array([_fit_tail(column) for column in parts.T]).T))
    evidence = monitor.evidence(torch.from_numpy(parts)).numpy()
    start = np.quantile(evidence.astype(np.float64), 1.0 - monitor.alarm_rate)
    monitor.start.fill_(max(float(start), MIN_THRESHOLD))


def _block_diagonal(first: Doubles, second: Doubles) -> Doubles:
    """The block-diagonal matrix of two matrices."""
    (rows, columns), (more, others) = first.shape, second.shape
    return np.block([[first, np.zeros((rows, others))], [np.zeros((more, columns)), second]])


def _latest(spans: Spans, most: int) -> Spans:
    """The last `most` rows of the spans."""
    kept: list[tuple[int, int]] = []
    for first, end in reversed(spans):
        left = most - count_rows(tuple(kept))
        if left > 0:
            kept.append((max(first, end - left), end))
    return tuple(reversed(kept))


def _errors(monitor: Alarm, chunk: _Chunk) -> Doubles:
    """The errors of the one-step forecasts: (rows - 1, targets), NaN where the value is missing."""
    truth = chunk.values[1:, monitor.targets].masked_fill(chunk.missing[1:, monitor.targets], torch.nan)
    errors: Doubles = (truth - chunk.head_outputs["forecast"][:-1, monitor.next]).double().numpy()
    return errors


def _decorrelation(errors: Sequence[Doubles]) -> Doubles:
    """(targets, targets): errors times this are the part of each error that the others do not explain, in its units.

    From the inverse P of the covariance of the errors: P e / sqrt(diag P) has variance 1, and is e without correlations.
    """
    known = np.clip(np.nan_to_num(np.concatenate(errors)), -CLIP, CLIP)
    covariance = known.T @ known / max(len(known), 1)
    inverse = _inverse(covariance + np.diag(ERROR_RIDGE * np.diag(covariance) + 1e-6))
    return np.asarray(inverse / np.sqrt(np.diag(inverse)))


def _level_regression(
    monitor: Alarm, chunks: Sequence[_Chunk], validation: Sequence[_Chunk]
) -> tuple[Doubles, Doubles]:
    """The regression of each target on all other features (targets, features), and the mean of its residuals (targets,).

    In standard deviations of the residuals in the validation part.
    """
    values = np.concatenate([chunk.values.numpy() for chunk in chunks]).astype(np.float64)
    centred = values - values.mean(axis=0)
    inverse = _inverse(centred.T @ centred / len(values) + LEVEL_RIDGE * np.eye(values.shape[1]))
    weights = (inverse / np.diag(inverse))[:, monitor.targets.numpy()]  # (features, targets)
    level = np.concatenate([chunk.values.numpy() for chunk in validation]).astype(np.float64) @ weights
    spread = _spread(level)
    return (weights / spread).T, _mean(level) / spread


def _alarm_statistics(monitor: Alarm, chunks: Sequence[_Chunk]) -> Floats:
    """The statistics (rows, 5 * targets) of all warm timesteps, with the pieces side by side as new streams."""
    batch, longest = len(chunks), max(len(chunk) for chunk in chunks)
    features, forecast_shape = chunks[0].values.shape[1], chunks[0].head_outputs["forecast"].shape[1:]
    values = torch.zeros(longest, batch, features)
    missing = torch.ones(longest, batch, features, dtype=torch.bool)
    forecast = torch.zeros(longest, batch, *forecast_shape)
    counts = torch.zeros(longest, batch, dtype=torch.bool)
    for element, chunk in enumerate(chunks):
        values[: len(chunk), element], missing[: len(chunk), element] = chunk.values, chunk.missing
        forecast[: len(chunk), element] = chunk.head_outputs["forecast"]
        counts[min(int(WARM_UP_STEPS), len(chunk) // 2) : len(chunk), element] = True
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
    begin = float(np.quantile(values, 1.0 - TAIL))
    excess = values[values > begin].astype(np.float64) - begin
    shape, scale = SHAPES[0], 0.0
    if len(excess) >= MIN_TAIL_VALUES:
        mean, variance = float(excess.mean()), float(excess.var())
        shape = min(max(0.5 * (1.0 - mean**2 / max(variance, 1e-12)), SHAPES[0]), SHAPES[1])
        scale = mean * (1.0 - shape)
    else:
        begin = float(values.max())
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
