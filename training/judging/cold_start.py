"""Cold start: new streams that begin all over the held-out part, beside a long one.

A server restarts no stream, but clients open new ones all the time, and their first predictions matter too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidegate.training.data.series import Floats, Ints, Series, Span, Spans, segment_offsets
from tidegate.training.judging.graph import BATCH, Graph
from tidegate.training.judging.metrics import Doubles
from tidegate.training.judging.scores import ColdStart, ColdStartErrors

# The last timesteps of the bands of mean errors.
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
# Enough for a stable mean error of a single timestep. They overlap if the part is short.
STREAMS = 256
# A new stream is as good as a long one if its error is larger by at most this share.
TOLERANCE = 0.05


def cold_start(
    graph: Graph,
    series: Series,
    spans: Spans,
    output: str,
    truth: Floats | Ints,
    warm: Floats,
    names: Sequence[tuple[str, int]],
) -> ColdStart | None:
    """Replay streams that begin in the middle, and compare their errors with those of the long stream.

    Args:
        graph: to score.
        series: with the columns of the graph.
        spans: the held-out rows.
        output: `forecast` or `probability`.
        truth: the true values, see `column_errors`; (rows of the spans, ...).
        warm: that output of the long streams over the spans, (rows of the spans, ...).
        names: target and horizon of each column of the errors.

    Returns:
        None if no segment is long enough for a new stream beside a warm one.
    """
    chosen = _starts(series, spans)
    if chosen is None:
        return None
    starts, places, length = chosen  # rows of the series, and of the spans end to end
    sums = [_Sums.zeros(length) for _ in names]
    # Few streams at a time: all forecasts of all streams together grow to gigabytes with many horizons.
    for low in range(0, len(starts), BATCH):
        begins, offsets = starts[low : low + BATCH], places[low : low + BATCH]
        streams: list[Span] = [(int(row), int(row) + length) for row in begins]
        cold = graph.replay_segments(series.values, streams, keep=(output,))[output]
        rows = (offsets[:, None] + np.arange(length)).ravel()
        known_truth, long = truth[rows], warm[rows]
        for column, total in enumerate(sums):
            total.add(
                column_errors(cold, known_truth, column).reshape(-1, length),
                column_errors(long, known_truth, column).reshape(-1, length),
            )
    steps = tuple(step for step in STEPS if step <= length)
    table = (_start(name, total, steps) for name, total in zip(names, sums, strict=True))
    return ColdStart(len(starts), steps, TOLERANCE, tuple(start for start in table if start is not None))


@dataclass
class _Sums:
    """The errors of one column, summed over the streams by their timestep (timesteps,); `count` counts the known ones."""

    cold: Doubles
    warm: Doubles
    count: Ints

    @classmethod
    def zeros(cls, timesteps: int) -> "_Sums":
        """Of no stream."""
        return cls(np.zeros(timesteps), np.zeros(timesteps), np.zeros(timesteps, np.int64))

    def add(self, cold: Doubles, warm: Doubles) -> None:
        """Add the errors (streams, timesteps) of new streams and of the long one; NaN is unknown."""
        known = ~np.isnan(cold + warm)
        self.cold += np.where(known, cold, 0.0).sum(axis=0)
        self.warm += np.where(known, warm, 0.0).sum(axis=0)
        self.count += known.sum(axis=0)


def column_errors(outputs: Floats, truth: Floats | Ints, column: int) -> Doubles:
    """(rows,) the errors of one column, NaN if the true value is unknown.

    For forecasts (rows, horizons, targets): the absolute error; all horizons of the first target are the first columns. For
    probabilities (rows, classes) there is one column: 1 if the likeliest class is not the true one (rows,); a negative class
    is unknown.
    """
    if truth.ndim == 1:
        return np.where(truth < 0, np.nan, (outputs.argmax(axis=1) != truth).astype(np.float64))
    target, horizon = divmod(column, outputs.shape[1])
    errors: Doubles = np.abs(outputs[:, horizon, target].astype(np.float64) - truth[:, horizon, target])
    return errors


def _starts(series: Series, spans: Spans) -> tuple[Ints, Ints, int] | None:
    """The first rows of the new streams, their positions in the concatenated spans, and their length.

    The length is the largest that fits. As many timesteps of the segment lie before each stream, so that the long one is warm.
    """
    for length in reversed(STEPS):
        usable = [
            (place, first, end) for place, first, end in segment_offsets(series, spans) if end - first > 2 * length
        ]
        rows = np.concatenate(
            [np.arange(first + length, end - length) for _, first, end in usable] or [np.empty(0, np.int64)]
        )
        if len(rows) >= length:  # fewer rows would give copies of the same stream
            places = np.concatenate([np.arange(length, end - first - length) + place for place, first, end in usable])
            even = np.unique(np.linspace(0, len(rows) - 1, STREAMS).astype(np.int64))
            return rows[even], places[even], length
    return None


def _start(name: tuple[str, int], sums: _Sums, steps: Sequence[int]) -> ColdStartErrors | None:
    """The mean errors of one column by band; None if a band has no true value."""
    begins = np.array((0, *steps[:-1]))
    counts = np.add.reduceat(sums.count, begins)
    if not counts.all():
        return None
    cold, warm = (tuple((np.add.reduceat(errors, begins) / counts).tolist()) for errors in (sums.cold, sums.warm))
    worse = [place for place, pair in enumerate(zip(cold, warm, strict=True)) if pair[0] > (1.0 + TOLERANCE) * pair[1]]
    after = 0 if not worse else None if worse[-1] == len(steps) - 1 else steps[worse[-1]]
    return ColdStartErrors(*name, cold=cold, warm=warm, settled=after)
