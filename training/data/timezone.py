"""Local times -> UTC. The hour that a clock shows twice is told apart by the order of the rows; the hour it leaves out is refused."""

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Times, iso
from tidegate.training.errors import TimeColumnError

# Clocks change at whole quarters of an hour.
SLOT_S = 900


def find_zone(name: str) -> tzinfo:
    """The zone of a name such as Europe/Berlin, or of an offset such as +01:00.

    Raises:
        TimeColumnError: there is no such zone.
    """
    if offset := re.fullmatch(r"([-+])(\d{2}):?(\d{2})", name):
        minutes = int(offset[2]) * 60 + int(offset[3])
        return timezone(timedelta(minutes=minutes if offset[1] == "+" else -minutes))
    if name.upper() in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise TimeColumnError(
            f"timezone: {name!r} is unknown, expected a name such as Europe/Berlin or an offset such as +01:00"
        ) from error


def to_utc(times: Times, zone: tzinfo, subject: str) -> tuple[Times, list[str]]:
    """The times of one series in UTC, and what was assumed, in words.

    Args:
        times: (rows,) of a local clock, in the order of the table; NaT is allowed.
        zone: of the clock.
        subject: the table and the column, in messages.

    Raises:
        TimeColumnError: a time does not exist, because the clock was set forward over it.
    """
    known = ~np.isnat(times)
    seconds = np.where(known, times, np.datetime64(0, "ns")).view(np.int64) // 10**9
    slots, place = np.unique(seconds // SLOT_S, return_inverse=True)
    moments = [datetime(1970, 1, 1) + timedelta(seconds=int(slot) * SLOT_S) for slot in slots]  # noqa: DTZ001  local
    # The offset before a change of the clock, and the one after it.
    before = np.array([_offset_s(zone, moment, fold=0) for moment in moments], np.int64)[place]
    after = np.array([_offset_s(zone, moment, fold=1) for moment in moments], np.int64)[place]
    absent = np.flatnonzero(known & (before < after))
    if len(absent):
        row = int(absent[0])
        raise TimeColumnError(
            f"{subject} has {iso(times[row])} in row {row + 1}, which {zone} leaves out: its clocks are set forward over it; "
            f"if this clock is never changed, give its offset, as --timezone +01:00"
        )
    second = _second_passes(times, known & (before > after))
    notes = [
        f"{iso(times[row])} occurs twice in {zone} and once in the table: taken as the first"
        for row in _single(known & (before > after), second)
    ]
    return times - np.where(second, after, before) * np.timedelta64(10**9, "ns"), notes


def _offset_s(zone: tzinfo, moment: datetime, *, fold: int) -> int:
    offset = moment.replace(tzinfo=zone, fold=fold).utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0


def _runs(rows: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[first, end) of each run of rows."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _second_passes(times: Times, repeated: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The rows of a repeated hour after its clock went back, in a table whose times rise or fall."""
    second = np.zeros(len(times), bool)
    steps = np.diff(times.view(np.int64))
    falls = len(steps) > 0 and float(np.median(steps)) < 0
    for first, end in _runs(repeated):
        part = times[first:end].view(np.int64)
        part = part[::-1] if falls else part
        back = np.flatnonzero(np.diff(part) <= 0)
        if len(back):
            passed = np.arange(len(part)) > back[0]
            second[first:end] = passed[::-1] if falls else passed
    return second


def _single(repeated: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> list[int]:
    """The first row of each repeated hour that the table has once."""
    return [first for first, end in _runs(repeated) if not second[first:end].any()]
