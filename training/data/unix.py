"""Numbers -> nanoseconds: Unix times, days as digits (20240301), and the days of a spreadsheet. Their size tells them apart."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Times
from tidegate.training.errors import TimeColumnError

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
NUMERIC = (*UNITS, "compact", "excel")
# Unix times of the years 1971 to 2100 in seconds: in each unit they lie apart from those in the others.
FIRST_UNIX_S, LAST_UNIX_S = 31_536_000, 4_102_444_800
# Spreadsheets count days from here; 25569 is 1970 and 73051 is 2100.
EXCEL_EPOCH = np.datetime64("1899-12-30", "ns")
EXCEL_DAYS = (25_569, 73_051)
DAY_S = 86_400
# The years that 20240301 and the like may begin with.
YEARS = (1900, 2100)
# Seconds between rows that a person sets.
_USUAL_STEPS_S = (
    1,
    2,
    5,
    10,
    15,
    20,
    30,
    *(60 * m for m in (1, 2, 3, 5, 6, 10, 12, 15, 20, 30)),
    *(3600 * h for h in (1, 2, 3, 4, 6, 8, 12)),
)
_NAT = np.datetime64("NaT", "ns")


def numeric_times(
    numbers: npt.NDArray[Any], time_format: str | None, subject: str, days_before: int = 0
) -> tuple[Times, str]:
    """The times of numbers, and what they were taken for.

    Args:
        numbers: (rows,) int64, or float64 with NaN for missing.
        time_format: one of `NUMERIC`; None to guess.
        subject: the column, in messages.
        days_before: what is added to days of a spreadsheet.

    Raises:
        TimeColumnError: they fit no notation, or two.
    """
    known = np.isfinite(numbers)
    if not known.any():
        return np.full(len(numbers), _NAT), "nothing"
    low, high = numbers[known].min(), numbers[known].max()
    word = time_format or _guess(numbers[known], float(low), float(high), subject)
    if word == "compact":
        return _compact(numbers, known, subject), "digits of year, month and day"
    if word == "excel":
        seconds = _seconds_of_days(np.where(known, numbers, 0.0).astype(np.float64))
        times = EXCEL_EPOCH + np.rint(seconds * 1000).astype(np.int64).astype("timedelta64[ms]").astype(
            "timedelta64[ns]"
        )
        return np.where(known, times + np.timedelta64(days_before, "D"), _NAT), "days of a spreadsheet"
    unit = UNITS[word]
    if not (abs(float(low)) < 9.2e9 * unit and abs(float(high)) < 9.2e9 * unit):
        raise TimeColumnError(f"{subject} has {high:g}, which is no Unix time in {word}; say which with --time-format")
    ns = 10**9 // unit
    if numbers.dtype.kind == "f":
        whole = np.floor(np.where(known, numbers, 0.0))
        rest = np.where(known, numbers, 0.0) - whole
        nanoseconds = whole.astype(np.int64) * ns + np.rint(rest * ns).astype(np.int64)
    else:
        nanoseconds = numbers.astype(np.int64) * ns
    names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    return np.where(known, nanoseconds.view("datetime64[ns]"), _NAT), f"Unix {names[word]}"


def _guess(numbers: npt.NDArray[Any], low: float, high: float, subject: str) -> str:
    whole = bool((numbers == np.rint(numbers)).all())
    if whole and low > 0 and _is_compact(numbers.astype(np.int64)):
        return "compact"
    if EXCEL_DAYS[0] <= low and high < EXCEL_DAYS[1]:
        return _days_or_seconds(numbers, subject)
    for word, unit in UNITS.items():
        if FIRST_UNIX_S * unit <= low and high <= LAST_UNIX_S * unit:
            return word
    # From some start on, as loggers count: seconds, whose zero is that of the series.
    if low >= -FIRST_UNIX_S and high <= LAST_UNIX_S:
        return "s"
    raise TimeColumnError(
        f"{subject} has numbers from {low:.15g} to {high:.15g}, which are neither Unix times of 1971 to 2100 in s, ms, us or ns, nor "
        f"digits such as 20240301; say what they are with --time-format"
    )


def _days_or_seconds(numbers: npt.NDArray[Any], subject: str) -> str:
    """45352.0069 is a day of a spreadsheet, if its steps are usual ones; else it may be seconds from some start on."""
    steps = np.abs(np.diff(numbers.astype(np.float64)))
    steps = steps[steps > 0]
    # Printed digits of a day hold some seconds of it: the steps differ, their mean does not.
    step = float(np.median(steps)) if len(steps) else 1.0
    step = float(np.mean(steps[np.abs(steps - step) < step / 2])) if len(steps) else 1.0
    usual_days = any(abs(step * DAY_S - usual) < 2e-3 * usual for usual in _USUAL_STEPS_S)
    usual_seconds = abs(step - round(step, 3)) < 1e-9 and (step >= 1 or abs(1 / step - round(1 / step)) < 1e-6)
    if usual_days and not usual_seconds:
        return "excel"
    first = numbers[0]
    day = np.datetime_as_string(EXCEL_EPOCH + np.timedelta64(int(first), "D"), unit="D")
    raise TimeColumnError(
        f"{subject} may be read in two ways: {first:.15g} is the day {day} of a spreadsheet, or a number of seconds; say which "
        f"with --time-format excel or --time-format s"
    )


def _seconds_of_days(days: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The seconds of days that were printed with few digits: whole minutes or seconds, if the digits allow them."""
    digits = next((d for d in range(10) if np.abs(days * 10**d - np.rint(days * 10**d)).max() < 1e-4), 10)
    hidden_s = 0.51 * DAY_S / 10**digits
    seconds = days * DAY_S
    for unit_s in (60, 1):
        whole = np.rint(seconds / unit_s) * unit_s
        if np.abs(whole - seconds).max() <= max(hidden_s, 1e-3):
            return whole
    return seconds


def _is_compact(numbers: npt.NDArray[np.int64]) -> bool:
    digits = len(str(int(numbers[0])))
    return digits in (8, 10, 12, 14) and not np.isnat(_split(numbers, digits)).any()


def _compact(numbers: npt.NDArray[Any], known: npt.NDArray[np.bool_], subject: str) -> Times:
    whole = np.where(known, numbers, 19700101).astype(np.int64)
    digits = len(str(int(numbers[known][0])))
    times = np.where(known, _split(whole, digits), _NAT)
    wrong = np.flatnonzero(known & np.isnat(times))
    if len(wrong):
        raise TimeColumnError(
            f"{subject} has {numbers[wrong[0]]:.15g} in row {wrong[0] + 1}, expected {digits} digits of year, month, day, hour"
        )
    return times


def _split(numbers: npt.NDArray[np.int64], digits: int) -> Times:
    """The times of numbers such as 20240301, 2024030100, 202403010010 or 20240301001000; NaT where one is none."""
    rest = numbers
    clock: list[npt.NDArray[np.int64]] = []
    for _ in range((digits - 8) // 2):
        rest, last = np.divmod(rest, 100)
        clock.insert(0, last)
    month_year, day = np.divmod(rest, 100)
    year, month = np.divmod(month_year, 100)
    ok = (year >= YEARS[0]) & (year <= YEARS[1]) & (month >= 1) & (month <= 12) & (day >= 1)
    months = np.where(ok, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    first = months.astype("datetime64[D]")
    ok &= day <= ((months + 1).astype("datetime64[D]") - first).astype(np.int64)
    hour, minute, second = (*clock, *[np.zeros_like(numbers)] * 3)[:3]
    ok &= ((hour < 24) & (minute < 60) & (second < 60)) | ((hour == 24) & (minute == 0) & (second == 0))
    seconds = (first.astype(np.int64) + np.where(ok, day - 1, 0)) * DAY_S + (hour * 60 + minute) * 60 + second
    return np.where(ok, (np.where(ok, seconds, 0) * 10**9).view("datetime64[ns]"), _NAT)
