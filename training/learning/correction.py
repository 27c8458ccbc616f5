"""How much of its correction a network keeps beside the linear link: by the validation part.

A network that has learned its training part well may still add nothing to the regression on later rows, at some horizons or
at all. There the correction is taken back, in the graph itself.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tidegate.training.data.series import Floats, Series, Spans, future_values
from tidegate.training.data.split import Split
from tidegate.training.network.heads import ForecastHead
from tidegate.training.network.network import Network

Doubles = npt.NDArray[np.float64]

# The shares of the correction to choose from.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# A share is kept where its gain is above two standard errors, over so many blocks of the validation part. Errors of
# neighbouring rows are alike, so that rows would count for too much.
BLOCKS = 12
DOUBT = 2.0
# The latest rows are enough to choose from. They are walked one stream after another.
MAX_ROWS = 50_000
# Rows before the validation part that warm up the state.
WARM_UP_ROWS = 1024
CHUNK = 1024


@dataclass(frozen=True)
class Correction:
    """What the network adds to the linear link on the validation part.

    Attributes:
        kept: (horizons, targets), the share of the correction that is left.
        linear: (horizons, targets), the mean absolute error of the linear link alone, in scaled units.
        corrected: (horizons, targets), that of the forecast as it is now.
    """

    kept: Doubles
    linear: Doubles
    corrected: Doubles

    @property
    def gain(self) -> float:
        """By how much the error falls, as a share of that of the linear link, on the mean over horizons and targets."""
        return float(1.0 - np.mean(self.corrected / np.maximum(self.linear, 1e-12)))


def settle(network: Network, series: Series, split: Split) -> Correction | None:
    """Set the share of the correction, in place; None without a linear link.

    Args:
        network: with its trained weights.
        series: that it was trained on.
        split: of the series; the held-out part is not read.
    """
    head = network.head
    if not (isinstance(head, ForecastHead) and head.linear):
        return None
    network.eval()
    spans = _latest(split.validation)
    targets = list(head.task.targets)
    mean, std = (part[targets] for part in (network.mean.numpy(), network.std.numpy()))
    truth = (future_values(series, targets, head.task.horizons, spans) - mean) / std
    with torch.no_grad():
        full = _replay(network, series, spans)
        head.kept.zero_()
        linear = _replay(network, series, spans)
        kept = np.zeros(head.shape)
        for place in np.ndindex(head.shape):
            column = (slice(None), *place)
            kept[place] = _share(truth[column], linear[column], full[column])
        head.kept.copy_(torch.from_numpy(kept.astype(np.float32)))
        forecast = linear + kept * (full - linear)
    return Correction(kept, _mean_error(truth, linear), _mean_error(truth, forecast))


def _share(truth: Floats, linear: Floats, full: Floats) -> float:
    """The share of the correction with the least error, of those that are better than none in most of the part."""
    known = ~np.isnan(truth)
    error, change = (truth - linear)[known], (full - linear)[known]
    blocks = [block for block in np.array_split(np.arange(len(error)), BLOCKS) if len(block)]
    best, least = 0.0, np.inf
    alone = np.array([np.abs(error[block]).mean() for block in blocks])
    for share in SHARES[1:]:
        own = np.array([np.abs(error[block] - share * change[block]).mean() for block in blocks])
        gain = alone - own
        doubt = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
        if gain.mean() > DOUBT * doubt and own.mean() < least:
            best, least = share, float(own.mean())
    return best


def _mean_error(truth: Floats, forecast: Floats) -> Doubles:
    return np.nan_to_num(np.nanmean(np.abs(truth - forecast), axis=0, dtype=np.float64))


def _latest(spans: Spans) -> Spans:
    """The last rows of each span, so that together they are not too many."""
    most = max(MAX_ROWS // len(spans), 1)
    return tuple((max(first, end - most), end) for first, end in spans)


def _replay(network: Network, series: Series, spans: Spans) -> Floats:
    """The forecasts for the rows of the spans, in scaled units, each segment after the rows before it."""
    begins = np.array(sorted(first for first, _ in series.segments()))
    forecasts = []
    for first, end in series.segments(spans):
        begin = max(int(begins[np.searchsorted(begins, first, side="right") - 1]), first - WARM_UP_ROWS)
        state = network.initial_state(1)
        if begin > 0:
            past = max(int(begins[np.searchsorted(begins, begin, side="right") - 1]), begin - network.memory)
            if past < begin:
                parts = dict(zip(network.state_names, state, strict=True))
                state = tuple((parts | network.warm(torch.from_numpy(series.values[past:begin]))).values())
        for low in range(begin, end, CHUNK):
            x = torch.from_numpy(series.values[low : min(low + CHUNK, end)]).unsqueeze(1)
            outputs, state = network.scaled_sequence(x, state)
            kept = slice(max(first - low, 0), None)
            forecasts.append(outputs["forecast"][kept, 0].numpy())
    return np.concatenate(forecasts)
