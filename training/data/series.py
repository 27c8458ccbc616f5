"""A series: sensor values over time, from one source or from several groups.

This module knows no files, no network and no torch. A missing value is NaN from here to the served graph.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tidegate.training.errors import MissingColumn, PeriodMismatch

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Times = npt.NDArray[np.datetime64]

# Rows [first, end).
Span = tuple[int, int]
Spans = tuple[Span, ...]

# A step longer than this many periods is a gap: a late sample is jitter, a missing row is a gap.
GAP_PERIODS = 1.5
# An irregular series has no period. Only a step much longer than the usual one is a gap.
GAP_STEPS_IRREGULAR = 10.0
# Steps of a regular series differ by up to a tenth from its period.
PERIOD_TOLERANCE = 0.1
DAY_S = 86_400
# The label of an unlabelled row.
UNLABELLED = -1


@dataclass(frozen=True)
class Group:
    """Rows [first, end) of a table that belong to one sensor, machine or recording, in time order.

    `split_key` is the value that a split keeps together, such as the person of a recording. It is empty where time splits.
    """

    name: str
    first: int
    end: int
    split_key: str = ""


@dataclass(frozen=True)
class Series:
    """Sensor values over time, from one source or from several groups one after the other.

    Attributes:
        name: what the data is called in cards and tables.
        sha256: of its file.
        names, units: of the columns of `values`; a unit is empty if unknown.
        values: (time, features) float32 in raw units; NaN is missing, infinity never occurs.
        times: (time,) nanoseconds, strictly increasing within a group.
        period_s: the usual step in seconds; None if the steps are irregular.
        groups: in row order, covering all rows; empty if the table is one series.
        labels: (time,) an index of `classes`, `UNLABELLED` if unknown; None without a label column.
        classes: the names of the labels.
        group_column, label_column: their names in the table; empty if there are none.
        filled: the rows, in order, that the table lacks; all their values are missing. See `gaps`.
        categories: the words of a feature that was text, by its name; a value is the place of its word.
        notes: what was understood of the table and done to it, as sentences for the user.
        timezone: "UTC" if the table told an offset or a zone; empty if its times are of an unknown clock.
    """

    name: str
    sha256: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    values: Floats
    times: Times
    period_s: float | None
    groups: tuple[Group, ...] = ()
    labels: Ints | None = None
    classes: tuple[str, ...] = ()
    group_column: str = ""
    label_column: str = ""
    filled: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    timezone: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str) -> int:
        """The index of a feature.

        Raises:
            MissingColumn: the series has no such feature.
        """
        if name in self.names:
            return self.names.index(name)
        known = ", ".join(self.names)
        for column, what in ((self.group_column, "group"), (self.label_column, "label")):
            if name == column:
                raise MissingColumn(
                    f"{self.name}: {name!r} is the {what} column, expected a feature; there are: {known}"
                )
        raise MissingColumn(f"{self.name}: no column {name!r}; there are: {known}")

    def stamp(self, time: np.datetime64) -> str:
        """A time of the series in ISO 8601, with a Z if it is known to be UTC."""
        return iso(time) + ("Z" if self.timezone == "UTC" else "")

    def group_at(self, row: int) -> Group:
        """The group that a row belongs to; the series has groups."""
        return self.groups[bisect_right(self.groups, row, key=lambda group: group.first) - 1]

    def select(self, names: Sequence[str]) -> "Series":
        """The series with these features, in this order.

        Raises:
            MissingColumn: it has no such feature.
        """
        if tuple(names) == self.names:
            return self
        places = [self.column(name) for name in names]
        units = tuple(self.units[place] for place in places)
        return replace(self, names=tuple(names), units=units, values=np.ascontiguousarray(self.values[:, places]))

    @property
    def spans(self) -> Spans:
        """The rows of each group, or all rows as one span."""
        return tuple((group.first, group.end) for group in self.groups) or ((0, len(self)),)

    def segments(self, spans: Spans | None = None) -> list[Span]:
        """The segments within the spans, or of all rows: consecutive rows of one group without a time gap."""
        return [
            segment
            for first, end in (self.spans if spans is None else spans)
            for segment in pairwise([first, *self._cuts_within(first, end), end])
            if segment[0] < segment[1]
        ]

    @cached_property
    def median_step_s(self) -> float:
        """The usual step in seconds, also of an irregular series; 0 if there is none."""
        if self.period_s is not None:
            return self.period_s
        steps_s = group_steps_s(self.times, self.groups)
        return float(np.median(steps_s, overwrite_input=True)) if len(steps_s) else 0.0

    @property
    def is_numbered(self) -> bool:
        """Whether the rows have only numbers: times with equal steps have a period."""
        return self.period_s is None and len(set(group_steps_s(self.times, self.groups).tolist())) <= 1

    @property
    def gap_threshold_s(self) -> float:
        """The longest step in seconds that is no gap."""
        return self.median_step_s * (GAP_STEPS_IRREGULAR if self.period_s is None else GAP_PERIODS)

    def _cuts_within(self, first: int, end: int) -> list[int]:
        low, high = np.searchsorted(self._cuts, [first, end])
        return [int(row) for row in self._cuts[low:high]]

    @cached_property
    def _cuts(self) -> Ints:
        """The rows, in order, that follow a gap or begin a group."""
        cuts = steps_s_of(self.times) > self.gap_threshold_s
        cuts[[group.first - 1 for group in self.groups[1:]]] = True
        return np.flatnonzero(cuts) + 1


def check_period(series: Series, period_s: float | None) -> None:
    """Check that the rows are as far apart as those that a model was trained on, because its horizons count rows.

    Rows that are only numbered have no step to compare; the model's is then taken for theirs.

    Args:
        series: with times.
        period_s: of the model; None if it has none.

    Raises:
        PeriodMismatch: the usual step differs by more than a tenth.
    """
    step_s = series.median_step_s
    if period_s is None or not step_s or series.is_numbered or abs(step_s - period_s) <= PERIOD_TOLERANCE * period_s:
        return
    raise PeriodMismatch(
        f"{series.name}: a row comes every {step_s:g} s, expected {period_s:g} s as in the training: the horizons and the "
        f"state of the model count rows; give rows that are {period_s:g} s apart, or train on these"
    )


def count_rows(spans: Spans) -> int:
    """The number of rows in the spans."""
    return sum(end - first for first, end in spans)


def latest_rows(spans: Spans, most: int) -> Spans:
    """The last `most` rows of the spans."""
    kept: list[tuple[int, int]] = []
    for first, end in reversed(spans):
        left = most - count_rows(tuple(kept))
        if left > 0:
            kept.append((max(first, end - left), end))
    return tuple(reversed(kept))


def future_values(series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> Floats:
    """The true value at each horizon: (rows of the spans, horizons, targets).

    It is NaN where it is missing, behind a gap, or outside its span.
    """
    truth = np.full((count_rows(spans), len(horizons), len(targets)), np.nan, np.float32)
    for place, first, end in segment_offsets(series, spans):
        for index, horizon in enumerate(horizons):
            if end - first > horizon:
                truth[place : place + end - first - horizon, index] = series.values[
                    first + horizon : end, list(targets)
                ]
    return truth


def forward_fill(values: Floats) -> Floats:
    """(rows, columns), each missing value replaced by the last one of its column; NaN before the first."""
    rows = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(len(values))[:, None]), axis=0)
    return np.where(rows < 0, np.float32(np.nan), np.take_along_axis(values, np.maximum(rows, 0), axis=0))


def segment_offsets(series: Series, spans: Spans) -> Iterator[tuple[int, int, int]]:
    """(offset, first, end) of each segment of the spans; the offset counts the rows of the concatenated spans before it."""
    before = 0
    for span in spans:
        for first, end in series.segments((span,)):
            yield before + first - span[0], first, end
        before += span[1] - span[0]


def steps_s_of(times: Times) -> npt.NDArray[np.float64]:
    """The seconds from each row to the next: (time - 1,)."""
    # A view as whole numbers saves a copy: these are the largest arrays beside the values.
    return np.diff(times.astype("datetime64[ns]", copy=False)).view(np.int64) / 1e9


def group_steps_s(times: Times, groups: Sequence[Group]) -> npt.NDArray[np.float64]:
    """The seconds from each row to the next of the same group."""
    steps_s = steps_s_of(times)
    return np.delete(steps_s, [group.first - 1 for group in groups[1:]]) if len(groups) > 1 else steps_s


def iso(time: np.datetime64) -> str:
    """ISO 8601, with a fraction only where there is one."""
    seconds = time.astype("datetime64[s]")
    return str(seconds if seconds == time else time)


def time_of(text: str) -> np.datetime64:
    """The time that `iso` or `Series.stamp` has written."""
    return np.datetime64(text.removesuffix("Z"))


def duration_text(seconds: float) -> str:
    """A time span in its largest unit: `10 min`."""
    for size_s, unit in ((DAY_S, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:.4g} {unit}"
    return f"{seconds:.4g} s"


def season_steps(period_s: float | None) -> int | None:
    """Timesteps in a day; None when the period is unknown, does not divide a day, or is itself a day or longer."""
    if period_s is None:
        return None
    steps = DAY_S / period_s
    return round(steps) if steps >= 2 and abs(steps - round(steps)) < 1e-6 * steps else None
