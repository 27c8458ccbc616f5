"""The noun that everything else works on: a table of sensor values over time, in one series or several groups.

Knows no files, no network and no torch. A missing value is NaN from here to the served graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from training.errors import MissingColumn

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Times = npt.NDArray[np.datetime64]

# Rows [first, end).
Span = tuple[int, int]
Spans = tuple[Span, ...]

# A step longer than this many periods is a gap: one late sample is jitter, a missing row is not.
GAP_PERIODS = 1.5
# Irregular series have no period; only a silence much longer than the usual step cuts them.
GAP_STEPS_IRREGULAR = 10.0
DAY_S = 86_400
# Of a label that is not known.
UNLABELLED = -1


@dataclass(frozen=True)
class Group:
    """Rows [first, end) of a table that belong to one sensor, machine or recording, in time order.

    `whole` is what must not be torn apart by a split, such as the person on the recording; empty where time splits.
    """

    name: str
    first: int
    end: int
    whole: str = ""


@dataclass(frozen=True)
class Series:
    """A table of sensor values over time; of one source, or of several groups one after the other.

    Attributes:
        name: what the data is called in cards and tables.
        sha256: of the file that it was read from.
        names, units: of the columns of `values`; a unit is empty where unknown.
        values: (time, features) float32 in raw units; NaN is missing, infinity never occurs.
        times: (time,) nanoseconds, strictly increasing within a group.
        period_s: the usual step in seconds; None when the steps are irregular.
        groups: in row order, covering all rows; empty when the whole table is one series.
        labels: (time,) an index of `classes`, `UNLABELLED` where unknown; None when there is no label column.
        classes: the names of the labels.
        group_column, label_column: what the table calls them; empty when there are none.
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

    @property
    def spans(self) -> Spans:
        """The rows of each group, or all rows as one span."""
        return tuple((group.first, group.end) for group in self.groups) or ((0, len(self)),)

    def stretches(self, spans: Spans | None = None) -> list[Span]:
        """The runs of rows within the spans (all rows when None) that neither a time gap nor a group's end interrupts."""
        return [
            stretch
            for first, end in (self.spans if spans is None else spans)
            for stretch in pairwise([first, *self._cuts_within(first, end), end])
            if stretch[0] < stretch[1]
        ]

    @cached_property
    def usual_s(self) -> float:
        """The usual step in seconds, also of an irregular series; 0 where there is none."""
        if self.period_s is not None:
            return self.period_s
        steps_s = inner_steps_s(self.times, self.groups)
        return float(np.median(steps_s, overwrite_input=True)) if len(steps_s) else 0.0

    @property
    def gap_s(self) -> float:
        """A longer step than this is a gap."""
        return self.usual_s * (GAP_STEPS_IRREGULAR if self.period_s is None else GAP_PERIODS)

    def _cuts_within(self, first: int, end: int) -> list[int]:
        low, high = np.searchsorted(self._cuts, [first, end])
        return [int(row) for row in self._cuts[low:high]]

    @cached_property
    def _cuts(self) -> Ints:
        """The rows, in order, before which a gap lies or a group begins."""
        cuts = steps_s_of(self.times) > self.gap_s
        cuts[[group.first - 1 for group in self.groups[1:]]] = True
        return np.flatnonzero(cuts) + 1


def rows_of(spans: Spans) -> int:
    """How many rows the spans hold."""
    return sum(end - first for first, end in spans)


def ahead(series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> Floats:
    """What comes true: (rows of the spans, horizons, targets), NaN where it is missing, past a gap, or outside its span."""
    truth = np.full((rows_of(spans), len(horizons), len(targets)), np.nan, np.float32)
    for place, first, end in placed(series, spans):
        for index, horizon in enumerate(horizons):
            if end - first > horizon:
                truth[place : place + end - first - horizon, index] = series.values[
                    first + horizon : end, list(targets)
                ]
    return truth


def placed(series: Series, spans: Spans) -> Iterator[tuple[int, int, int]]:
    """Each stretch (first, end) of the spans, and before it where its first row stands when the spans are laid end to end."""
    before = 0
    for span in spans:
        for first, end in series.stretches((span,)):
            yield before + first - span[0], first, end
        before += span[1] - span[0]


def steps_s_of(times: Times) -> npt.NDArray[np.float64]:
    """The seconds from each row to the next: (time - 1,)."""
    # Looked at as whole numbers, which spares a copy: these are the largest arrays beside the values.
    return np.diff(times.astype("datetime64[ns]", copy=False)).view(np.int64) / 1e9


def inner_steps_s(times: Times, groups: Sequence[Group]) -> npt.NDArray[np.float64]:
    """The same without the steps from a group to the next."""
    steps_s = steps_s_of(times)
    return np.delete(steps_s, [group.first - 1 for group in groups[1:]]) if len(groups) > 1 else steps_s


def iso(time: np.datetime64) -> str:
    """ISO 8601, with a fraction only where there is one."""
    whole = time.astype("datetime64[s]")
    return str(whole if whole == time else time)


def season_steps(period_s: float | None) -> int | None:
    """Timesteps in a day; None when the period is unknown, does not divide a day, or is itself a day or longer."""
    if period_s is None:
        return None
    steps = DAY_S / period_s
    return round(steps) if steps >= 2 and abs(steps - round(steps)) < 1e-6 * steps else None
