"""Derived features: known future values, the calendar, and the time since the last timestep.

Each is an ordinary feature of the served graph, so a client must be able to derive it too: `docs/data.md` has the formulas.
The name alone identifies a derived feature. If a table has a column of that name, its values are taken.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tidegate.training.data.series import DAY_S, Floats, Series, future_values, steps_s_of
from tidegate.training.errors import MissingColumn

# The length of each period in seconds, and its offset to Unix time. The week begins on a Monday, though 1970 began on a
# Thursday. The year is the mean Gregorian one, so its phase is off by up to a day.
PERIODS = {"day": (DAY_S, 0), "week": (7 * DAY_S, 3 * DAY_S), "year": (31_556_952, 0)}
ELAPSED = "elapsed_s"

_KNOWN = re.compile(r"(?P<column>.+)@\+(?P<horizon>[1-9][0-9]*)")
_CALENDAR = re.compile(f"(?P<period>{'|'.join(PERIODS)})_(?P<wave>sin|cos)")


def derived_names(
    known: Sequence[str], horizons: Sequence[int], calendar: Sequence[str], *, elapsed: bool
) -> list[str]:
    """The names of the derived features, in the order in which they follow those of the table."""
    return [
        *(f"{column}@+{horizon}" for column in known for horizon in horizons),
        *(f"{period}_{wave}" for period in calendar for wave in ("sin", "cos")),
        *([ELAPSED] if elapsed else []),
    ]


def is_derived(name: str) -> bool:
    """Whether the name is that of a derived feature."""
    return name == ELAPSED or bool(_KNOWN.fullmatch(name) or _CALENDAR.fullmatch(name))


def add_derived(series: Series, names: Sequence[str]) -> Series:
    """The series with these derived features after its own.

    Raises:
        MissingColumn: the column of a known future does not exist.
    """
    if not names:
        return series
    columns = np.empty((len(series), len(series.names) + len(names)), np.float32)
    columns[:, : len(series.names)] = series.values
    for index, name in enumerate(names, start=len(series.names)):
        columns[:, index] = _derive(series, name)
    units = tuple(_unit(series, name) for name in names)
    return replace(series, names=(*series.names, *names), units=(*series.units, *units), values=columns)


def _derive(series: Series, name: str) -> Floats:
    """(time,)."""
    if known := _KNOWN.fullmatch(name):
        if known["column"] not in series.names:
            raise MissingColumn(
                f"{series.name}: no column {known['column']!r}, whose future {name!r} holds; there are: "
                f"{', '.join(series.names)}"
            )
        return future_values(series, [series.column(known["column"])], [int(known["horizon"])], series.spans)[:, 0, 0]
    if calendar := _CALENDAR.fullmatch(name):
        return _wave(series, calendar["period"], calendar["wave"])
    assert name == ELAPSED, name  # `is_derived` knows no other
    elapsed = np.full(len(series), np.nan, np.float32)
    elapsed[1:] = steps_s_of(series.times)
    elapsed[[first for first, _ in series.spans]] = np.nan
    return elapsed


def _wave(series: Series, period: str, wave: str) -> Floats:
    length_s, shift_s = PERIODS[period]
    second_ns = 1_000_000_000
    # In whole nanoseconds: seconds since 1970 leave float64 few digits for the phase of a day.
    within = (series.times.astype("datetime64[ns]").astype(np.int64) + shift_s * second_ns) % (length_s * second_ns)
    phase = within * (2.0 * np.pi / (length_s * second_ns))
    waves: Floats = (np.sin(phase) if wave == "sin" else np.cos(phase)).astype(np.float32)
    return waves


def _unit(series: Series, name: str) -> str:
    known = _KNOWN.fullmatch(name)
    return series.units[series.column(known["column"])] if known else "s" if name == ELAPSED else ""
