"""The held-out part, replayed once through the exported graph. Its outputs serve the scores, the curves and the report.

All forecasts of all rows grow with rows, horizons and targets. So the scores take them some rows at a time, while the graph
runs, and only those are kept that a report draws.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Floats, Ints, Series, Span, Spans, Times, segment_offsets
from tidegate.training.judging.graph import Graph

Numbers = npt.NDArray[np.float64]

# Rows before a span that warm up the state. In service a stream has run for long, and the baselines read the past too. The
# longest window and the slowest usual level lie within.
WARM_UP_ROWS = 2048
# The outputs that are scored or drawn.
REPLAYED = ("forecast", "quantiles", "interval", "probability", "score", "alarm", "warm")
# Those with a value for each horizon and target.
BY_HORIZON = ("forecast", "quantiles", "interval")
# Horizons and targets that a report draws: more charts of one kind add nothing, and a hundred targets would fill a book.
DRAWN = 4

# Takes rows of the spans (positions, counted over all spans), and their outputs.
OnRows = Callable[[Ints, dict[str, Floats]], None]


def drawn_horizons(count: int) -> tuple[int, ...]:
    """The places of up to `DRAWN` horizons, spread over all of them."""
    return tuple(sorted({round(place) for place in np.linspace(0, count - 1, DRAWN)})) if count else ()


@dataclass(frozen=True)
class Replay:
    """The concatenated rows of the spans, and the outputs of the graph at each.

    Attributes:
        times: (rows,).
        truth: (rows, targets) raw, NaN if missing; no targets without forecasts.
        segments: the positions [first, end) without a time gap; each is a new stream.
        outputs: (rows, ...) by name; of those by horizon and target, the horizons that are kept and the first targets.
        horizons: in timesteps.
        kept: the places of the horizons that are kept.
    """

    times: Times
    truth: Numbers
    segments: tuple[Span, ...]
    outputs: dict[str, Floats]
    horizons: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def of(
        cls, graph: Graph, series: Series, spans: Spans, *, drawn: bool = False, on_rows: OnRows | None = None
    ) -> Self:
        """Replay each segment of the spans as a stream; the series has the features of the graph in its order.

        A stream begins up to `WARM_UP_ROWS` before its segment, unless there is a time gap; those rows are not kept.

        Args:
            graph: to replay.
            series: of the spans.
            spans: the rows.
            drawn: keep only what a report draws, of forecasts of many horizons and targets.
            on_rows: gets all outputs of some rows at a time; each row comes once, in no special order.
        """
        assert tuple(graph.features) == series.names
        rows = np.concatenate([np.arange(first, end) for first, end in spans])
        targets = [series.column(name) for name in graph.targets] if "forecast" in graph.outputs else []
        horizons = tuple(graph.horizons)
        kept = drawn_horizons(len(horizons)) if drawn else tuple(range(len(horizons)))
        return cls(
            times=series.times[rows],
            truth=series.values[:, targets][rows].astype(np.float64),
            segments=tuple((offset, offset + end - first) for offset, first, end in segment_offsets(series, spans)),
            outputs=_warm_replay(graph, series, spans, kept, DRAWN if drawn else None, on_rows),
            horizons=horizons,
            kept=kept,
        )

    def shifted(self, output: str, index: int) -> Numbers:
        """The output of `horizons[index]` timesteps before each row: (rows, targets, ...), NaN if there is none.

        The horizon is one of those that are kept.
        """
        values, horizon = self.outputs[output][:, self.kept.index(index)], self.horizons[index]
        moved = np.full(values.shape, np.nan)
        for first, end in self.segments:
            moved[first + horizon : end] = values[first : max(end - horizon, first)]
        return moved

    def errors(self, index: int) -> Numbers:
        """(rows, targets): forecast minus true value at one horizon, at the time of the true value."""
        forecast = self.shifted("forecast", index)
        return forecast - self.truth[:, : forecast.shape[1]]


def _warm_replay(
    graph: Graph, series: Series, spans: Spans, kept: Sequence[int], targets: int | None, on_rows: OnRows | None
) -> dict[str, Floats]:
    """The outputs of the spans, each (rows, ...), after streams that began before them."""
    begins = sorted(first for first, _ in series.segments())
    streams = [
        (max(begins[bisect_right(begins, first) - 1], first - WARM_UP_ROWS), first, end)
        for first, end in series.segments(spans)
    ]
    # The position of each replayed row in the spans, -1 for one that only warms the state up.
    scored = np.concatenate([np.arange(begin, end) >= first for begin, first, end in streams])
    position = np.where(scored, np.cumsum(scored) - 1, -1)
    outputs: dict[str, Floats] = {}
    for places, chunk in graph.replay_chunks(series.values, [(begin, end) for begin, _, end in streams], keep=REPLAYED):
        known = position[places] >= 0
        rows = position[places][known]
        chunk = {name: part[known] for name, part in chunk.items()}  # noqa: PLW2901  the same rows, fewer
        for name, part in chunk.items():
            held = part[:, list(kept)][:, :, :targets] if name in BY_HORIZON else part
            if name not in outputs:
                outputs[name] = np.empty((int(scored.sum()), *held.shape[1:]), np.float32)
            outputs[name][rows] = held
        if on_rows and len(rows):
            on_rows(rows, chunk)
    return outputs
