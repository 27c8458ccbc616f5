"""Fits the buffers of the monitors before the export, from a replay of the network over known rows.

The replay carries the state, as in serving. The intervals are fitted on the validation part alone, because a network is
better on the rows that it was trained on. `alarm_fit` fits the alarm.
"""

import numpy as np
import torch
from torch import Tensor

from tidegate.training.data.series import Series, Spans, count_rows, latest_rows
from tidegate.training.data.split import Split
from tidegate.training.learning.alarm_fit import fit_alarm
from tidegate.training.learning.chunks import replay_chunks
from tidegate.training.network.alarm import Alarm
from tidegate.training.network.monitors import MIN_HALF_WIDTH, Intervals, Observation
from tidegate.training.network.network import Network
from tidegate.training.network.quantiles import Quantiles

# The quantiles are fitted on the latest rows of the validation part, step by step.
QUANTILE_ROWS = 4096
# Scores of an interval in memory at once: 16 MB. That is all horizons of most models.
SCORES_AT_ONCE = 2**22


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
                fit_alarm(monitor, network, series, split)


def _fit_intervals(monitor: Intervals, network: Network, series: Series, spans: Spans) -> None:
    """Fit, for each horizon and target, the quantile of the scores at the coverage, and their spread.

    A quantile needs all scores, so the rows are replayed again for as many horizons as may be in memory at once.
    """
    some = max(SCORES_AT_ONCE // max(count_rows(spans) * monitor.count, 1), 1)
    for first in range(0, len(monitor.horizons), some):
        places = range(first, min(first + some, len(monitor.horizons)))
        _fit_some_intervals(monitor, network, series, spans, places)


def _fit_some_intervals(monitor: Intervals, network: Network, series: Series, spans: Spans, places: range) -> None:
    """The same of the horizons at these places."""
    horizons = [monitor.horizons[place] for place in places]
    scores: list[list[Tensor]] = [[] for _ in horizons]
    known = torch.empty(0)
    for chunk in replay_chunks(network, series, spans):
        bands = torch.stack(monitor.band(chunk.head_outputs)).reshape(2, -1, *monitor.shape)
        bands = bands[:, :, places.start : places.stop]  # (2, rows, horizons, targets)
        known = bands if chunk.new_stream else torch.cat([known[:, -max(horizons) :], bands], dim=1)
        truth = chunk.values[:, monitor.targets].masked_fill(chunk.missing[:, monitor.targets], torch.nan)
        for index, horizon in enumerate(horizons):
            # The forecasts for these rows. There are none for the first rows of a stream.
            centre, half = known[:, : max(known.shape[1] - horizon, 0), index][:, -len(truth) :]
            scores[index].append((truth[len(truth) - len(centre) :] - centre).abs() - half)
    start, scale = monitor.start.view(monitor.shape), monitor.scale.view(monitor.shape)
    for index, parts in zip(places, scores, strict=True):
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
    for chunk in replay_chunks(network, series, latest_rows(spans, QUANTILE_ROWS)):
        state = monitor.initial_state(1)
        for row, values in enumerate(chunk.values):
            observation = Observation(values[None], values[None], chunk.missing[row][None])
            head_outputs = {name: part[row][None] for name, part in chunk.head_outputs.items()}
            _, state = monitor.step(observation, head_outputs, state)
            if row >= len(chunk) // 4:  # it begins at 1, and moves slowly at long horizons
                total += state[0][0, -monitor.start.numel() :].view(monitor.shape)
                count += 1
    monitor.start += (total / max(count, 1)).clamp(min=0.0)
