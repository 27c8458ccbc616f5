"""The rows of a table in the order of a series: groups together, each in the order of its times, each time once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidegate.training.data.arrays import TableArrays
from tidegate.training.data.columns import Columns
from tidegate.training.data.series import Group, Span, iso
from tidegate.training.data.timezone import find_zone, to_utc
from tidegate.training.errors import GroupColumnError, TimeOrderError
from tidegate.training.settings import Format

Order = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Arranged:
    """The groups of the rows, and what was done to them, in words."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def arrange(arrays: TableArrays, columns: Columns, options: Format) -> Arranged:
    """Bring the rows of each group together, and sort them by time.

    Raises:
        TableError: a row has no group or no time, or two have the same time.
    """
    notes: list[str] = []
    if arrays.plan.times:
        _check_some_time(arrays)
        _drop_empty_tail(arrays)
        notes += _drop_untimed(arrays, options)
    order, groups = _group_order(arrays)
    if arrays.plan.times is None:
        # Without a period the rows are numbered, as seconds since 1970. The series then has no period.
        step = np.timedelta64(round((columns.get("period_s") or 1.0) * 1e9), "ns")
        counts = [group.end - group.first for group in groups] or [arrays.rows]
        arrays.times = np.datetime64(0, "ns") + np.concatenate([np.arange(count) for count in counts]) * step
    else:
        if order is not None:
            arrays.times = arrays.times[order]
        spans = [(group.first, group.end) for group in groups] or [(0, arrays.rows)]
        notes += _localise(arrays, spans, options)
        order = _sorted(arrays, order, spans, notes)
        groups = _without_repeats(arrays, order, groups, spans, options, notes)
        return Arranged(groups, tuple(notes))
    _reorder(arrays, order)
    return Arranged(groups, tuple(notes))


def _reorder(arrays: TableArrays, order: Order | None) -> None:
    """Bring values and codes into an order; the times are in it."""
    if order is None:
        return
    for index in range(arrays.values.shape[1]):  # one by one, so that the table is not copied as a whole
        arrays.values[:, index] = arrays.values[order, index]
    arrays.codes = {role: codes[order] for role, codes in arrays.codes.items()}


def _check_some_time(arrays: TableArrays) -> None:
    """Raises TimeOrderError when no row has a time."""
    if np.isnat(arrays.times).all():
        raise TimeOrderError(f"{_time_column(arrays)} has no time in any row; name another column with --time")


def _time_column(arrays: TableArrays) -> str:
    """The table and its column of times, or its two, as errors name them."""
    assert arrays.plan.times
    return f"{arrays.table.name}: column {' and '.join(repr(name) for name in arrays.plan.times.columns)}"


def _drop_empty_tail(arrays: TableArrays) -> None:
    """Empty rows at the end of a table, as spreadsheets write them, are no rows."""
    empty = np.isnat(arrays.times) & np.isnan(arrays.values).all(axis=1)
    if empty[-1]:
        _keep(arrays, slice(len(empty) - int(np.argmin(empty[::-1]))))


def _drop_untimed(arrays: TableArrays, options: Format) -> list[str]:
    """Leave out the rows without a time, if that is asked for. A note tells how many they are.

    Raises:
        TimeOrderError: there are some, and it is not.
    """
    untimed = np.isnat(arrays.times)
    if not untimed.any():
        return []
    if options.untimed == "error":
        raise TimeOrderError(
            f"{_time_column(arrays)} has no time in row {int(np.argmax(untimed)) + 1}; expected one in every row: fill it "
            f"in, or leave out the rows without one, such as a sum, with --untimed drop"
        )
    _keep(arrays, ~untimed)
    count = int(untimed.sum())
    return [f"{count} row{'' if count == 1 else 's'} had no time: left out"]


def _keep(arrays: TableArrays, rows: slice | npt.NDArray[np.bool_]) -> None:
    arrays.values, arrays.times = arrays.values[rows], arrays.times[rows]
    arrays.rows = len(arrays.times)
    arrays.codes = {role: codes[rows] for role, codes in arrays.codes.items()}


def _localise(arrays: TableArrays, spans: Sequence[Span], options: Format) -> list[str]:
    """Local times become UTC, if a zone is given; times with an offset are in UTC."""
    if not options.timezone or arrays.in_utc:
        return []
    assert arrays.plan.times
    zone, notes = find_zone(options.timezone), []
    subject = f"{arrays.table.name}: column {arrays.plan.times.columns[0]!r}"
    for first, end in spans:
        arrays.times[first:end], assumed = to_utc(arrays.times[first:end], zone, subject)
        notes += assumed
    arrays.in_utc = True
    return notes


def _sorted(arrays: TableArrays, order: Order | None, spans: Sequence[Span], notes: list[str]) -> Order | None:
    """Sort the times within each span; the order of the rows of the table. Notes tell of it."""
    moved, fell = 0, True
    sort = np.arange(len(arrays.times))
    for first, end in spans:
        part = arrays.times[first:end]
        back = int((part[1:] < part[:-1]).sum())
        if back:
            moved += back
            fell &= back == len(part) - 1
            sort[first:end] = first + np.argsort(part, kind="stable")
    if not moved:
        return order
    how = "ran from the newest to the oldest" if fell else f"were not in the order of time ({moved} went back)"
    hint = (
        ""
        if arrays.plan.roles.get("group")
        else "; if they are of several series, name what tells them apart with --group"
    )
    notes.append(f"rows {how}: sorted{'' if fell else hint}")
    arrays.times = arrays.times[sort]
    return sort if order is None else order[sort]


def _without_repeats(
    arrays: TableArrays,
    order: Order | None,
    groups: tuple[Group, ...],
    spans: Sequence[Span],
    options: Format,
    notes: list[str],
) -> tuple[Group, ...]:
    """Bring the values into order, and keep one row of each time; the groups after that."""
    times = arrays.times
    repeats = np.zeros(len(times), bool)
    repeats[1:] = times[1:] == times[:-1]
    repeats[[first for first, _ in spans if first < len(times)]] = False
    if repeats.any() and options.duplicates == "error":
        at = int(repeats.argmax())
        where = next((f" of group {group.name!r}" for group in groups if group.first <= at < group.end), "")
        own = f" {arrays.table.file_column}" if arrays.table.file_column else ""
        advice = "" if groups else f", or name the column that tells several series apart with --group{own}"
        if not arrays.in_utc and _is_autumn_sunday(times[at]):
            advice += ", or if a clock was set back, name its zone with --timezone"
        zone = "Z" if arrays.in_utc else ""
        assert arrays.plan.times
        raise TimeOrderError(
            f"{arrays.table.name}: row {_file_row(order, at)} ({iso(times[at])}{zone}) repeats the time of row {_file_row(order, at - 1)} "
            f"({iso(times[at - 1])}{zone}){where} in column {arrays.plan.times.columns[0]!r}; expected each time once: keep one of such "
            f"rows with --duplicates first, last or mean{advice}"
        )
    _reorder(arrays, order)
    if not repeats.any():
        return groups
    firsts = np.flatnonzero(~repeats)
    if options.duplicates == "mean":
        means = _means(arrays.values, firsts)
        for column in arrays.plan.categories:  # a mean of words means nothing
            index = arrays.names.index(column)
            means[:, index] = arrays.values[firsts, index]
    kept = firsts if options.duplicates != "last" else np.append(firsts[1:], len(times)) - 1
    arrays.values = means if options.duplicates == "mean" else arrays.values[kept]
    arrays.times, arrays.codes = times[kept], {role: codes[kept] for role, codes in arrays.codes.items()}
    notes.append(f"{int(repeats.sum())} rows repeated a time: the {options.duplicates} of such rows is taken")
    return regrouped(groups, firsts)


def _is_autumn_sunday(time: np.datetime64) -> bool:
    """Whether clocks are set back on that day in Europe or North America, perhaps."""
    day = time.astype("datetime64[D]").item()
    return bool(day.weekday() == 6 and day.month in (10, 11))


def regrouped(groups: Sequence[Group], firsts: Order) -> tuple[Group, ...]:
    """The groups after only the rows `firsts` are left, or one row begins at each of them."""
    if not groups:
        return ()
    ends = np.searchsorted(firsts, [[group.first, group.end] for group in groups])
    return tuple(
        Group(group.name, int(first), int(end), group.split_key)
        for group, (first, end) in zip(groups, ends, strict=True)
    )


def _means(values: npt.NDArray[np.float32], firsts: Order) -> npt.NDArray[np.float32]:
    """The mean of the rows from each first to the next, without missing values: (firsts, columns)."""
    means = np.empty((len(firsts), values.shape[1]), np.float32)
    for index in range(values.shape[1]):
        column = values[:, index].astype(np.float64)
        known = ~np.isnan(column)
        counts = np.add.reduceat(known, firsts, dtype=np.int64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means[:, index] = np.add.reduceat(np.where(known, column, 0.0), firsts) / counts
    return means


def _group_order(arrays: TableArrays) -> tuple[Order | None, tuple[Group, ...]]:
    """The order of rows that brings groups together, None if they are together; and the groups by their first rows."""
    if "group" not in arrays.plan.roles:
        return None, ()
    codes, column = arrays.codes["group"], arrays.plan.roles["group"]
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise GroupColumnError(
            f"{arrays.table.name}: group column {column!r} has no value in row {missing[0] + 1}; expected one in every row"
        )
    order = np.argsort(codes, kind="stable") if (codes[1:] < codes[:-1]).any() else None
    names = list(arrays.texts["group"])
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    firsts = [0, *ends[:-1]]
    split_keys = _split_keys(arrays, order, firsts, names)
    return order, tuple(
        Group(name, int(first), int(end), split_key)
        for name, first, end, split_key in zip(names, firsts, ends, split_keys, strict=True)
    )


def _split_keys(arrays: TableArrays, order: Order | None, firsts: Sequence[int], names: Sequence[str]) -> list[str]:
    """The split key of each group; empty without a column to split by."""
    if "split_by" not in arrays.plan.roles:
        return [""] * len(names)
    texts, codes = list(arrays.texts["split_by"]), arrays.codes["split_by"]
    codes = codes if order is None else codes[order]
    of_group = codes[list(firsts)]
    # The group of each row, in the new order.
    groups = np.repeat(np.arange(len(names)), np.diff([*firsts, len(codes)]))
    wrong = np.flatnonzero((codes != of_group[groups]) | (codes < 0))
    if len(wrong):
        row = int(wrong[0])
        column, keys = (
            arrays.plan.roles["split_by"],
            [texts[code] if code >= 0 else "" for code in (of_group[groups[row]], codes[row])],
        )
        raise GroupColumnError(
            f"{arrays.table.name}: group {names[groups[row]]!r} has {keys[1]!r} in row {_file_row(order, row)} and {keys[0]!r} before in "
            f"column {column!r}, expected the same in all its rows to split by it; choose another --split-by or --group"
        )
    return [texts[code] for code in of_group]


def _file_row(order: Order | None, row: int) -> int:
    """The number of a row in the file, from 1."""
    return int(row if order is None else order[row]) + 1
