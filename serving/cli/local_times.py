"""Local times -> UTC, as the training reads them: the hour that a clock shows twice is told apart by the order of the rows."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


class UnknownTime(Exception):
    """There is no such zone, or no such time in it. The message says what to do."""


def find_zone(name: str) -> tzinfo:
    """The zone of a name such as Europe/Berlin, or of an offset such as +01:00. Raises UnknownTime."""
    if offset := re.fullmatch(r"([-+])(\d{2}):?(\d{2})", name):
        minutes = int(offset[2]) * 60 + int(offset[3])
        return timezone(timedelta(minutes=minutes if offset[1] == "+" else -minutes))
    if name.upper() in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UnknownTime(
            f"--timezone: {name!r} is unknown, expected a name such as Europe/Berlin or an offset such as +01:00"
        ) from error


def to_utc(moments: Sequence[datetime], zone: tzinfo, groups: Sequence[str] = ()) -> tuple[datetime, ...]:
    """Times of a local clock in UTC. A time that the clock shows twice is the second one if the rows went past it before.

    Args:
        moments: without a zone, in the order of the rows.
        zone: of the clock.
        groups: the series of each row; empty if there is one.

    Raises:
        UnknownTime: a time does not exist, because the clock was set forward over it.
    """
    last: dict[str, datetime] = {}
    found = []
    for row, local in enumerate(moments):
        group = groups[row] if groups else ""
        first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if second < first:
            raise UnknownTime(
                f"row {row + 1} has {local.isoformat(' ')}, which {zone} leaves out: its clocks are set forward over it; if this "
                f"clock is never changed, give its offset, as --timezone +01:00"
            )
        before = last.get(group)
        moment = second if before is not None and before >= first else first
        last[group] = moment
        found.append(moment)
    return tuple(found)
