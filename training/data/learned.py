"""The rows of a series that a model has learned from: those at the times of its training part and its validation part.

Another file may hold the same rows: one that has grown, or an extract. Scores of rows that a model has learned from say
nothing, so they are left out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate.training.data.series import Series, Span, Spans, Times, count_rows, time_of
from tidegate.training.data.split import Split
from tidegate.training.errors import SeriesTooShort

Json = dict[str, Any]


@dataclass(frozen=True)
class LearnedRows:
    """The rows of a series by what a model knows of them.

    Attributes:
        split: its rows at the times of the model's training part, those at the times of its validation part, and the rows
            before and after both.
        rows: how many lie within the time that the model has learned from.
        complete: whether all rows of both parts are there, so that a baseline can be fitted on them again.
    """

    split: Split
    rows: int
    complete: bool


def learned_rows(series: Series, data: Json) -> LearnedRows:
    """Find the rows of a series that lie at the times of the parts of a model's data, group by group.

    Args:
        series: that is to be scored.
        data: the entry `data` of a card.

    Raises:
        SeriesTooShort: the model has learned from all rows.
    """
    train, validation, rest = [], [], []
    for name, (first, end) in zip(_names(series), series.spans, strict=True):
        times = series.times[first:end]
        parts = [_rows_at(times, first, _range_of(data[part], name)) for part in ("training", "validation")]
        train.append(parts[0])
        validation.append(parts[1])
        known = [part for part in parts if part[0] < part[1]]
        rest += [(first, min(known)[0]), (max(known)[1], end)] if known else [(first, end)]
    split = Split(_non_empty(train), _non_empty(validation), _non_empty(rest))
    counts = [count_rows(split.train), count_rows(split.validation)]
    if not split.test:
        raise SeriesTooShort(
            f"{series.name}: the model has learned from the time of all {len(series)} rows "
            f"({data['training']['start']} to {data['validation']['end']}), expected later ones, or rows of another group; "
            f"if they are of another source, score them with --all-rows"
        )
    complete = counts == [data[part]["rows"] for part in ("training", "validation")]
    return LearnedRows(split, len(series) - count_rows(split.test), complete)


def _names(series: Series) -> list[str]:
    return [group.name for group in series.groups] or [""]


def _range_of(part: Json, group: str) -> tuple[str, str] | None:
    """The first and the last time of a group in a part; None if it is not in it."""
    groups = part.get("groups")
    if not groups or not group:  # one series, or an old card: the times of the whole part
        return part["start"], part["end"]
    return (part["starts"][groups.index(group)], part["ends"][groups.index(group)]) if group in groups else None


def _rows_at(times: Times, first: int, between: tuple[str, str] | None) -> Span:
    """The rows whose times, which increase, lie between the two, both included."""
    if between is None:
        return first, first
    low, high = (time_of(time) for time in between)
    return first + int(np.searchsorted(times, low)), first + int(np.searchsorted(times, high, side="right"))


def _non_empty(spans: list[Span]) -> Spans:
    return tuple((first, end) for first, end in spans if first < end)
