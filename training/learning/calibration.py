"""Fits what the monitors know of a series before it is served: their buffers, from replaying the network over known rows.

The network is replayed with its state carried, as in serving. The alarm is fitted on the training and the validation part
together, because the tails that it judges by need many rows; only the usual error of a forecast is that of the validation
part, since a network is better on what it has learned from. The intervals are fitted on the validation part alone, for
the same reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.data.series import Floats, Series, Spans, rows_of
from training.data.split import Split
from training.network.monitors import LEAST_HALF, LEAST_THRESHOLD, WARM_STEPS, Alarm, Intervals, Reading
from training.network.network import Network, fill_forward

# Timesteps of one call of the network: enough to be quick, few enough to be small.
CHUNK = 4096
# Rows of the training part, and of the validation part, that the alarm is fitted on, the latest: its tails are then made of thousands of values, and
# more would only take time.
MOST_ROWS = 200_000

# A tail begins at the quantile that this share of the timesteps exceeds.
TAIL = 0.02
# A tail needs so many values; with fewer it begins at the largest.
LEAST_VALUES = 8
# Shape of a tail: 0 would be exponential, for which the formula divides by zero; a half has no variance to fit it by.
SHAPES = (0.01, 0.5)
# Scale of a tail that nothing is known of: in standard deviations, or in timesteps that a value stands still or is missing.
LEAST_SCALE = 0.5
# Errors of targets that always go together must not be told apart by rounding: this much is each one's own.
OWN_SHARE = 0.05
# The same for the levels of features, whose correlations are known from more rows.
OWN_LEVEL = 0.01
# An error counts up to this many standard deviations when correlations are measured.
CLIP = 5.0

Doubles = npt.NDArray[np.float64]


def calibrate(network: Network, series: Series, split: Split) -> None:
    """Fit the buffers of all the network's monitors, in place.

    Args:
        network: with its learned weights.
        series: what it learned from.
        split: the held-out part is not looked at.
    """
    network.eval()
    with torch.no_grad():
        for monitor in network.watchers:
            if isinstance(monitor, Intervals):
                _fit_intervals(monitor, network, series, split.validation)
            elif isinstance(monitor, Alarm):
                _fit_alarm(monitor, network, series, split)


@dataclass(frozen=True)
class _Piece:
    """Some consecutive rows: what the network read (rows, features), scaled, and what it said of each row (rows, ...)."""

    fresh: bool  # whether a stream begins with it
    last: Tensor  # (features,) what was seen before the first row
    seen: Tensor
    missing: Tensor
    said: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.seen)


def _replay(network: Network, series: Series, spans: Spans) -> Iterator[_Piece]:
    """The rows of the spans, the state carried through each stretch."""
    for start, stop in series.stretches(spans):
        state = network.fresh_state(1)
        for first in range(start, stop, CHUNK):
            x = torch.from_numpy(series.values[first : min(first + CHUNK, stop)]).unsqueeze(1)
            last, missing = state[0], torch.isnan(x)
            said, state = network.scaled_sequence(x, state)
            seen = fill_forward(network.scaled(x), missing, last)
            yield _Piece(
                first == start, last[0], seen[:, 0], missing[:, 0], {name: part[:, 0] for name, part in said.items()}
            )


def _fit_intervals(monitor: Intervals, network: Network, series: Series, spans: Spans) -> None:
    """The quantile of the scores that belongs to the coverage, and their spread, for each horizon and target."""
    scores: list[list[Tensor]] = [[] for _ in monitor.horizons]
    known = torch.empty(0)
    for piece in _replay(network, series, spans):
        made = torch.stack(monitor.band(piece.said)).reshape(2, -1, *monitor.shape)  # (2, rows, horizons, targets)
        known = made if piece.fresh else torch.cat([known[:, -max(monitor.horizons) :], made], dim=1)
        truth = piece.seen[:, monitor.targets].masked_fill(piece.missing[:, monitor.targets], torch.nan)
        for index, horizon in enumerate(monitor.horizons):
            # The forecasts that come true in these rows; those of the first rows of a stream have not been made.
            centre, half = known[:, : max(known.shape[1] - horizon, 0), index][:, -len(truth) :]
            scores[index].append((truth[len(truth) - len(centre) :] - centre).abs() - half)
    start, scale = monitor.start.view(monitor.shape), monitor.scale.view(monitor.shape)
    for index, parts in enumerate(scores):
        values = torch.cat(parts).numpy()  # (rows, targets)
        for target, column in enumerate(values.T):
            score = column[~np.isnan(column)].astype(np.float64)
            if len(score) == 0:
                continue  # nothing came true: the interval starts as the network has learned it
            middle = np.quantile(score, monitor.coverage)
            start[index, target] = float(middle)
            # Never nil: a series that is forecast perfectly may stop being so.
            scale[index, target] = max(float(np.abs(score - middle).mean()), LEAST_HALF)


def _fit_alarm(monitor: Alarm, network: Network, series: Series, split: Split) -> None:
    """The usual errors and levels, the tails of all parts, and the threshold that belongs to the alarm rate."""
    taught = list(_replay(network, series, _latest(split.train, MOST_ROWS)))
    chosen = list(_replay(network, series, _latest(split.validation, MOST_ROWS)))
    pieces = [*taught, *chosen]
    errors = np.concatenate([_errors(monitor, piece) for piece in chosen])
    bias, spread = _mean(errors), _spread(errors)
    weights, mean = _level(monitor, pieces, chosen)
    monitor.mix.copy_(_float32(_block(np.diag(1.0 / spread), weights)))
    monitor.offset.copy_(_float32(np.concatenate([-bias / spread, -mean])))
    own = _own([(_errors(monitor, piece) - bias) / spread for piece in pieces])
    monitor.own.copy_(_float32(own))
    parts = _watch(monitor, pieces)  # (rows, 5 * targets)
    monitor.tail.copy_(_float32(np.array([_tail(column) for column in parts.T]).T))
    evidence = monitor.evidence(torch.from_numpy(parts)).numpy()
    start = np.quantile(evidence.astype(np.float64), 1.0 - monitor.alarm_rate)
    monitor.start.fill_(max(float(start), LEAST_THRESHOLD))


def _block(first: Doubles, second: Doubles) -> Doubles:
    """Two matrices, one after the other along the diagonal."""
    (rows, columns), (more, others) = first.shape, second.shape
    return np.block([[first, np.zeros((rows, others))], [np.zeros((more, columns)), second]])


def _latest(spans: Spans, most: int) -> Spans:
    """The last rows of the spans, so many of them."""
    kept: list[tuple[int, int]] = []
    for first, end in reversed(spans):
        left = most - rows_of(tuple(kept))
        if left > 0:
            kept.append((max(first, end - left), end))
    return tuple(reversed(kept))


def _errors(monitor: Alarm, piece: _Piece) -> Doubles:
    """Of the one-step forecasts: (rows - 1, targets), NaN where the value is missing."""
    truth = piece.seen[1:, monitor.targets].masked_fill(piece.missing[1:, monitor.targets], torch.nan)
    errors: Doubles = (truth - piece.said["forecast"][:-1, monitor.next]).double().numpy()
    return errors


def _own(errors: Sequence[Doubles]) -> Doubles:
    """(targets, targets): errors times this are what each target's error has that the others do not explain, in its units.

    From the inverse P of the errors' covariance: P e / sqrt(diag P) has variance 1, and is e where nothing is correlated.
    """
    known = np.clip(np.nan_to_num(np.concatenate(errors)), -CLIP, CLIP)
    covariance = known.T @ known / max(len(known), 1)
    inverse = _inverse(covariance + np.diag(OWN_SHARE * np.diag(covariance) + 1e-6))
    return np.asarray(inverse / np.sqrt(np.diag(inverse)))


def _level(monitor: Alarm, pieces: Sequence[_Piece], chosen: Sequence[_Piece]) -> tuple[Doubles, Doubles]:
    """The regression of each target on all other features (targets, features), and the mean of what it leaves (targets,).

    In standard deviations of what it leaves in the validation part.
    """
    seen = np.concatenate([piece.seen.numpy() for piece in pieces]).astype(np.float64)
    centred = seen - seen.mean(axis=0)
    inverse = _inverse(centred.T @ centred / len(seen) + OWN_LEVEL * np.eye(seen.shape[1]))
    weights = (inverse / np.diag(inverse))[:, monitor.targets.numpy()]  # (features, targets)
    level = np.concatenate([piece.seen.numpy() for piece in chosen]).astype(np.float64) @ weights
    spread = _spread(level)
    return (weights / spread).T, _mean(level) / spread


def _watch(monitor: Alarm, pieces: Sequence[_Piece]) -> Floats:
    """All parts (rows, 5 * targets) of the timesteps that are not cold, all pieces side by side as fresh streams."""
    lanes, longest = len(pieces), max(len(piece) for piece in pieces)
    features, following = pieces[0].seen.shape[1], pieces[0].said["forecast"].shape[1:]
    seen = torch.zeros(longest, lanes, features)
    missing = torch.ones(longest, lanes, features, dtype=torch.bool)
    forecast = torch.zeros(longest, lanes, *following)
    counts = torch.zeros(longest, lanes, dtype=torch.bool)
    for lane, piece in enumerate(pieces):
        seen[: len(piece), lane], missing[: len(piece), lane] = piece.seen, piece.missing
        forecast[: len(piece), lane] = piece.said["forecast"]
        counts[min(int(WARM_STEPS), len(piece) // 2) : len(piece), lane] = True
    last = torch.stack([piece.last for piece in pieces])
    state = monitor.fresh_state(lanes)
    monitor.start.fill_(torch.inf)  # no alarm
    rows: list[Tensor] = []
    for step in range(longest):
        now = Reading(seen[step], last, missing[step])
        look = monitor.look(now, state)
        _, state = monitor.judge(look, {"forecast": forecast[step]})
        rows.append(look.parts[counts[step]])
        last = seen[step]
    parts: Floats = torch.cat(rows).numpy()
    return parts


def _tail(values: Floats) -> tuple[float, float, float]:
    """Factor and summand within the logarithm of a part, and the factor before it, see `Alarm.evidence`.

    A generalised Pareto distribution by its moments (Hosking and Wallis, Technometrics 29, 1987). Shape k and scale s:
    -log of the tail is log(1 + k / s * excess) / k.
    """
    begin = float(np.quantile(values, 1.0 - TAIL))
    excess = values[values > begin].astype(np.float64) - begin
    shape, scale = SHAPES[0], 0.0
    if len(excess) >= LEAST_VALUES:
        mean, variance = float(excess.mean()), float(excess.var())
        shape = min(max(0.5 * (1.0 - mean**2 / max(variance, 1e-12)), SHAPES[0]), SHAPES[1])
        scale = mean * (1.0 - shape)
    else:
        begin = float(values.max())
    scale = scale if scale > 0 else LEAST_SCALE
    return shape / scale, 1.0 - begin * shape / scale, 1.0 / shape


def _inverse(matrix: Doubles) -> Doubles:
    return np.asarray(np.linalg.inv(matrix), np.float64)


def _mean(values: Doubles) -> Doubles:
    """By column, of what is known; 0 where nothing is."""
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def _spread(values: Doubles) -> Doubles:
    """The standard deviation by column, of what is known; 1 where it is nil, so that nothing is divided by zero."""
    known = ~np.isnan(values)
    square = np.where(known, np.square(values - _mean(values)), 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.asarray(np.where(square > 1e-12, np.sqrt(square), 1.0))


def _float32(values: Doubles) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
