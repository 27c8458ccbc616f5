"""What a table holds, column by column, without a training: types, ranges, missing values, and what looks wrong."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.training.data.gaps import Absence, absence
from tidegate.training.data.overview import overview
from tidegate.training.data.series import Floats, Series, Span, steps_s_of
from tidegate.training.data.source import read_source
from tidegate.training.errors import ColumnError, MissingColumn, TableError, TableErrors
from tidegate.training.settings import Source

# A sensor that repeats a value for this number of rows, and for this share of all rows, may be stuck.
STUCK_ROWS, STUCK_SHARE = 100, 0.05
# So many times the distance of the middle half of the values from their median, a value is told: of a normal sensor one in
# a million lies at seven times.
FAR = 20.0
# The longest gaps are listed, no more than these.
MAX_GAPS = 5


@dataclass(frozen=True)
class Column:
    """One feature: its kind, its range, its share of missing values, and what looks wrong, in words.

    The range is None without a value. A column that cannot be used as it is has only remarks: what is wrong, and what to do.
    """

    name: str
    unit: str
    kind: str
    remarks: tuple[str, ...]
    missing: float | None = None
    low: float | None = None
    mean: float | None = None
    high: float | None = None
    usable: bool = True


@dataclass(frozen=True)
class Gap:
    """A gap: the times of the rows before and after it, and its group, if any."""

    start: str
    end: str
    seconds: float
    group: str


@dataclass(frozen=True)
class Inspection:
    """What a table holds: sentences about it, its columns, its absent rows, and its longest gaps that cut."""

    lines: tuple[str, ...]
    columns: tuple[Column, ...]
    absent: Absence
    gaps: tuple[Gap, ...]

    @classmethod
    def of(cls, series: Series) -> "Inspection":
        """Inspect a series."""
        return cls(
            (*series.notes, *overview(series)),
            tuple(_column(series, index) for index in range(len(series.names))),
            absence(series),
            tuple(_longest_gaps(series)),
        )

    @property
    def unusable(self) -> list[str]:
        """The names of the columns that a training refuses as they are."""
        return [column.name for column in self.columns if not column.usable]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; the keys are the names of the fields."""
        return asdict(self)


def inspect(source: Source) -> Inspection:
    """Read a table and inspect it. Columns whose cells cannot be used are marked, and the others inspected.

    Raises:
        TableError: the table cannot be read, has no usable times, or has no usable column.
    """
    try:
        return Inspection.of(read_source(source))
    except TableError as error:
        faults = error.errors if isinstance(error, TableErrors) else [error]
        bad = [fault for fault in faults if isinstance(fault, ColumnError)]
        names = [fault.column for fault in bad]
        # A column of groups or labels is no feature: without it the rows mean something else.
        if len(bad) < len(faults) or set(names) & {source.group, source.split_by, source.label}:
            raise
        try:
            series = read_source(_without(source, names))
        except MissingColumn:
            raise error from None
        except TableError as other:
            raise TableErrors([*bad, *(other.errors if isinstance(other, TableErrors) else [other])]) from None
    found = Inspection.of(series)
    marked = [
        Column(fault.column, source.units.get(fault.column, ""), "not usable", (fault.problem,), usable=False)
        for fault in bad
    ]
    return replace(found, columns=(*found.columns, *marked))


def _without(source: Source, names: list[str]) -> Source:
    """The source without some of its features."""
    return source.model_copy(
        update={
            "exclude": (*source.exclude, *names),
            "units": {name: unit for name, unit in source.units.items() if name not in names},
            "resample_by": tuple(text for text in source.resample_by if text.rpartition("=")[0] not in names),
            "known": tuple(name for name in source.known if name not in names),
            "categories": tuple(name for name in source.categories if name not in names),
        }
    )


def _column(series: Series, index: int) -> Column:
    name, unit, values = series.names[index], series.units[index], series.values[:, index]
    known = values[~np.isnan(values)].astype(np.float64)
    present = len(series) - len(series.filled)
    if not len(known):
        return Column(name, unit, "empty", (), missing=1.0)
    kind = "category" if name in series.categories else "whole numbers" if (known == known.round()).all() else "numbers"
    return Column(
        name=name,
        unit=unit,
        kind=kind,
        missing=1.0 - len(known) / present,
        low=float(known.min()),
        mean=float(known.mean()),
        high=float(known.max()),
        remarks=tuple(_remarks(series, values, known)),
    )


def _remarks(series: Series, values: Floats, known: npt.NDArray[np.float64]) -> Iterator[str]:
    """What looks wrong: a value that is repeated for long, and values far from all others."""
    if known.min() == known.max():
        yield f"always {known[0]:g}"
        return
    first, end = max((_longest_run(values, span) for span in series.spans), key=lambda run: run[1] - run[0])
    if end - first >= max(STUCK_ROWS, STUCK_SHARE * len(known)):
        yield f"stuck at {values[first]:g} for {end - first:,} rows from {series.stamp(series.times[first])}"
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
    spread = max(high - middle, middle - low)
    far = np.abs(values - middle) > FAR * spread if spread > 0 else np.zeros(len(values), np.bool_)
    if far.any():
        row = int(np.nanargmax(np.abs(values - middle)))
        yield f"{int(far.sum()):,} values far from the others, such as {values[row]:g} at {series.stamp(series.times[row])}"


def _longest_run(values: Floats, span: Span) -> Span:
    """The longest run of rows with the same value within the span; a missing value ends it."""
    first, end = span
    part = values[first:end]
    begins = np.concatenate([[0], np.flatnonzero(part[1:] != part[:-1]) + 1, [len(part)]])
    place = int(np.diff(begins).argmax())
    return first + int(begins[place]), first + int(begins[place + 1])


def _longest_gaps(series: Series) -> Iterator[Gap]:
    """The longest gaps that cut the series."""
    steps_s = steps_s_of(series.times)
    ends = [end - 1 for span in series.spans for _, end in series.segments((span,))[:-1]]
    for row in sorted(ends, key=lambda row: -steps_s[row])[:MAX_GAPS]:
        group = series.group_at(row).name if series.groups else ""
        yield Gap(series.stamp(series.times[row]), series.stamp(series.times[row + 1]), float(steps_s[row]), group)
