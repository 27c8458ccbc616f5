"""Rows -> one row for each period: the mean, the last value or the sum of each column."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tidegate.training.data.arrays import TableArrays
from tidegate.training.data.rows import regrouped
from tidegate.training.data.series import Floats, Group
from tidegate.training.errors import SettingsError
from tidegate.training.settings import Format

_UNITS_S = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "t": 60.0, "h": 3600.0, "d": 86_400.0}
WAYS = ("mean", "last", "sum")


def seconds_of(text: str) -> float:
    """The seconds of a period such as 10min, 1h, 30s or 1d.

    Raises:
        SettingsError: it is no period.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)?\s*([a-z]+)", text.strip().lower())
    if not found or found[2] not in _UNITS_S or float(found[1] or 1) <= 0:
        raise SettingsError(f"resample: got {text!r}, expected a period such as 30s, 10min, 1h or 1d")
    return float(found[1] or 1) * _UNITS_S[found[2]]


def resample(
    arrays: TableArrays, groups: tuple[Group, ...], options: Format
) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """One row for each period that has rows; its time is the beginning of the period, counted from 1970 in UTC.

    Returns the groups and what was done, in words. Categories and labels keep the last of their period.

    Raises:
        SettingsError: the options name no period, no such column or no such way.
    """
    ways = dict(_way(text, arrays.names) for text in options.resample_by)
    if options.resample is None:
        if ways:
            raise SettingsError("resample-by: without a period, expected it with --resample")
        return groups, ()
    if arrays.plan.times is None:
        raise SettingsError(
            f"resample: {arrays.table.name} has no times, expected a column of times; name it with --time"
        )
    step = round(seconds_of(options.resample) * 1e9)
    rows = len(arrays.times)
    periods = arrays.times.view(np.int64) // step
    begins = np.ones(rows, bool)
    begins[1:] = periods[1:] != periods[:-1]
    begins[[group.first for group in groups]] = True
    firsts = np.flatnonzero(begins)
    lasts = np.append(firsts[1:], rows) - 1
    for column in arrays.plan.categories:
        ways.setdefault(column, "last")
    values = np.empty((len(firsts), arrays.values.shape[1]), np.float32)
    for index, name in enumerate(arrays.names):
        values[:, index] = _aggregate(arrays.values[:, index], firsts, ways.get(name, "mean"))
    arrays.values = values
    arrays.times = (periods[firsts] * step).view("datetime64[ns]")
    arrays.codes = {role: codes[lasts] for role, codes in arrays.codes.items()}
    others = ", ".join(f"{way} of {name}" for name, way in ways.items() if way != "mean")
    return regrouped(groups, firsts), (
        f"one row for each {options.resample}: {len(firsts)} of {rows} rows, the mean of each column"
        + (f" but the {others}" if others else ""),
    )


def _way(text: str, names: Sequence[str]) -> tuple[str, str]:
    column, _, way = text.rpartition("=")
    if column not in names or way not in WAYS:
        raise SettingsError(
            f"resample-by: got {text!r}, expected a column and one of {', '.join(WAYS)}, as rain=sum; there are: {', '.join(names)}"
        )
    return column, way


def _aggregate(column: Floats, firsts: npt.NDArray[np.intp], way: str) -> npt.NDArray[np.float64]:
    """(periods,) without missing values; NaN where a period has none."""
    known = ~np.isnan(column)
    counts = np.add.reduceat(known, firsts, dtype=np.int64)
    if way == "last":
        places = np.maximum.reduceat(np.where(known, np.arange(len(column)), -1), firsts)
        return np.where(counts > 0, column[np.maximum(places, 0)].astype(np.float64), np.nan)
    sums = np.add.reduceat(np.where(known, column, 0.0).astype(np.float64), firsts)
    return np.where(counts > 0, sums / np.maximum(counts, 1) if way == "mean" else sums, np.nan)
