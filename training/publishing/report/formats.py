"""Numbers, days and settings in the words of the report."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tidegate.training.data.series import time_of
from tidegate.training.judging.replay import Numbers
from tidegate.training.publishing import charts
from tidegate.training.publishing.page import Html, tag

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def stacked(above: str, below: str, kind: str = "") -> Html:
    """A number, and a small one below it."""
    return Html(f"{tag('span', above, kind=kind)}{tag('small', below) if below else ''}")


def flat_settings(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names, as the options are called, and values."""
    for key, value in settings.items():
        yield key.replace("_", "-"), setting_text(value)


def setting_text(value: object) -> str:
    """A setting in words."""
    if value is None or value in ("", (), []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_unit(name: str, unit: str) -> str:
    """A name with its unit, if there is one."""
    return f"{name} ({unit})" if unit else name


def number(value: float | None) -> str:
    """Four significant digits, without zeros at the end."""
    if value is None:
        return "-"
    return charts.signed(f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}")


def digits(value: float | None, digits: int = 4) -> str:
    """A fixed number of significant digits, so that the errors of a column align."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:#.{digits}g}".rstrip(".")


def percent(value: float | None) -> str:
    """A share in per cent, with one digit after the point."""
    return "-" if value is None else charts.signed(f"{100 * value:z.1f} %")


def missing_percent(share: float) -> str:
    """A share of missing values, with two significant digits."""
    return "0" if share == 0 else f"{100 * share:.2g} %"


def day(time: str) -> str:
    """A date without its time of day."""
    date = time_of(time).astype("datetime64[s]").item()
    return f"{date.day} {charts.MONTHS[date.month - 1]} {date.year}"


def duration_of(seconds: float) -> str:
    """A time span in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def last_number(values: Numbers) -> float:
    """The last value that is not NaN, where a direct label belongs."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def whole_ticks(low: int, high: int) -> tuple[tuple[float, str], ...]:
    """Ticks at whole numbers only."""
    return tuple(
        tick for tick in charts.linear([low, high], ticks=5).ticks if tick[0] == int(tick[0]) and low <= tick[0] <= high
    )
