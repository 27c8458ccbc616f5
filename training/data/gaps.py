"""Absent rows: where a series lacks rows, how many, and which of them become missing values."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tidegate.training.data.series import UNLABELLED, Group, Ints, Series, Spans, count_rows, steps_s_of


@dataclass(frozen=True)
class Absence:
    """The absent rows of a series, or of some spans of it.

    Attributes:
        rows: that are absent; None if the series has no period, so that nobody can count them.
        gaps: the number of pieces that they make up.
        cuts: of these pieces, those that are too long to be filled; nothing is learned or scored across them.
        filled: of these rows, those that are missing values now; they are rows of the series.
        stretches: runs of rows that no cut divides.
        longest: the rows of the longest stretch.
    """

    rows: int | None
    gaps: int
    cuts: int
    filled: int
    stretches: int
    longest: int

    @property
    def text(self) -> str:
        """How many rows are absent, and what became of the gaps, as a clause."""
        cut = f"{self.cuts:,} gap{'s' * (self.cuts != 1)} cut{'s' * (self.cuts == 1)} the series: nothing crosses them"
        if self.rows is None:
            return cut
        became = [f"{self.filled:,} of them became missing values"] if self.filled else []
        became += [cut] if self.cuts else []
        many = "s are" if self.rows != 1 else " is"
        return f"{self.rows:,} row{many} absent, in {self.gaps:,} gap{'s' * (self.gaps != 1)}; {', '.join(became)}"


def fill_gaps(series: Series, most: int) -> Series:
    """A regular series with a row of missing values for each row that a gap of at most `most` rows lacks.

    A longer gap stays. An irregular series has no rows that could be absent, and is returned as it is.
    """
    if not most or series.period_s is None:
        return series
    lacking = _absent_after(series)
    lacking[lacking > most] = 0
    total = int(lacking.sum())
    if not total:
        return series
    # The new place of each row, and of each row before which something is inserted.
    places = np.arange(len(series)) + np.concatenate([[0], np.cumsum(lacking)])
    rows = len(series) + total
    values = np.full((rows, len(series.names)), np.nan, np.float32)
    values[places] = series.values
    times = np.empty(rows, series.times.dtype)
    times[places] = series.times
    filled = np.ones(rows, np.bool_)
    filled[places] = False
    for row in np.flatnonzero(lacking):
        # Evenly, so that times with a jitter still increase.
        first, end = int(places[row]), int(places[row + 1])
        step = (times[end] - times[first]) / (end - first)
        times[first + 1 : end] = times[first] + np.arange(1, end - first) * step
    labels = None
    if series.labels is not None:
        labels = np.full(rows, UNLABELLED, np.int64)
        labels[places] = series.labels
    return replace(
        series,
        values=values,
        times=times,
        labels=labels,
        groups=tuple(
            Group(group.name, int(places[group.first]), int(places[group.end - 1]) + 1, group.split_key)
            for group in series.groups
        ),
        filled=np.flatnonzero(filled),
    )


def absence(series: Series, spans: Spans | None = None) -> Absence:
    """Count the absent rows within the spans, or within all groups."""
    spans = series.spans if spans is None else spans
    segments = series.segments(spans)
    filled = _within(series.filled, spans)
    lacking = _absent_after(series)
    cuts = [end - 1 for span in spans for _, end in series.segments((span,))[:-1]]
    runs = int((np.diff(filled) > 1).sum()) + 1 if len(filled) else 0
    return Absence(
        rows=None if series.period_s is None else len(filled) + int(lacking[cuts].sum()),
        gaps=runs + len(cuts),
        cuts=len(cuts),
        filled=len(filled),
        stretches=len(segments),
        longest=max((end - first for first, end in segments), default=0),
    )


def present_rows(series: Series, spans: Spans) -> int:
    """The number of rows in the spans that the table has."""
    return count_rows(spans) - len(_within(series.filled, spans))


def _within(rows: Ints, spans: Iterable[tuple[int, int]]) -> Ints:
    """Those of the rows, which increase, that lie in the spans."""
    places = (np.searchsorted(rows, span) for span in spans)
    return np.concatenate([rows[low:high] for low, high in places] or [np.empty(0, np.int64)])


def _absent_after(series: Series) -> Ints:
    """(time - 1,) how many rows are absent between each row and the next of its group; 0 without a gap."""
    steps_s = steps_s_of(series.times)
    if series.period_s is None:
        return np.zeros(len(steps_s), np.int64)
    lacking = np.where(steps_s > series.gap_threshold_s, np.round(steps_s / series.period_s) - 1, 0)
    lacking[[group.first - 1 for group in series.groups[1:]]] = 0
    return np.maximum(lacking, 0).astype(np.int64)
