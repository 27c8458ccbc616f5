"""The held-out part, replayed once through the exported graph. Its outputs serve the scores, the curves and the report."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Floats, Series, Span, Spans, Times, segment_offsets
from tidegate.training.judging.graph import Graph

Numbers = npt.NDArray[np.float64]

# Rows before a span that warm up the state. In service a stream has run for long, and the baselines read the past too. The
# longest window and the slowest usual level lie within.
WARM_UP_ROWS = 2048
# The outputs that are scored or drawn.
REPLAYED = ("forecast", "quantiles", "interval", "probability", "score", "alarm", "warm")


@dataclass(frozen=True)
class Replay:
    """The concatenated rows of the spans, and the outputs of the graph at each.

    Attributes:
        times: (rows,).
        truth: (rows, targets) raw, NaN if missing; no targets without forecasts.
        segments: the positions [first, end) without a time gap; each is a new stream.
        outputs: (rows, ...) by name.
        horizons: in timesteps.
    """

    times: Times
    truth: Numbers
    segments: tuple[Span, ...]
    outputs: dict[str, Floats]
    horizons: tuple[int, ...]

    @classmethod
    def of(cls, graph: Graph, series: Series, spans: Spans) -> Self:
        """Replay each segment of the spans as a stream; the series has the features of the graph in its order.

        A stream begins up to `WARM_UP_ROWS` before its segment, unless there is a time gap; those rows are not kept.
        """
        assert tuple(graph.features) == series.names
        rows = np.concatenate([np.arange(first, end) for first, end in spans])
        targets = [series.column(name) for name in graph.targets] if "forecast" in graph.outputs else []
        return cls(
            times=series.times[rows],
            truth=series.values[:, targets][rows].astype(np.float64),
            segments=tuple((offset, offset + end - first) for offset, first, end in segment_offsets(series, spans)),
            outputs=_warm_replay(graph, series, series.segments(spans)),
            horizons=tuple(graph.horizons),
        )

    def shifted(self, output: str, index: int) -> Numbers:
        """The output of `horizons[index]` timesteps before each row: (rows, targets, ...), NaN if there is none."""
        values, horizon = self.outputs[output][:, index], self.horizons[index]
        moved = np.full(values.shape, np.nan)
        for first, end in self.segments:
            moved[first + horizon : end] = values[first : max(end - horizon, first)]
        return moved

    def errors(self, index: int) -> Numbers:
        """(rows, targets): forecast minus true value at one horizon, at the time of the true value."""
        return self.shifted("forecast", index) - self.truth


def _warm_replay(graph: Graph, series: Series, segments: Sequence[Span]) -> dict[str, Floats]:
    """The outputs of the segments, each (rows, ...), after streams that began before them."""
    begins = sorted(first for first, _ in series.segments())
    streams = [
        (max(begins[bisect_right(begins, first) - 1], first - WARM_UP_ROWS), first, end) for first, end in segments
    ]
    outputs = graph.replay_segments(series.values, [(begin, end) for begin, _, end in streams], keep=REPLAYED)
    kept = np.concatenate([np.arange(begin, end) >= first for begin, first, end in streams])
    return {name: rows[kept] for name, rows in outputs.items()}
