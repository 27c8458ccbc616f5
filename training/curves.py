"""What a report draws and a card does not hold: arrays from one replay of the held-out part through the exported graph.

Errors are forecast minus truth, in the target's unit, at the time that was forecast. Knows no SVG and no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.evaluate import Graph
from training.series import UNLABELLED, Floats, Ints, Series, Span, Spans, Times, placed

Numbers = npt.NDArray[np.float64]

# Timesteps across the page: enough to see days of ten-minute data, few enough to see single ones.
STRETCH = 432
# A stretch is looked for at this part of its length apart.
STRIDE = 8
BINS = 31  # of a histogram of errors; odd, so that no error has a bar in the middle
TAIL = 0.02  # share of the errors that may lie beyond the outermost bars, which gather them
CONFIDENCE_BINS = 10  # of a reliability diagram


@dataclass(frozen=True)
class Replayed:
    """The rows of the spans laid end to end, and what the graph said at each.

    Attributes:
        times: (rows,).
        values: (rows, features) raw, NaN where missing.
        labels: (rows,) or None.
        stretches: the places [first, end) between which no time gap lies; each was a fresh stream.
        outputs: (rows, ...) by name.
        targets: the columns of `values` that are forecast.
        horizons: in timesteps.
    """

    times: Times
    values: Floats
    labels: Ints | None
    stretches: tuple[Span, ...]
    outputs: dict[str, Floats]
    targets: tuple[int, ...]
    horizons: tuple[int, ...]

    @classmethod
    def of(cls, graph: Graph, series: Series, spans: Spans, values: Floats | None = None) -> "Replayed":
        """Replay the spans, each stretch as a newly opened stream; `values` (time, features) in place of the series' own."""
        raw = series.values if values is None else values
        runs = [(place, place + end - first, first, end) for place, first, end in placed(series, spans)]
        rows = np.concatenate([np.arange(first, end) for first, end in spans])
        pieces = [graph.replay(raw[first:end, None])[0] for _, _, first, end in runs]
        outputs = {name: np.concatenate([piece[name][:, 0] for piece in pieces]) for name in graph.outputs}
        forecasts = "forecast" in outputs
        return cls(
            times=series.times[rows],
            values=raw[rows],
            labels=None if series.labels is None else series.labels[rows],
            stretches=tuple((low, high) for low, high, _, _ in runs),
            outputs=outputs,
            targets=tuple(series.column(name) for name in graph.targets) if forecasts else (),
            horizons=tuple(graph.horizons),
        )

    @property
    def truth(self) -> Numbers:
        """(rows, targets)."""
        return self.values[:, list(self.targets)].astype(np.float64)

    def arrived(self, output: str, index: int) -> Numbers:
        """What was said of each row `horizons[index]` timesteps earlier: (rows, targets, ...), NaN where nothing was."""
        said, horizon = self.outputs[output][:, index], self.horizons[index]
        moved = np.full(said.shape, np.nan)
        for first, end in self.stretches:
            moved[first + horizon : end] = said[first : max(end - horizon, first)]
        return moved

    def errors(self, index: int) -> Numbers:
        """(rows, targets)."""
        return self.arrived("forecast", index) - self.truth


def telling_stretch(replayed: Replayed, target: int) -> Span:
    """Where to look: among the livelier half of all stretches of `STRETCH` rows, the one with the most usual error.

    Lively is what moves from row to row; usual is nearest to the mean over all rows and horizons. So it is neither a
    quiet stretch nor the best or the worst.
    """
    truth = replayed.truth[:, target]
    wrong = np.stack([np.abs(replayed.errors(index)[:, target]) for index in range(len(replayed.horizons))], axis=1)
    usual = _means(wrong)
    moves = np.abs(np.diff(truth, prepend=np.nan))
    longest = max(end - first for first, end in replayed.stretches)
    length = min(STRETCH, longest)
    # Rows at the beginning of a stream have no forecast of long ago: they are taken only where there is nothing else.
    skip = min(max(replayed.horizons), longest - length)
    starts = [
        place
        for first, end in replayed.stretches
        for place in range(first + skip, end - length + 1, max(length // STRIDE, 1))
    ]
    lively = [float(_means(moves[place : place + length, None])[0]) for place in starts]
    middle = float(np.nanmedian(lively)) if np.isfinite(lively).any() else 0.0
    chosen, least = starts[0], np.inf
    for place, life in zip(starts, lively, strict=True):
        means = _means(wrong[place : place + length])
        known = np.isfinite(means) & np.isfinite(usual) & (usual > 0)
        gap = float(np.abs(means[known] / usual[known] - 1.0).mean()) if known.any() else np.inf
        if life >= middle and gap < least:
            chosen, least = place, gap
    return chosen, chosen + length


def edges_of(errors: Sequence[Numbers]) -> Numbers:
    """(BINS + 1,) the edges of bars around zero that hold all but a few of each of the errors."""
    known = [np.abs(some[np.isfinite(some)]) for some in errors]
    reach = max((float(np.quantile(some, 1 - TAIL)) for some in known if len(some)), default=0.0) or 1.0
    return np.linspace(-reach, reach, BINS + 1)


def histogram(errors: Numbers, edges: Numbers) -> Numbers:
    """(BINS,) the share of the errors between each two edges; the outermost hold all that lies beyond."""
    known = errors[np.isfinite(errors)]
    counts, _ = np.histogram(np.clip(known, edges[0], edges[-1]), edges)
    return counts / max(len(known), 1)


def by_hour(times: Times, errors: Numbers) -> Numbers:
    """(24,) the mean absolute error of what happened in each hour of the day; NaN where nothing did."""
    hours = (times.astype("datetime64[h]").astype(np.int64)) % 24
    return np.array([_means(np.abs(errors[hours == hour])[:, None])[0] for hour in range(24)])


def shares_below(truth: Numbers, quantiles: Numbers) -> Numbers:
    """(rows,) and (rows, quantiles) -> (quantiles,) the share of rows where the truth is at most the quantile."""
    known = np.isfinite(truth) & np.isfinite(quantiles).all(axis=1)
    if not known.any():
        return np.full(quantiles.shape[1], np.nan)
    shares: Numbers = (truth[known, None] <= quantiles[known]).mean(axis=0)
    return shares


def reliability(probability: Floats, labels: Ints) -> tuple[Numbers, Numbers, Ints]:
    """How sure the likeliest class was, how often it was right, and how many timesteps: a row for each filled bin."""
    known = labels != UNLABELLED
    sure, right = probability[known].max(axis=1), probability[known].argmax(axis=1) == labels[known]
    bins = np.minimum((sure * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    counts = np.bincount(bins, minlength=CONFIDENCE_BINS)
    filled = np.flatnonzero(counts)
    said = np.bincount(bins, weights=sure, minlength=CONFIDENCE_BINS)[filled] / counts[filled]
    true = np.bincount(bins, weights=right, minlength=CONFIDENCE_BINS)[filled] / counts[filled]
    return said, true, counts[filled]


def _means(values: Numbers) -> Numbers:
    """(rows, n) -> (n,) ignoring NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    means: Numbers = np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
    return means
