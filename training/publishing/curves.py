"""What a report draws and a card does not hold: arrays from one replay of the held-out part through the exported graph.

Errors are forecast minus truth, in the target's unit, at the time that was forecast. Knows no SVG and no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.data.series import Floats, Series, Span, Spans, Times, placed
from training.data.split import Split
from training.judging.detection import break_copies
from training.judging.faults import REST, Event, Moments
from training.judging.graph import Graph

Numbers = npt.NDArray[np.float64]

# Timesteps across the page: enough to see days of ten-minute data, few enough to see single ones.
STRETCH = 432
# A stretch is looked for at this part of its length apart.
STRIDE = 8
BINS = 31  # of a histogram of errors; odd, so that no error has a bar in the middle
TAIL = 0.02  # share of the errors that may lie beyond the outermost bars, which gather them
FAULTY = 4000  # timesteps with faults in them that are drawn: shorter faults than a pixel would not be seen


@dataclass(frozen=True)
class Replayed:
    """The rows of the spans laid end to end, and what the graph said at each.

    Attributes:
        times: (rows,).
        truth: (rows, targets) raw, NaN where missing; no targets where nothing is forecast.
        stretches: the places [first, end) between which no time gap lies; each was a fresh stream.
        outputs: (rows, ...) by name.
        horizons: in timesteps.
    """

    times: Times
    truth: Numbers
    stretches: tuple[Span, ...]
    outputs: dict[str, Floats]
    horizons: tuple[int, ...]

    @classmethod
    def of(cls, graph: Graph, series: Series, spans: Spans) -> "Replayed":
        """Replay the spans, each stretch as a newly opened stream; the series has the features of the graph in its order."""
        assert tuple(graph.features) == series.names
        rows = np.concatenate([np.arange(first, end) for first, end in spans])
        targets = [series.column(name) for name in graph.targets] if "forecast" in graph.outputs else []
        return cls(
            times=series.times[rows],
            truth=series.values[:, targets][rows].astype(np.float64),
            stretches=tuple((place, place + end - first) for place, first, end in placed(series, spans)),
            outputs=graph.replay_rows(series.values, series.stretches(spans)),
            horizons=tuple(graph.horizons),
        )

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


@dataclass(frozen=True)
class Faulted:
    """A stretch of the held-out part with faults of sensors in it, what the graph said, and where they are."""

    replayed: Replayed
    events: tuple[Event, ...]

    @classmethod
    def of(cls, graph: Graph, series: Series, split: Split, clean: Replayed) -> "Faulted | None":
        """The first of the copies that the graph was judged by, see `detection`; None where there is no room for a fault."""
        warm = [int(rows.argmax()) for rows in _each(clean, "warm") if rows.any()]
        faulty = break_copies(
            series,
            series.stretches(split.test) if warm else [],
            Moments.of(series, split.train),
            columns=[series.column(name) for name in graph.targets],
            warm=max(warm, default=0) + REST,
        )
        if faulty is None:
            return None
        (first, end), events = faulty.series.spans[0], faulty.events[0]
        end = min(end, first + FAULTY)
        shown = tuple(event for event in events if event.first < end - first)
        return cls(Replayed.of(graph, faulty.series, ((first, end),)), shown)


def _each(replayed: Replayed, output: str) -> list[npt.NDArray[np.bool_]]:
    """Whether one output of one number is more than a half, stretch by stretch."""
    return [replayed.outputs[output][first:end, 0] > 0.5 for first, end in replayed.stretches]


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


def _means(values: Numbers) -> Numbers:
    """(rows, n) -> (n,) ignoring NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    means: Numbers = np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
    return means
