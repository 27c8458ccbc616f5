"""Text with dates -> nanoseconds, under each order of day, month and year."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegate.training.data.series import Times

ORDERS = ("dmy", "mdy", "ymd")
# Two digits of a year below this are of this century, as POSIX has it.
PIVOT_YEAR = 69
_WEEKDAY = r"^(?:\p{L}{2,9}[,.]?\s+)?"
_CLOCK = (
    r"(?:(?:T|[ ,_]+)(?P<H>\d{1,2})(?:[:.h](?P<M>\d{1,2})(?:[:.](?P<S>\d{1,2})(?:[.,](?P<f>\d{1,9}))?)?)?"
    r"\s*(?P<p>[AaPp]\.?\s?[Mm]\.?)?\s*(?P<z>Z|z|UTC|GMT|[-+]\d{2}(?::?\d{2})?)?)?$"
)
_NUMERIC = _WEEKDAY + r"(?P<a>\d{1,4})[-/. ](?P<b>\d{1,2})[-/. ](?P<c>\d{1,4})\.?" + _CLOCK
_DIGITS = r"^(?P<a>\d{4})(?P<b>\d{2})(?P<c>\d{2})" + _CLOCK
_DENSE = (
    r"^(?P<a>\d{4})(?P<b>\d{2})(?P<c>\d{2})[T _-]?(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})?(?:\.(?P<f>\d{1,9}))?(?P<p>)"
    r"(?P<z>Z|[-+]\d{2}(?::?\d{2})?)?$"
)
_NAMED = _WEEKDAY + r"(?P<x>\d{0,4})[-/. ]*(?P<m>\p{L}{3,10})\.?[-/., ]*(?P<y>\d{1,4}),?[-/. ]*(?P<w>\d{4})?" + _CLOCK
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:$|[T ]\d\d:\d\d)")
_ISO_ZONE = re.compile(r"\d\d:\d\d.*(?:Z|[-+]\d\d:?(?:\d\d)?)$")
_FIXED = r"^\d\d[-/.]\d\d[-/.]\d{4}(?:[T ]\d\d:\d\d(?::\d\d)?)?$"
_FIXED_LENGTHS = (10, 16, 19)
_PLACES = {"a": (0, 2), "b": (3, 5), "c": (6, 10), "H": (11, 13), "M": (14, 16), "S": (17, 19)}
# English and German.
_MONTHS = {
    name: number
    for number, names in enumerate(
        ("jan", "feb", "mar mär mrz", "apr", "may mai", "jun", "jul", "aug", "sep", "oct okt", "nov", "dec dez"),
        start=1,
    )
    for name in names.split()
}
Ints = npt.NDArray[np.int64]


def parse_dates(text: Any, orders: Sequence[str]) -> tuple[dict[str, Times], int]:
    """The times of a block under each order, and how many of them have an offset to UTC, which is taken off.

    A cell that is no time in an order is NaT, as is a missing one.
    """
    first = text.drop_null()[0].as_py()
    if _ISO.match(first):  # a cast that fails is slow
        zone = "UTC" if _ISO_ZONE.search(first) else None
        try:
            # ISO 8601, the usual case, at the speed of C.
            times = text.cast(pa.timestamp("ns", zone)).to_numpy(zero_copy_only=False).astype("datetime64[ns]")
            return dict.fromkeys(orders, times), len(text) - text.null_count if zone else 0
        except pa.ArrowInvalid:
            pass
    fields, matched = _fixed_fields(text) or _fields(text)
    within, clock_ok, zoned_rows = _clock(fields)
    result = {}
    for order in orders:
        days, ok = _days(fields, order)
        times = (days * 86_400_000_000_000 + within).view("datetime64[ns]")
        result[order] = np.where(ok & clock_ok & matched, times, np.datetime64("NaT", "ns"))
    return result, zoned_rows


def _fixed_fields(text: Any) -> tuple[dict[str, Any], npt.NDArray[np.bool_]] | None:
    """The fields of `01.03.2024 00:10:00` cut at fixed places, which is ten times as fast; None if a cell is otherwise."""
    longest = pc.max(pc.binary_length(text)).as_py()
    if longest not in _FIXED_LENGTHS or not pc.all(pc.match_substring_regex(text, _FIXED), min_count=0).as_py():
        return None
    if pc.min(pc.binary_length(text)).as_py() != longest:
        return None
    fields = {
        name: pc.utf8_slice_codeunits(text, first, end) if end <= longest else pa.nulls(len(text), pa.string())
        for name, (first, end) in _PLACES.items()
    }
    fields |= dict.fromkeys("fpz", pa.nulls(len(text), pa.string()))
    return fields, text.is_valid().to_numpy(zero_copy_only=False)


def _fields(text: Any) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
    """The fields of the first notation that fits all cells, empty ones null; and which cells fit."""
    for pattern in (_NUMERIC, _DENSE, _DIGITS, _NAMED):
        found = pc.extract_regex(text, pattern)
        if found.null_count == text.null_count:
            break
    else:
        found = pc.extract_regex(text, _NUMERIC)
    parts = {found.type.field(place).name: found.field(place) for place in range(found.type.num_fields)}
    valid = found.is_valid()
    fields = {name: pc.if_else(pc.and_(valid, pc.not_equal(part, "")), part, None) for name, part in parts.items()}
    return fields, valid.to_numpy(zero_copy_only=False)


def describe_order(order: str, example: str) -> str:
    """A notation in words, such as `day.month.year`."""
    if re.match(r"\d{8}", example):
        return "digits of year, month and day"
    if re.search(r"[^\W\d_]{3}", example) and not re.match(r"\d{4}-\d\d-\d\dT", example):
        return "day and month by name"
    separator = (re.search(r"\d([-/. ])\d", example) or [" ", "-"])[1]
    words = {"d": "day", "m": "month", "y": "year"}
    shown = separator.join(words[letter] for letter in ("ymd" if re.match(r"\d{4}", example) else order))
    return shown + (" with a 12-hour clock" if re.search(r"[AaPp]\.?\s?[Mm]\.?", example) else "")


def _ints(part: Any, missing: int = 0) -> Ints:
    return np.asarray(pc.fill_null(part.cast(pa.int64()), missing).to_numpy(zero_copy_only=False))


def _lengths(part: Any) -> Ints:
    return np.asarray(pc.fill_null(pc.utf8_length(part), 0).to_numpy(zero_copy_only=False)).astype(np.int64)


def _days(fields: dict[str, Any], order: str) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Days since 1970, and which rows have a valid date."""
    if "m" in fields:
        year, month, day = _named(fields)
        digits = np.full(len(year), 4)
    else:
        parts = {key: (_ints(fields[key], -1), _lengths(fields[key])) for key in "abc"}
        year_first = parts["a"][1] == 4
        chosen = dict(zip(order, "abc", strict=True))
        year, month, day = (
            np.where(year_first, parts[key][0], parts[chosen[letter]][0])
            for letter, key in zip("ymd", "abc", strict=True)
        )
        digits = np.where(year_first, 4, parts[chosen["y"]][1])
    year = np.where(digits == 2, year + np.where(year < PIVOT_YEAR, 2000, 1900), year)
    # The years that nanoseconds in 64 bits reach.
    ok = ((digits == 2) | (digits == 4)) & (year >= 1678) & (year <= 2261) & (month >= 1) & (month <= 12) & (day >= 1)
    safe_year, safe_month = np.where(ok, year, 1970), np.where(ok, month, 1)
    months = ((safe_year - 1970) * 12 + safe_month - 1).astype("datetime64[M]")
    first = months.astype("datetime64[D]")
    ok &= day <= ((months + 1).astype("datetime64[D]") - first).astype(np.int64)
    return first.astype(np.int64) + np.where(ok, day - 1, 0), ok


def _named(fields: dict[str, Any]) -> tuple[Ints, Ints, Ints]:
    """Year, month and day of dates such as 1 March 2024, Mar 1, 2024 or 2024-Mar-01; -1 where there is none."""
    encoded = fields["m"].dictionary_encode()
    names = [(name or "").lower() for name in encoded.dictionary.to_pylist()]
    numbers = np.array([*(_MONTHS.get(name[:3], -1) for name in names), -1], np.int64)
    month = numbers[_ints(encoded.indices, len(names))]
    x, y, w = (_ints(fields[key], -1) for key in "xyw")
    year = np.where(x < 0, w, np.where(x > 31, x, y))
    day = np.where(x < 0, y, np.where(x > 31, y, x))
    year = np.where((year >= 0) & (year < 100), year + np.where(year < PIVOT_YEAR, 2000, 1900), year)
    return year, month, day


def _clock(fields: dict[str, Any]) -> tuple[Ints, npt.NDArray[np.bool_], int]:
    """Nanoseconds of the day in UTC, if there is an offset; which rows are valid; and how many have an offset."""
    hour, minute, second = (_ints(fields[key]) for key in "HMS")
    fraction = _ints(pc.utf8_rpad(fields["f"], 9, "0"))
    half = pc.fill_null(pc.utf8_lower(fields["p"]), "")
    pm, am = (np.asarray(pc.starts_with(half, sign).to_numpy(zero_copy_only=False)) for sign in "pa")
    ok = (hour <= 24) & (minute <= 59) & (second <= 60) & ((hour < 24) | ((minute == 0) & (second == 0)))
    ok &= ~(pm | am) | ((hour >= 1) & (hour <= 12))
    hour = np.where(pm | am, hour % 12 + 12 * pm, hour)
    encoded = fields["z"].dictionary_encode()
    offsets = np.array([*(_offset_s(zone or "Z") for zone in encoded.dictionary.to_pylist()), 0], np.int64)
    offset_s = offsets[_ints(encoded.indices, len(offsets) - 1)]
    zoned = len(fields["z"]) - fields["z"].null_count
    return ((hour * 60 + minute) * 60 + second - offset_s) * 1_000_000_000 + fraction, ok, zoned


def _offset_s(zone: str) -> int:
    """Seconds east of Greenwich."""
    if zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return (1 if zone[0] == "+" else -1) * (int(digits[:2]) * 3600 + int(digits[2:]) * 60)
