"""Cold start: new streams that begin all over the held-out part, beside a long one.

A server restarts no stream, but clients open new ones all the time, and their first predictions matter too.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Floats, Ints, Series, Span, Spans, segment_offsets
from tidegate.training.judging.graph import Graph
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
        truth: the true values, see `stream_errors`; (rows of the spans, ...).
        warm: that output of the long streams over the spans, (rows of the spans, ...).
        names: target and horizon of each column of the errors.

    Returns:
        None if no segment is long enough for a new stream beside a warm one.
    """
    chosen = _starts(series, spans)
    if chosen is None:
        return None
    starts, places, length = chosen  # rows of the series, and of the spans end to end
    streams: list[Span] = [(int(row), int(row) + length) for row in starts]
    cold = graph.replay_segments(series.values, streams, keep=(output,))[output]
    rows = (places[:, None] + np.arange(length)).ravel()
    shape = (len(starts), length, -1)
    cold_errors = stream_errors(cold, truth[rows]).reshape(shape)
    warm_errors = stream_errors(warm[rows], truth[rows]).reshape(shape)
    steps = tuple(step for step in STEPS if step <= length)
    table = tuple(
        _start(name, cold_errors[..., column], warm_errors[..., column], steps) for column, name in enumerate(names)
    )
    return ColdStart(len(starts), steps, TOLERANCE, tuple(start for start in table if start is not None))


def stream_errors(outputs: Floats, truth: Floats | Ints) -> npt.NDArray[np.float64]:
    """(rows, columns), NaN if the true value is unknown.

    For forecasts (rows, horizons, targets): the absolute error, all horizons of the first target first. For probabilities
    (rows, classes): 1 if the likeliest class is not the true one (rows,); a negative class is unknown.
    """
    if truth.ndim == 1:
        wrong = (outputs.argmax(axis=1) != truth).astype(np.float64)
        return np.where(truth < 0, np.nan, wrong)[:, None]
    errors: npt.NDArray[np.float64] = (
        np.abs(outputs.astype(np.float64) - truth).transpose(0, 2, 1).reshape(len(outputs), -1)
    )
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


def _start(
    name: tuple[str, int], cold: npt.NDArray[np.float64], warm: npt.NDArray[np.float64], steps: Sequence[int]
) -> ColdStartErrors | None:
    """The errors (streams, timesteps) of one column by band; None if a band has no true value."""
    known = ~np.isnan(cold + warm)
    bands = [slice(low, high) for low, high in zip((0, *steps[:-1]), steps, strict=True)]
    if not all(known[:, band].any() for band in bands):
        return None
    means = [tuple(float(errors[:, band][known[:, band]].mean()) for band in bands) for errors in (cold, warm)]
    worse = [place for place, pair in enumerate(zip(*means, strict=True)) if pair[0] > (1.0 + TOLERANCE) * pair[1]]
    after = 0 if not worse else None if worse[-1] == len(steps) - 1 else steps[worse[-1]]
    return ColdStartErrors(*name, cold=means[0], warm=means[1], settled=after)
