"""Features that are made from others: what is known of the future, the calendar, and the time since the last timestep.

Each is an ordinary feature of the served graph, so the client must be able to make it too: `docs/data.md` has the formulas.
A made feature is known by its name alone. A table that has a column of that name brings its values with it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from training.data.series import DAY_S, Floats, Series, ahead, steps_s_of
from training.errors import MissingColumn

# Length of the period in seconds, and what is added to Unix time so that it begins at 0: the week on a Monday, though
# 1970 began on a Thursday; the year is the mean one of the Gregorian calendar, so its phase wanders by up to a day.
PERIODS = {"day": (DAY_S, 0), "week": (7 * DAY_S, 3 * DAY_S), "year": (31_556_952, 0)}
ELAPSED = "elapsed_s"

_KNOWN = re.compile(r"(?P<column>.+)@\+(?P<horizon>[1-9][0-9]*)")
_CALENDAR = re.compile(f"(?P<period>{'|'.join(PERIODS)})_(?P<wave>sin|cos)")


def made_names(known: Sequence[str], horizons: Sequence[int], calendar: Sequence[str], *, elapsed: bool) -> list[str]:
    """The names of the features to make, in the order in which they follow those of the table."""
    return [
        *(f"{column}@+{horizon}" for column in known for horizon in horizons),
        *(f"{period}_{wave}" for period in calendar for wave in ("sin", "cos")),
        *([ELAPSED] if elapsed else []),
    ]


def can_make(name: str) -> bool:
    """Whether the name is that of a made feature."""
    return name == ELAPSED or bool(_KNOWN.fullmatch(name) or _CALENDAR.fullmatch(name))


def add(series: Series, names: Sequence[str]) -> Series:
    """The series with these features behind its own.

    Raises:
        MissingColumn: a feature whose future is wanted is not there.
    """
    if not names:
        return series
    columns = np.empty((len(series), len(series.names) + len(names)), np.float32)
    columns[:, : len(series.names)] = series.values
    for index, name in enumerate(names, start=len(series.names)):
        columns[:, index] = _made(series, name)
    units = tuple(_unit(series, name) for name in names)
    return replace(series, names=(*series.names, *names), units=(*series.units, *units), values=columns)


def _made(series: Series, name: str) -> Floats:
    """(time,)."""
    if known := _KNOWN.fullmatch(name):
        if known["column"] not in series.names:
            raise MissingColumn(
                f"{series.name}: no column {known['column']!r}, whose future {name!r} holds; there are: "
                f"{', '.join(series.names)}"
            )
        return ahead(series, [series.column(known["column"])], [int(known["horizon"])], series.spans)[:, 0, 0]
    if calendar := _CALENDAR.fullmatch(name):
        return _wave(series, calendar["period"], calendar["wave"])
    assert name == ELAPSED, name  # `can_make` knows no other
    elapsed = np.full(len(series), np.nan, np.float32)
    elapsed[1:] = steps_s_of(series.times)
    elapsed[[first for first, _ in series.spans]] = np.nan
    return elapsed


def _wave(series: Series, period: str, wave: str) -> Floats:
    length_s, shift_s = PERIODS[period]
    second_ns = 1_000_000_000
    # In whole nanoseconds, because seconds since 1970 leave float64 few digits for the phase of a day.
    within = (series.times.astype("datetime64[ns]").astype(np.int64) + shift_s * second_ns) % (length_s * second_ns)
    phase = within * (2.0 * np.pi / (length_s * second_ns))
    waves: Floats = (np.sin(phase) if wave == "sin" else np.cos(phase)).astype(np.float32)
    return waves


def _unit(series: Series, name: str) -> str:
    known = _KNOWN.fullmatch(name)
    return series.units[series.column(known["column"])] if known else "s" if name == ELAPSED else ""
