"""Cold start: new streams that begin all over the held-out part, beside a long one.

A server restarts no stream, but clients open new ones all the time, and their first predictions matter too. The errors of
the long stream come some rows at a time, while it runs; so do those of the new ones.
"""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from tidegate.training.data.series import Floats, Ints, Series, Spans, segment_offsets
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.metrics import Bools, Doubles
from tidegate.training.judging.scores import ColdStart, ColdStartErrors

# The last timesteps of the bands of mean errors.
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
# Enough for a stable mean error of a single timestep. They overlap if the part is short.
STREAMS = 256
# A new stream counts as as good as a long one if its error is larger by at most this share.
TOLERANCE = 0.05


# Of some rows of the series and their output: the errors (n, columns), NaN where the true value is unknown.
ErrorsOf = Callable[[Ints, Floats], Doubles]


class NewStreams:
    """Streams that begin in the middle of the spans, beside those that have run for long.

    Args:
        begins: (streams,) their first rows in the series.
        places: (streams,) and in the spans.
        length: of each, in timesteps.
        names: target and horizon of each column of the errors.

    """

    def __init__(self, begins: Ints, places: Ints, length: int, names: Sequence[tuple[str, int]]) -> None:
        self._begins = begins
        self._length = length
        self._names = names
        self._steps = tuple(step for step in STEPS if step <= length)
        # How many streams have a row of the spans in each band: (bands, rows).
        rows = int(places.max()) + length
        firsts = (0, *self._steps[:-1])
        self._streams_at = np.stack(
            [
                np.bincount((places[:, None] + np.arange(first, end)).ravel(), minlength=rows)
                for first, end in zip(firsts, self._steps, strict=True)
            ]
        )
        self._long = _BandSums(len(self._steps), len(names))

    @classmethod
    def within(cls, series: Series, spans: Spans, names: Sequence[tuple[str, int]]) -> Self | None:
        """All over the spans; None if no segment is long enough for a new stream beside a long one."""
        chosen = _starts(series, spans)
        return cls(*chosen, names) if chosen else None

    def add_long(self, positions: Ints, errors: Doubles) -> None:
        """Add errors (n, columns) of the long streams at these rows of the spans."""
        inside = positions < self._streams_at.shape[1]
        self._long.add(self._streams_at[:, positions[inside]], errors[inside])

    def replay(self, graph: Graph, series: Series, output: str, errors_of: ErrorsOf) -> ColdStart:
        """Replay the new streams, and compare the errors of their `output` with those of the long ones."""
        bands = np.searchsorted(self._steps, np.arange(1, self._length + 1))
        streams = [(int(row), int(row) + self._length) for row in self._begins]
        new = _BandSums(len(self._steps), len(self._names))
        for places, outputs in graph.replay_chunks(series.values, streams, keep=(output,)):
            stream, step = np.divmod(places, self._length)
            errors = errors_of(self._begins[stream] + step, outputs[output])
            new.add(np.arange(len(self._steps))[:, None] == bands[step], errors)
        table = (
            _start(name, self._steps, new.means[:, column], self._long.means[:, column])
            for column, name in enumerate(self._names)
        )
        return ColdStart(len(streams), self._steps, TOLERANCE, tuple(start for start in table if start is not None))


class _BandSums:
    """The errors in each band and column (bands, columns), and their number."""

    def __init__(self, bands: int, columns: int) -> None:
        self._sums = np.zeros((bands, columns))
        self._counts = np.zeros((bands, columns))

    def add(self, weights: Ints | Bools, errors: Doubles) -> None:
        """Add errors (n, columns), each as often in a band as its weight (bands, n) says."""
        known = ~np.isnan(errors)
        times = weights.astype(np.float64)
        self._sums += times @ np.where(known, errors, 0.0)
        self._counts += times @ known.astype(np.float64)

    @property
    def means(self) -> Doubles:
        """The mean errors; NaN without one."""
        return np.divide(self._sums, self._counts, out=np.full_like(self._sums, np.nan), where=self._counts > 0)


def class_errors(probability: Floats, truth: Ints) -> Doubles:
    """(rows, classes) and (rows,) -> (rows, 1): 1 if the likeliest class is not the true one; NaN for a negative class."""
    return np.where(truth < 0, np.nan, (probability.argmax(axis=1) != truth).astype(np.float64))[:, None]


def forecast_errors(forecast: Floats, truth: Floats) -> Doubles:
    """(rows, horizons, targets) -> (rows, columns): absolute errors, all horizons of the first target first."""
    errors = np.abs(forecast.astype(np.float64) - truth)
    return errors.swapaxes(1, 2).reshape(len(errors), -1)


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


def _start(name: tuple[str, int], steps: Sequence[int], new: Doubles, long: Doubles) -> ColdStartErrors | None:
    """The mean errors (bands,) of one column; None if a band has no true value."""
    if np.isnan(new + long).any():
        return None
    worse = np.flatnonzero(new > (1.0 + TOLERANCE) * long)
    after = 0 if not len(worse) else None if worse[-1] == len(steps) - 1 else steps[worse[-1]]
    return ColdStartErrors(*name, cold=tuple(new.tolist()), warm=tuple(long.tolist()), settled=after)
