"""Columns of times -> nanoseconds: all cells of a column together show its notation, never a single one.

Where two notations fit, day before month and month before day, and nothing tells them apart, the column is refused with both
readings. Numbers are days as digits (20240301), Unix times, or the days of a spreadsheet, by their size.

A spreadsheet program that expects month/day takes 02/01/2024, the second of January, for the first of February, and leaves
13/01/2024 as text. So where a column holds years first, of days up to 12 only, and text of days above 12 only, day and month of
the former may be exchanged. The order of the rows tells.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegate.training.data.cells import SAVE_AGAIN, UNCALCULATED
from tidegate.training.data.dates import ORDERS, describe_order, parse_dates
from tidegate.training.data.parse import text_of
from tidegate.training.data.series import Times, iso
from tidegate.training.data.unix import NUMERIC, numeric_times
from tidegate.training.errors import TimeColumnError

# --time-format by words -> the order of day, month and year; None: as it is written.
WORDS = {"iso": "ymd", "year-first": "ymd", "day-first": "dmy", "month-first": "mdy"}
# --time-format: a spreadsheet program has taken day for month.
EXCHANGED = "exchanged"
_OPTION = {"dmy": "day-first", "mdy": "month-first", "ymd": "year-first"}
_DIGITS = re.compile(r"[-+]?\d+(?:[.,]\d*)?(?:[eE][-+]?\d+)?")
DAY_NS = 86_400_000_000_000
# A clock that is read as day for month jumps by a month at midnight; no gap of a logger ends so often at one.
JUMP_NS = 27 * DAY_NS


@dataclass
class TimeReader:
    """Reads the times of a table block by block.

    Attributes:
        columns: one column of times, or several that are joined: date and time of day, or year, month, day, hour.
        label: of the table, in messages.
        time_format: see `Format`; None to guess.
        decimal: of numbers in text.
        days_before: what is added to days of a spreadsheet.
    """

    columns: Sequence[str]
    label: str
    time_format: str | None = None
    decimal: str = "."
    days_before: int = 0
    _numbers: list[npt.NDArray[Any]] = field(default_factory=list)
    _orders: dict[str, list[Times]] = field(default_factory=dict)
    _bad: dict[str, tuple[int, str]] = field(default_factory=dict)
    _rows: int = 0
    _with_zone: int = 0
    _known: int = 0
    _example: str = ""
    _typed: str = ""
    _years_first: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def __post_init__(self) -> None:
        word = self.time_format
        if word and word not in (*WORDS, *NUMERIC, EXCHANGED) and "%" not in word:
            expected = ", ".join((*WORDS, EXCHANGED, *NUMERIC))
            raise TimeColumnError(
                f"{self.label}: time format {word!r}, expected one of {expected}, or a pattern such as '%d.%m.%Y %H:%M'"
            )
        orders = [WORDS[word]] if word in WORDS else list(ORDERS)
        self._orders = {order: [] for order in orders}

    def add(self, batch: Any) -> None:
        """Read the times of a block."""
        parts = [batch.column(name) for name in self.columns]
        column = parts[0] if len(parts) == 1 else _joined(parts)
        kind = column.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            self._add_typed(column)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            self._numbers.append(_numeric(column))
        else:
            self._add_text(column)
        self._rows += len(column)

    def finish(self) -> tuple[Times, str, bool]:
        """All times, what they were taken for, and whether they are in UTC for certain.

        Raises:
            TimeColumnError: they are no times, or may be read in two ways.
        """
        shown = " and ".join(repr(name) for name in self.columns)
        if self._numbers and any(self._orders.values()):
            row, text = self._bad.get("", (1, self._example))
            raise self._error(f"holds numbers and other times, such as {text!r} in row {row}")
        if self._numbers:
            if self.time_format and self.time_format not in NUMERIC:
                raise self._error(f"holds numbers, and --time-format {self.time_format} is none of numbers")
            numbers = np.concatenate(self._numbers)
            times, what = numeric_times(numbers, self.time_format, f"{self.label}: column {shown}", self.days_before)
            return times, f"{shown} as {what}", what.startswith("Unix")
        alive = [order for order in self._orders if order not in self._bad]
        if not alive:
            order = max(self._bad, key=lambda order: self._bad[order][0])
            row, text = self._bad[order]
            # The names again, where files were joined, or a sum below the rows.
            advice = "" if any(map(str.isdigit, text)) else f" (--comment {text!r} leaves out lines that begin so)"
            advice = f" ({SAVE_AGAIN})" if text == UNCALCULATED else advice
            raise self._error(f"has {text!r} in row {row}{advice}")
        if 0 < self._with_zone < self._known:
            raise self._error("has an offset to UTC in some rows only")
        order, times = self._choose({order: np.concatenate(self._orders[order] or [_none()]) for order in alive})
        times, exchanged = self._mend_exchanged(order, times)
        zone = " in UTC" if self._with_zone else ""
        what = self._typed or describe_order(order, self._example)
        return times, f"{shown} as {what}{zone}{exchanged}", bool(self._with_zone)

    def _error(self, what: str) -> TimeColumnError:
        shown = " and ".join(repr(name) for name in self.columns)
        return TimeColumnError(
            f"{self.label}: column {shown} {what}, expected time stamps (ISO 8601, day.month.year, month/day/year, with a time "
            f"of day or in a column of its own), or Unix times; say how they are written with --time-format, such as "
            f"'%d.%m.%Y %H:%M'"
        )

    def _add_typed(self, column: Any) -> None:
        if getattr(column.type, "tz", None):
            self._with_zone += len(column) - column.null_count
        self._known += len(column) - column.null_count
        self._typed = "time stamps"
        self._years_first.append(np.ones(len(column), np.bool_))
        for arrays in self._orders.values():
            arrays.append(column.cast(pa.timestamp("ns")).to_numpy(zero_copy_only=False).astype("datetime64[ns]"))

    def _add_text(self, column: Any) -> None:
        text = pc.utf8_trim_whitespace(text_of(column))
        text = pc.if_else(pc.equal(text, ""), None, text)
        if text.null_count == len(text):
            self._years_first.append(np.zeros(len(text), np.bool_))
            for arrays in self._orders.values():
                arrays.append(np.full(len(text), np.datetime64("NaT", "ns")))
            return
        first = text.drop_null()[0].as_py()
        self._example = self._example or first
        if self.time_format and "%" in self.time_format:
            self._add_pattern(text, self.time_format)
            return
        if self.time_format not in WORDS:
            numbers = _numbers_of_text(text, self.decimal)
            if numbers is not None:
                self._numbers.append(numbers)
                return
            if self._numbers:
                self._bad.setdefault("", (self._rows + 1, first))
        if self.time_format in NUMERIC:
            raise self._error(f"has {first!r}, which is no number")
        self._add_dates(text)

    def _add_dates(self, text: Any) -> None:
        parsed, zoned = parse_dates(text, [order for order in self._orders if order not in self._bad])
        missing = text.is_null().to_numpy(zero_copy_only=False)
        self._years_first.append(
            pc.fill_null(pc.match_substring_regex(text, r"^\d{4}-"), False).to_numpy(zero_copy_only=False)
        )
        self._with_zone, self._known = self._with_zone + zoned, self._known + int((~missing).sum())
        for order, times in parsed.items():
            wrong = np.flatnonzero(np.isnat(times) & ~missing)
            if len(wrong):
                self._bad[order] = (self._rows + int(wrong[0]) + 1, text[int(wrong[0])].as_py())
                self._orders[order].clear()
            else:
                self._orders[order].append(times)

    def _add_pattern(self, text: Any, pattern: str) -> None:
        """Times by a pattern of strptime, one by one: slow, and exact."""
        times = np.full(len(text), np.datetime64("NaT", "ns"))
        for row, cell in enumerate(text.to_pylist()):
            if cell is None:
                continue
            try:
                time = datetime.strptime(cell, pattern)  # noqa: DTZ007  the zone is another option
            except ValueError:
                raise TimeColumnError(
                    f"{self.label}: column {self.columns[0]!r} has {cell!r} in row {self._rows + row + 1}, expected a time as "
                    f"{pattern!r}; see --time-format"
                ) from None
            self._known += 1
            if time.tzinfo:
                self._with_zone += 1
                time = time.astimezone(UTC).replace(tzinfo=None)
            times[row] = np.datetime64(time, "ns")
        self._typed = pattern
        self._years_first.append(np.zeros(len(text), np.bool_))
        for arrays in self._orders.values():
            arrays.append(times)

    def _choose(self, readings: dict[str, Times]) -> tuple[str, Times]:
        """The reading of the column; those that agree in all rows are one."""
        kept = dict(readings)
        for order in list(kept)[1:]:
            first = next(iter(kept.values()))
            if np.array_equal(kept[order].view(np.int64), first.view(np.int64)):
                del kept[order]
        if len(kept) > 1:
            # Within days the steps of all readings agree; the wrong one jumps over a month at midnight.
            smooth = [order for order, times in kept.items() if not _jumps(times)]
            if len(smooth) == 1:
                kept = {smooth[0]: kept[smooth[0]]}
        if len(kept) > 1:
            one, other = list(kept)[:2]
            row = int(np.argmax(kept[one] != kept[other]))
            raise TimeColumnError(
                f"{self.label}: column {self.columns[0]!r} may be read in two ways: row {row + 1} is "
                f"{iso(kept[one][row])} or {iso(kept[other][row])}; say which with --time-format {_OPTION[one]} or --time-format "
                f"{_OPTION[other]}"
            )
        return next(iter(kept.items()))

    def _mend_exchanged(self, order: str, times: Times) -> tuple[Times, str]:
        """The times with day and month exchanged again, and what to say of it, where a spreadsheet program exchanged them.

        Raises:
            TimeColumnError: both may be and the order of the rows does not tell, or it is asked for and cannot be.
        """
        years_first = np.concatenate(self._years_first or [np.zeros(len(times), np.bool_)])
        known, asked = ~np.isnat(times), self.time_format == EXCHANGED
        dates, text = known & years_first, known & ~years_first
        if not asked and not (dates.any() and text.any()):
            return times, ""
        days = _day_of_month(times)
        wrong = (dates & (days > 12)) | (text & (days <= 12))
        if asked and (wrong.any() or not dates.any()):
            row = int(np.argmax(wrong if wrong.any() else known))
            raise self._error(f"has {iso(times[row])} in row {row + 1}, whose day and month are not exchanged")
        if wrong.any():
            return times, ""
        mended = np.where(dates, _exchange(times), times)
        as_they_are, exchanged = _in_order(times[known]), _in_order(mended[known])
        if asked or (exchanged and not as_they_are):
            return (
                mended,
                ", day and month of the dates exchanged, which a spreadsheet program had taken for each other",
            )
        if exchanged == as_they_are and self.time_format is None:
            row, other = int(np.argmax(dates)), int(np.argmax(text))
            raise TimeColumnError(
                f"{self.label}: column {self.columns[0]!r} holds dates up to the 12th of a month, such as {iso(times[row])} in row "
                f"{row + 1}, and text with days above it, such as that of {iso(times[other])} in row {other + 1}: a spreadsheet program "
                f"may have taken day for month; --time-format {EXCHANGED} exchanges them again, --time-format {_OPTION[order]} takes the "
                f"dates as they are"
            )
        return times, ""


def _in_order(times: Times) -> bool:
    """Whether times rise, or fall, from row to row."""
    steps = np.diff(times).view(np.int64)
    return bool((steps >= 0).all() or (steps <= 0).all())


def _day_of_month(times: Times) -> npt.NDArray[np.int64]:
    days: npt.NDArray[np.int64] = (times.astype("datetime64[D]") - times.astype("datetime64[M]")).astype(np.int64) + 1
    return days


def _exchange(times: Times) -> Times:
    """Times with day and month exchanged, where the day is at most 12."""
    months, days = times.astype("datetime64[M]"), _day_of_month(times)
    years = times.astype("datetime64[Y]")
    month = (months - years).astype(np.int64) + 1
    within = times - times.astype("datetime64[D]")
    ok = ~np.isnat(times) & (days <= 12)
    first = (years.astype("datetime64[M]") + np.where(ok, days - 1, 0)).astype("datetime64[D]")
    return np.where(ok, (first + (month - 1)).astype("datetime64[ns]") + within, times)


def _jumps(times: Times) -> bool:
    """Whether times within days jump over most of a month."""
    steps = np.abs(np.diff(np.sort(times[~np.isnat(times)]).view(np.int64)))
    return bool(len(steps)) and float(np.median(steps)) < DAY_NS / 2 and bool((steps > JUMP_NS).any())


def _none() -> Times:
    return np.empty(0, "datetime64[ns]")


def _joined(parts: Sequence[Any]) -> Any:
    """The cells of several columns as one text, with a space between them; a typed date has no time of day."""
    texts = []
    for part in parts:
        if pa.types.is_timestamp(part.type):
            part = part.cast(pa.date32())  # noqa: PLW2901  the column, as text
        texts.append(pc.utf8_trim_whitespace(part.cast(pa.string())))
    # A sheet writes a date as a time stamp at midnight, and a time of day as one of the year 1899.
    texts[0] = pc.replace_substring_regex(texts[0], r"[ T]00:00:00$", "")
    texts[1:] = [pc.replace_substring_regex(text, r"^1899-12-3[01][ T]", "") for text in texts[1:]]
    return pc.binary_join_element_wise(*texts, " ")


def _numeric(column: Any) -> npt.NDArray[Any]:
    """Whole numbers stay exact; a missing one makes the block float64."""
    if pa.types.is_integer(column.type) and not column.null_count:
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _numbers_of_text(text: Any, decimal: str) -> npt.NDArray[Any] | None:
    """The numbers of a block of text; None if some cell is no number."""
    first = text.drop_null()[0].as_py()
    if not _DIGITS.fullmatch(first):  # a cast that fails is slow
        return None
    for kind in (pa.int64(), pa.float64()):
        try:
            return _numeric(pc.replace_substring(text, decimal, ".").cast(kind))
        except pa.ArrowInvalid:
            continue
    return None
