"""The held-out part, replayed once through the exported graph. Its outputs serve the scores, the curves and the report."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Floats, Series, Span, Spans, Times, segment_offsets
from tidegate.training.judging.graph import Graph

Numbers = npt.NDArray[np.float64]

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
        """Replay each segment of the spans as a new stream; the series has the features of the graph in its order."""
        assert tuple(graph.features) == series.names
        rows = np.concatenate([np.arange(first, end) for first, end in spans])
        targets = [series.column(name) for name in graph.targets] if "forecast" in graph.outputs else []
        return cls(
            times=series.times[rows],
            truth=series.values[:, targets][rows].astype(np.float64),
            segments=tuple((offset, offset + end - first) for offset, first, end in segment_offsets(series, spans)),
            outputs=graph.replay_segments(series.values, series.segments(spans), keep=REPLAYED),
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
