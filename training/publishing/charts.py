"""Charts as SVG text, drawn from arrays. This module knows no models; the style of the page defines the colours.

Every number is written with one digit after the point, so that the same arrays give the same bytes. A chart is drawn for a
width in pixels and shown at about that width: letters keep their size on a phone and on paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Times
from tidegate.training.judging.events import bursts

Numbers = npt.NDArray[np.float64]

# A chart is drawn twice and the style shows one: across the page, and across a phone of 360 pixels less its margins.
WIDE, NARROW, MATRIX_WIDTH = 750, 340, 460
# The width of a sans-serif letter at 11 pixels, a little generous: only the browser can measure text.
LETTER = 6.1
LINE = 13  # pixels between two direct labels
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DAY_S = 86_400
# The steps of ticks on a clock and on a calendar.
CLOCK_S = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, DAY_S)
CALENDAR_S = tuple(days * DAY_S for days in (2, 7, 14, 28, 91, 182, 365, 730, 1826, 3652))


@dataclass(frozen=True)
class Scale:
    """Maps numbers to positions from 0 to 1, with ticks at (number, text); `unit` stands once, beside the axis."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    unit: str = ""
    log: bool = False

    def at(self, values: npt.ArrayLike) -> Numbers:
        """The positions of numbers; NaN stays NaN."""
        numbers, low, high = np.asarray(values, np.float64), self.low, self.high
        if self.log:
            numbers, low, high = np.log(numbers), math.log(low), math.log(high)
        return (numbers - low) / (high - low)


def linear(values: npt.ArrayLike, unit: str = "", *, zero: bool = False, ticks: int = 5) -> Scale:
    """A scale over the finite values, with about `ticks` round ticks; it includes zero if asked for."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        pad = abs(low) / 10 or 1.0
        low, high = (low, low + pad) if zero else (low - pad, high + pad)
    step = _round_step((high - low) / ticks)
    # It ends on ticks, so that there is a number above the highest point.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    marks = tuple((place * step, signed(f"{place * step:,.{digits}f}")) for place in range(first, last + 1))
    return Scale(first * step, last * step, marks, unit)


def logarithmic(values: Sequence[int], unit: str = "") -> Scale:
    """A logarithmic scale over whole numbers above 0, with a tick at each if there is room."""
    ordered = sorted(set(values))
    kept = [ordered[0]]
    for value in ordered[1:]:
        if value >= 1.9 * kept[-1]:
            kept.append(value)
    high = max(ordered[-1], ordered[0] + 1)
    return Scale(ordered[0], high, tuple((value, f"{value:,}") for value in kept), unit, log=True)


def calendar(times: Times, ticks: int) -> Scale:
    """A scale over times, in seconds since 1970, with at most `ticks` ticks at round hours or days."""
    first, last = (int(time) for time in times[[0, -1]].astype("datetime64[s]").astype(np.int64))
    last = max(last, first + 1)
    step = next((size for size in (*CLOCK_S, *CALENDAR_S) if (last - first) / size <= ticks), CALENDAR_S[-1])
    marks = range(-(-first // step) * step, last + 1, step)
    return Scale(first, last, tuple((mark, _moment(mark, step)) for mark in marks))


class Plot:
    """One pair of axes with marks, in drawing order. `names` are the direct labels, which need room on the right."""

    def __init__(
        self, about: str, x: Scale, y: Scale, *, width: int = NARROW, height: int = 200, names: Sequence[str] = ()
    ) -> None:
        self.about, self.x, self.y, self.width, self.height = about, x, y, width, height
        self.left = 8 + LETTER * max((len(text) for _, text in y.ticks), default=0)
        self.right = width - (8 + LETTER * max((len(name) for name in names), default=0))
        self.top, self.bottom = 20 if y.unit else 8, height - 22
        self.marks: list[str] = []
        self._axes()

    def across(self, values: npt.ArrayLike) -> Numbers:
        """Pixels from the left."""
        return self.left + self.x.at(values) * (self.right - self.left)

    def up(self, values: npt.ArrayLike) -> Numbers:
        """Pixels from the top."""
        return self.bottom - self.y.at(values) * (self.bottom - self.top)

    def line(self, xs: npt.ArrayLike, ys: npt.ArrayLike, kind: str) -> None:
        """A line through the points, broken where one is NaN."""
        path = _path(self.across(xs), self.up(ys))
        if path:
            self.marks.append(f'<path class="line {kind}" d="{path}"/>')

    def dots(self, xs: npt.ArrayLike, ys: npt.ArrayLike, kind: str, size: float = 2.5) -> None:
        """A dot at each point that is not NaN."""
        for x, y in zip(self.across(xs).ravel(), self.up(ys).ravel(), strict=True):
            if math.isfinite(x) and math.isfinite(y):
                self.marks.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>')

    def band(self, xs: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, kind: str) -> None:
        """The area between two lines, broken where one is NaN."""
        across, bottom, top = self.across(xs), self.up(low), self.up(high)
        for first, end in _runs(np.isfinite(bottom) & np.isfinite(top)):
            there = [f"{x:.1f},{y:.1f}" for x, y in zip(across[first:end], top[first:end], strict=True)]
            back = [f"{x:.1f},{y:.1f}" for x, y in zip(across[first:end], bottom[first:end], strict=True)]
            self.marks.append(f'<path class="area {kind}" d="M{"L".join([*there, *back[::-1]])}Z"/>')

    def bars(self, edges: npt.ArrayLike, heights: npt.ArrayLike, kind: str) -> None:
        """A bar from zero between each two edges, with a little space between bars."""
        sides, tops, ground = self.across(edges), self.up(heights), float(self.up(0.0))
        for left, right, top in zip(sides[:-1], sides[1:], tops, strict=True):
            box = f'x="{left + 0.5:.1f}" width="{max(right - left - 1, 0.5):.1f}"'
            self.marks.append(
                f'<rect class="{kind}" {box} y="{min(top, ground):.1f}" height="{abs(ground - top):.1f}"/>'
            )

    def spans(self, spans: Sequence[tuple[float, float]], kind: str) -> None:
        """Shade the whole height between pairs of x."""
        for left, right in self.across(np.array(spans, np.float64).reshape(-1, 2)):
            box = f'x="{left:.1f}" y="{self.top:.1f}" width="{max(right - left, 1.5):.1f}"'
            self.marks.append(f'<rect class="{kind}" {box} height="{self.bottom - self.top:.1f}"/>')

    def rule(self, x: float, text: str = "") -> None:
        """A straight line at one x, with a word beside it."""
        place = float(self.across(x))
        self.marks.append(_segment("mark", place, self.top, place, self.bottom))
        side = "end" if place > (self.left + self.right) / 2 else "start"
        self.text(place + (-4 if side == "end" else 4), self.top + 9, text, f"note {side}")

    def name(self, labels: Sequence[tuple[float, str, str]]) -> None:
        """Direct labels (y, text, kind) beside the right end, moved apart where they would touch."""
        ordered = sorted((float(self.up(y)), text, kind) for y, text, kind in labels if math.isfinite(y))
        below = float(self.top - LINE)
        room = [float(self.bottom - LINE * (len(ordered) - 1 - index)) for index in range(len(ordered))]
        for (place, text, kind), lowest in zip(ordered, room, strict=True):
            below = min(max(place, below + LINE), lowest)
            self.text(self.right + 6, below + 4, text, f"name {kind}")

    def text(self, x: float, y: float, text: str, kind: str) -> None:
        """A word at a place in pixels."""
        if text:
            self.marks.append(_text(x, y, text, kind))

    def svg(self) -> str:
        """The chart."""
        return _svg(self.about, self.width, self.height, self.marks)

    def _axes(self) -> None:
        for value, text in self.y.ticks:
            y = float(self.up(value))
            self.marks.append(_segment("grid", self.left, y, self.right, y))
            self.marks.append(_text(self.left - 6, y + 4, text, "tick end"))
        self.text(0, 11, self.y.unit, "tick")
        # The unit of x stands in the line of the ticks, after the last tick that leaves room.
        room = self.width - (LETTER * len(self.x.unit) + 6 if self.x.unit else 0)
        self.text(self.width, self.height - 7, self.x.unit, "tick end")
        for value, text in self.x.ticks:
            x, half = float(self.across(value)), LETTER * len(text) / 2
            self.marks.append(_segment("axis", x, self.bottom, x, self.bottom + 4))
            if x <= room:
                self.text(min(max(x, half), room - half), self.height - 7, text, "tick middle")
        self.marks.append(_segment("axis", self.left, self.bottom, self.right, self.bottom))


def bar_rows(about: str, rows: Sequence[tuple[str, float, str, str]]) -> str:
    """Horizontal bars (name, value, text, kind) from one zero line, a row each."""
    names, texts = LETTER * max(len(row[0]) for row in rows), LETTER * max(len(row[2]) for row in rows)
    low, high = min(0.0, *(row[1] for row in rows)), max(0.0, *(row[1] for row in rows))
    left, right = names + 10, NARROW - texts - 8
    scale = Scale(low, high if high > low else low + 1, ())
    marks = []
    # Room for the text of a bar that reaches to the left.
    left += texts + 8 if low < 0 else 0
    zero = left + float(scale.at(0.0)) * (right - left)
    for index, (name, value, text, kind) in enumerate(rows):
        y, end = 8 + 24 * index, left + float(scale.at(value)) * (right - left)
        marks.append(_text(0, y + 12, name, "tick"))
        marks.append(
            f'<rect class="{kind}" x="{min(zero, end):.1f}" y="{y:.1f}" width="{abs(end - zero):.1f}" height="16"/>'
        )
        marks.append(_text(end + (6 if value >= 0 else -6), y + 12, text, "number" + (" end" if value < 0 else "")))
    height = 24 * len(rows) + 12
    return _svg(about, NARROW, height, [*marks, _segment("axis", zero, 4, zero, height - 4)])


def matrix(about: str, names: Sequence[str], counts: npt.ArrayLike) -> str:
    """Counts (true, predicted) as shaded squares: the darker, the larger the share of the row."""
    table = np.asarray(counts, np.float64)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    left = 12 + LETTER * max(len(name) for name in names)
    size = min((MATRIX_WIDTH - left) / len(names), 64.0)
    digits = LETTER * max(len(f"{count:,.0f}") for count in table.ravel())
    marks = [_text(left, 11, "predicted", "note"), _text(0, 11, "true", "note")]
    for row, name in enumerate(names):
        y = 40 + row * size
        marks.append(_text(0, y + size / 2 + 4, name, "tick"))
        short = name if LETTER * len(name) <= size else name[: max(int(size / LETTER) - 1, 1)] + "…"
        marks.append(_text(left + (row + 0.5) * size, 30, short, "tick middle"))
        for column, part in enumerate(share[row]):
            x = left + column * size
            kind = "right" if row == column else "wrong"
            marks.append(
                f'<rect class="{kind}" x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{size - 1:.1f}" '
                f'height="{size - 1:.1f}" fill-opacity="{part:.2f}"><title>{escape(name)}, predicted '
                f"{escape(names[column])}: {table[row, column]:,.0f}</title></rect>"
            )
            if digits <= size - 4 and table[row, column]:
                text = f"{table[row, column]:,.0f}"
                marks.append(
                    _text(x + size / 2, y + size / 2 + 4, text, f"cell middle{' strong' if part > 0.5 else ''}")
                )
    return _svg(about, MATRIX_WIDTH, math.ceil(48 + size * len(names)), marks)


def responsive(draw: Callable[[int], str]) -> str:
    """A chart in two widths; the style of the page shows one."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def signed(number: str) -> str:
    """A number with a minus sign in place of a hyphen."""
    return number.replace("-", "−")


def _round_step(size: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below the size."""
    power = 10.0 ** math.floor(math.log10(size))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * (1 - 1e-9)))


def _moment(second: int, step: int) -> str:
    """A tick of the calendar: the hour within a day, the day at midnight, the month where steps are long."""
    date = np.datetime64(second, "s").item()
    if step >= 28 * DAY_S:
        return f"{MONTHS[date.month - 1]} {date.year}"
    if second % DAY_S == 0:
        return f"{date.day} {MONTHS[date.month - 1]}"
    return f"{date:%H:%M:%S}" if step < 60 else f"{date:%H:%M}"


def _runs(kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs [first, end) of at least two trues."""
    return [(first, end) for first, end in bursts(kept) if end - first > 1]


def _path(xs: Numbers, ys: Numbers) -> str:
    pieces = _runs(np.isfinite(xs) & np.isfinite(ys))
    return "".join(
        "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs[first:end], ys[first:end], strict=True))
        for first, end in pieces
    )


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(about: str, width: int, height: int, marks: Sequence[str]) -> str:
    opening = f'<svg role="img" aria-label="{escape(about)}" viewBox="0 0 {width} {height}"'
    # Never larger than drawn by a third: letters would shout.
    return f'{opening} style="max-width:{width * 1.3:.0f}px">{"".join(marks)}</svg>'
