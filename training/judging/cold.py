"""How long a new stream needs: fresh streams opened all over the held-out part, beside one that has run for long.

A server restarts no stream, but clients open new ones all the time, and the first answers of those matter too.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.data.series import Floats, Ints, Series, Span, Spans, placed
from training.judging.graph import Graph
from training.judging.scores import ColdStart, Start

# The last timesteps of the bands whose mean errors are told.
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
# Enough that the mean error of a single timestep is not chance; they overlap where the part is short.
STREAMS = 256
# Of the warm error: as good as warm.
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
    """Replay streams that begin in the middle, and compare their errors with the long stream's on the same timesteps.

    Args:
        graph: what to judge.
        series: with the graph's columns.
        spans: the rows that judge.
        output: `forecast` or `probability`.
        truth: what is true, see `errors_of`; (rows of the spans, ...).
        warm: that output of the long streams over the spans, (rows of the spans, ...).
        names: target and horizon of each column of the errors.

    Returns:
        None when no stretch is long enough to hold a long stream and a new one beside it.
    """
    chosen = _starts(series, spans)
    if chosen is None:
        return None
    starts, places, length = chosen  # rows of the series, and of the spans end to end
    streams: list[Span] = [(int(row), int(row) + length) for row in starts]
    cold = graph.replay_rows(series.values, streams, keep=(output,))[output]
    rows = (places[:, None] + np.arange(length)).ravel()
    shape = (len(starts), length, -1)
    cold_errors = errors_of(cold, truth[rows]).reshape(shape)
    warm_errors = errors_of(warm[rows], truth[rows]).reshape(shape)
    steps = tuple(step for step in STEPS if step <= length)
    table = tuple(
        _start(name, cold_errors[..., column], warm_errors[..., column], steps) for column, name in enumerate(names)
    )
    return ColdStart(len(starts), steps, TOLERANCE, tuple(start for start in table if start is not None))


def errors_of(said: Floats, truth: Floats | Ints) -> npt.NDArray[np.float64]:
    """(rows, columns), NaN where the truth is unknown.

    Of forecasts (rows, horizons, targets) the distance from the truth of the same shape, the horizons of the first target
    first; of probabilities (rows, classes) 1 where the likeliest is not the class (rows,), whose unknown is negative.
    """
    if truth.ndim == 1:
        wrong = (said.argmax(axis=1) != truth).astype(np.float64)
        return np.where(truth < 0, np.nan, wrong)[:, None]
    errors: npt.NDArray[np.float64] = np.abs(said.astype(np.float64) - truth).transpose(0, 2, 1).reshape(len(said), -1)
    return errors


def _starts(series: Series, spans: Spans) -> tuple[Ints, Ints, int] | None:
    """Where streams begin, by row and by place in the spans end to end, and how long they are.

    As long as there is room for: before a stream lie as many timesteps of its stretch, so that the long one is warm.
    """
    for length in reversed(STEPS):
        rooms = [(place, first, end) for place, first, end in placed(series, spans) if end - first > 2 * length]
        rows = np.concatenate(
            [np.arange(first + length, end - length) for _, first, end in rooms] or [np.empty(0, np.int64)]
        )
        if len(rows) >= length:  # else the streams would be copies of each other
            places = np.concatenate([np.arange(length, end - first - length) + place for place, first, end in rooms])
            even = np.unique(np.linspace(0, len(rows) - 1, STREAMS).astype(np.int64))
            return rows[even], places[even], length
    return None


def _start(
    name: tuple[str, int], cold: npt.NDArray[np.float64], warm: npt.NDArray[np.float64], steps: Sequence[int]
) -> Start | None:
    """One column's errors (streams, timesteps) by band; None when a band has no truth at all."""
    known = ~np.isnan(cold + warm)
    bands = [slice(low, high) for low, high in zip((0, *steps[:-1]), steps, strict=True)]
    if not all(known[:, band].any() for band in bands):
        return None
    means = [tuple(float(errors[:, band][known[:, band]].mean()) for band in bands) for errors in (cold, warm)]
    bad = [place for place, pair in enumerate(zip(*means, strict=True)) if pair[0] > (1.0 + TOLERANCE) * pair[1]]
    after = 0 if not bad else None if bad[-1] == len(steps) - 1 else steps[bad[-1]]
    return Start(*name, cold=means[0], warm=means[1], settled=after)
