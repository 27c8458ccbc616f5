"""When the rows of a file were measured. The usual ways to write a time are read, and a file has one of them for all rows.

`tidegate train` reads more: times of day in a column of their own, months in other languages.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise

import numpy as np

from tidegate.cli.local_times import to_utc
from tidegate.core.spec import Array

ISO = "iso"
EXCEL = "excel"
# Unix times of the years 1971 to 2100 in seconds: in each unit they lie apart from those in the others.
FIRST_UNIX_S, LAST_UNIX_S = 31_536_000, 4_102_444_800
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Spreadsheets count days from here, on a local clock; 25569 is 1970 and 73051 is 2100.
EXCEL_EPOCH = datetime(1899, 12, 30)  # noqa: DTZ001  the file tells no zone
EXCEL_DAYS = (25_569, 73_051)
DAY_S = 86_400
# The median step of a reading is that of the model if it lies so near: `PERIOD_TOLERANCE` of `stretches`.
NEAR = 0.1
# A column of numbers holds times only if the training had them there, or if it is called so, as `training/data/columns.py` has it.
TIME_NAMES = frozenset(
    [
        *(
            "time",
            "timestamp",
            "datetime",
            "date",
            "ts",
            "epoch",
            "unix",
            "unixtime",
            "unix_time",
            "time_stamp",
            "date_time",
        ),
        *(
            "_time",
            "utc",
            "zeit",
            "zeitstempel",
            "datum",
            "datum_zeit",
            "fecha",
            "heure",
            "tid",
            "data_hora",
            "time_utc",
        ),
        *("timestamp_ms", "time_ms", "epoch_ms", "timestamp_ns"),
    ]
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# Digits of year, month, day, and perhaps the time of day; 2024030100 is no Unix time if all rows can be read so.
_COMPACT = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_YEARS = range(1900, 2101)
_DAY_FIRST = tuple(f"%d{sign}%m{sign}{year}" for sign in "./-" for year in ("%Y", "%y"))
_MONTH_FIRST = tuple(f"%m{sign}%d{sign}{year}" for sign in "/-." for year in ("%Y", "%y"))
_OTHERS = ("%Y/%m/%d", "%Y-%m-%d", "%Y.%m.%d", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y")
_CLOCKS = ("", *(f"{sign}{clock}" for sign in " T" for clock in ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f")))
_TWELVE_HOURS = (" %I:%M %p", " %I:%M:%S %p")


@dataclass(frozen=True, slots=True)
class Times:
    """The times of rows, and how they are written: `iso`, `excel`, a unit of Unix time, or a pattern of `strptime`.

    `zone` is that of the clock that wrote them, if it was given; then the moments are in UTC.
    """

    notation: str
    moments: tuple[datetime, ...]
    zone: tzinfo | None = None

    def take(self, rows: Sequence[int]) -> "Times":
        """The times of some rows."""
        return replace(self, moments=tuple(self.moments[row] for row in rows))

    def text(self, moment: datetime) -> str:
        """A time as the file would write it."""
        if self.zone:
            moment = moment.astimezone(self.zone).replace(tzinfo=None)
        if self.notation == EXCEL:
            return f"{(moment.replace(tzinfo=None) - EXCEL_EPOCH) / timedelta(days=1):.15g}"
        if self.notation == ISO:
            return moment.isoformat()
        if self.notation in UNITS:
            return str(round((moment - EPOCH) / timedelta(microseconds=1) * UNITS[self.notation] / 10**6))
        return moment.strftime(self.notation)


def read_times(
    labels: Sequence[str],
    groups: Sequence[str] = (),
    *,
    numbers: bool = True,
    trained: str = "",
    period_s: float | None = None,
    zone: tzinfo | None = None,
) -> Times | None:
    """The times of the rows; None if they are written in another way, or may be read in two ways.

    Args:
        labels: of all rows.
        groups: the series of each row; empty if there is one.
        numbers: whether numbers may be times.
        trained: the `--time-format` of the training.
        period_s: of the model. Of two readings with other usual steps, that with such steps is taken.
        zone: of the clock that wrote the times, if they have no offset and are no Unix times.

    Raises:
        UnknownTime: the clock leaves a time out.
    """
    times = _read_times(labels, groups, numbers, trained, period_s)
    if times is None or zone is None or any(moment.tzinfo for moment in times.moments):
        return times
    return replace(times, moments=to_utc(times.moments, zone, groups), zone=zone)


def _read_times(
    labels: Sequence[str], groups: Sequence[str], numbers: bool, trained: str, period_s: float | None
) -> Times | None:
    cells = [label.strip() for label in labels]
    if not numbers and all(map(_NUMBER.fullmatch, cells)):
        return None
    readings = [Times(notation, moments) for notation, moments in _readings(cells, trained, period_s)]
    if len(readings) < 2:
        return readings[0] if readings else None
    steps = [steps_s(reading.moments, groups) for reading in readings]
    possible = [index for index, own in enumerate(steps) if (own >= 0).all()] or list(range(len(readings)))
    usual = [float(np.median(own)) if len(own) else 0.0 for own in steps]
    if len({usual[index] for index in possible}) > 1:
        possible = [index for index in possible if period_s and abs(usual[index] - period_s) <= NEAR * period_s]
    if not possible or len({usual[index] for index in possible}) > 1:
        return None
    # The wrong order of day and month jumps by a month at midnight.
    return readings[min(possible, key=lambda index: float(steps[index].sum()))]


def steps_s(moments: Sequence[datetime], groups: Sequence[str] = ()) -> Array:
    """The seconds from each row to the next of its series, one series after the other."""
    rows: dict[str, list[datetime]] = {}
    for row, moment in enumerate(moments):
        rows.setdefault(groups[row] if groups else "", []).append(moment)
    return np.array([(after - before).total_seconds() for own in rows.values() for before, after in pairwise(own)])


def _readings(cells: Sequence[str], trained: str, period_s: float | None) -> Iterator[tuple[str, tuple[datetime, ...]]]:
    """Each notation that fits all cells, with their times."""
    if all(map(_NUMBER.fullmatch, cells)) and "%" not in trained:
        found = _of_days(cells, trained, period_s) or _of_numbers(cells, trained)
        return iter([found] if found else [])
    iso = None if "%" in trained else _all(cells, datetime.fromisoformat)
    # Times with and without an offset do not compare.
    if iso and len({moment.tzinfo is None for moment in iso}) == 1:
        return iter([(ISO, iso)])
    return _of_patterns(cells, trained)


def _of_numbers(cells: Sequence[str], trained: str) -> tuple[str, tuple[datetime, ...]] | None:
    """Digits of a date, or Unix times, whose size tells the unit."""
    pattern = _COMPACT.get(len(cells[0])) if trained in ("", "compact") else None
    if pattern and (moments := _all(cells, lambda cell: _compact(cell, pattern))):
        return pattern, moments
    numbers = [float(cell) for cell in cells]
    for word, unit in UNITS.items():
        if trained == word or (
            not trained and FIRST_UNIX_S * unit <= min(numbers) and max(numbers) <= LAST_UNIX_S * unit
        ):
            return word, tuple(EPOCH + timedelta(microseconds=round(number * 10**6 / unit)) for number in numbers)
    return None


def _of_days(cells: Sequence[str], trained: str, period_s: float | None) -> tuple[str, tuple[datetime, ...]] | None:
    """Days of a spreadsheet, if the training had them or if their steps are those of the model; they may be seconds too."""
    days = np.array([float(cell) for cell in cells])
    if trained not in ("", EXCEL) or days.min() < EXCEL_DAYS[0] or days.max() >= EXCEL_DAYS[1]:
        return None
    step_s = float(np.median(np.diff(days))) * DAY_S if len(days) > 1 else 0.0
    if trained != EXCEL and not (period_s and abs(step_s - period_s) <= NEAR * period_s):
        return None
    # Few digits hide some seconds: whole minutes or seconds are meant, if the digits allow them.
    digits = max(len(cell.partition(".")[2]) for cell in cells)
    seconds = days * DAY_S
    for unit_s in (60, 1):
        whole = np.rint(seconds / unit_s) * unit_s
        if np.abs(whole - seconds).max() <= max(0.51 * DAY_S / 10**digits, 1e-3):
            seconds = whole
            break
    return EXCEL, tuple(EXCEL_EPOCH + timedelta(milliseconds=round(part * 1000)) for part in seconds.tolist())


def _compact(cell: str, pattern: str) -> datetime:
    moment = datetime.strptime(cell, pattern)  # noqa: DTZ007  the file tells no zone
    if moment.year not in _YEARS or moment.strftime(pattern) != cell:
        raise ValueError(cell)
    return moment


def _of_patterns(cells: Sequence[str], trained: str) -> Iterator[tuple[str, tuple[datetime, ...]]]:
    """The patterns of `strptime` that fit all cells."""
    if "%" in trained:
        patterns = [trained]
    else:
        dates = {"day-first": _DAY_FIRST, "month-first": _MONTH_FIRST}.get(trained, (*_DAY_FIRST, *_MONTH_FIRST))
        patterns = [date + clock for date in (*dates, *_OTHERS) for clock in (*_CLOCKS, *_TWELVE_HOURS)]
    for pattern in patterns:
        moments = _all(cells, lambda cell, pattern=pattern: datetime.strptime(cell, pattern))  # type: ignore[misc]  # noqa: DTZ007  the file tells no zone
        if moments:
            yield pattern, moments


def _all(cells: Sequence[str], read: Callable[[str], datetime]) -> tuple[datetime, ...] | None:
    """The times of all cells; None if one is no such time. In most columns without times the first cell already is none."""
    try:
        return tuple(read(cell) for cell in cells)
    except ValueError:
        return None
