"""How much of its correction a network keeps beside the linear link: by the validation part.

A network that has learned its training part well may still add nothing to the regression on later rows, at some horizons or
at all. There the correction is taken back, in the graph itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tidegate.training.data.future import FutureValues
from tidegate.training.data.series import Ints, Series, Spans
from tidegate.training.data.split import Split
from tidegate.training.judging.least_squares import row_indices
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
    with torch.no_grad():
        sums = _Sums.over(network, head, series, _latest(split.validation))
        kept = sums.shares()
        head.kept.copy_(torch.from_numpy(kept.astype(np.float32)))
    return Correction(kept, sums.error(np.zeros(head.shape)), sums.error(kept))


@dataclass(frozen=True)
class _Sums:
    """The absolute errors with each share of the correction, summed over blocks of the rows with a true value.

    All forecasts at once are rows times horizons times targets. Sums are as many as horizons and targets.

    Attributes:
        absolute: (blocks, shares, horizons, targets), in scaled units.
        count: (blocks, horizons, targets), of the rows.
    """

    absolute: Doubles
    count: Doubles

    @classmethod
    def over(cls, network: Network, head: ForecastHead, series: Series, spans: Spans) -> "_Sums":
        """Of the rows of the spans; it leaves the shares of the head at zero."""
        targets = list(head.task.targets)
        mean, std = (part[targets].astype(np.float64) for part in (network.mean.numpy(), network.std.numpy()))
        future = FutureValues(series, targets, head.task.horizons, spans)
        known = sum((~np.isnan(future.at(rows))).sum(axis=0) for rows in _pieces(row_indices(spans)))
        seen = np.zeros(head.shape, np.int64)
        absolute, count = np.zeros((BLOCKS, len(SHARES), *head.shape)), np.zeros((BLOCKS, *head.shape))
        for rows, linear, full in _replay(network, head, series, spans):
            error = (future.at(rows) - mean) / std - linear
            counts = ~np.isnan(error)
            change, error = full - linear, np.where(counts, error, 0.0)
            block = _block(seen + counts.cumsum(axis=0) - 1, known)
            seen += counts.sum(axis=0)
            for number in np.unique(block[counts]):
                own = counts & (block == number)
                count[number] += own.sum(axis=0)
                for place, share in enumerate(SHARES):
                    absolute[number, place] += (np.abs(error - share * change) * own).sum(axis=0)
        return cls(absolute, count)

    def shares(self) -> Doubles:
        """(horizons, targets): the share with the least error, of those that are better than none in most of the part."""
        kept = np.zeros(self.count.shape[1:])
        for place in np.ndindex(kept.shape):
            count = self.count[:, *place]
            means = self.absolute[count > 0][:, :, *place] / count[count > 0][:, None]  # (blocks, shares)
            least = np.inf
            for share, own in zip(SHARES[1:], means.T[1:], strict=True):
                gain = means[:, 0] - own
                doubt = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
                if len(gain) and gain.mean() > DOUBT * doubt and own.mean() < least:
                    kept[place], least = share, float(own.mean())
        return kept

    def error(self, kept: Doubles) -> Doubles:
        """(horizons, targets): the mean absolute error with these shares; 0 without a true value."""
        place = np.searchsorted(SHARES, kept)[None]
        total = np.take_along_axis(self.absolute.sum(axis=0), place, axis=0)[0]
        mean: Doubles = total / np.maximum(self.count.sum(axis=0), 1.0)
        return mean


def _block(order: Ints, known: Ints) -> Ints:
    """The block of each row by its order among those with a true value, as `np.array_split` cuts them; sizes differ by one."""
    size, longer = np.divmod(known, BLOCKS)
    edge = longer * (size + 1)
    block: Ints = np.where(order < edge, order // (size + 1), longer + (order - edge) // np.maximum(size, 1))
    return block


def _pieces(rows: Ints) -> Iterator[Ints]:
    for low in range(0, len(rows), CHUNK):
        yield rows[low : low + CHUNK]


def _latest(spans: Spans) -> Spans:
    """The last rows of each span, so that together they are not too many."""
    most = max(MAX_ROWS // len(spans), 1)
    return tuple((max(first, end - most), end) for first, end in spans)


def _replay(
    network: Network, head: ForecastHead, series: Series, spans: Spans
) -> Iterator[tuple[Ints, Doubles, Doubles]]:
    """Rows of the spans, and their forecasts in scaled units without and with the correction, each segment after the rows before it."""
    begins = np.array(sorted(first for first, _ in series.segments()))
    for first, end in series.segments(spans):
        begin = max(int(begins[np.searchsorted(begins, first, side="right") - 1]), first - WARM_UP_ROWS)
        state = network.initial_state(1)
        if begin > 0:
            past = max(int(begins[np.searchsorted(begins, begin, side="right") - 1]), begin - network.memory)
            if past < begin:
                parts = dict(zip(network.state_names, state, strict=True))
                state = tuple((parts | network.warm(torch.from_numpy(series.values[past:begin]))).values())
        for low in range(begin, end, CHUNK):
            high = min(low + CHUNK, end)
            x = torch.from_numpy(series.values[low:high]).unsqueeze(1)
            forecasts = []
            for share in (1.0, 0.0):  # the state does not depend on it
                head.kept.fill_(share)
                outputs, after = network.scaled_sequence(x, state)
                forecasts.append(outputs["forecast"][max(first - low, 0) :, 0].numpy().astype(np.float64))
            state = after
            if len(forecasts[0]):
                yield np.arange(max(low, first), high), forecasts[1], forecasts[0]
