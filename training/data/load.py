"""A table -> `Series`.

A missing value becomes NaN. Anything else that is not a finite number is an error that names column, row and value.
Columns are filled block by block, so that a series of millions of rows is in memory once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegate.training.data import features
from tidegate.training.data.columns import Columns, feature_columns, role_columns, time_column
from tidegate.training.data.gaps import fill_gaps
from tidegate.training.data.parse import Codes, codes_of, numbers_of, times_of
from tidegate.training.data.series import UNLABELLED, Floats, Group, Ints, Series, Times, group_steps_s, iso
from tidegate.training.data.table import Table, columns_of, open_table, table_of_arrays, table_of_frame
from tidegate.training.errors import (
    EmptyColumn,
    GroupColumnError,
    LabelColumnError,
    TimeColumnError,
    TimeOrderError,
    UnreadableTable,
)

# A series is regular if this share of its steps lies within a tenth of the median step.
REGULAR_SHARE = 0.9


def read(
    path: Path, *, name: str | None = None, units: dict[str, str] | None = None, **columns: Unpack[Columns]
) -> Series:
    """Read a `.csv`, `.parquet`, `.npy` or `.npz` file.

    Args:
        path: the file.
        name: of the data; the name of the file if absent.
        units: by column.
        columns: the roles of the columns.

    Raises:
        TableError: one of its kinds; it names the column, the row and the value that cannot be used.
    """
    return _build_series(open_table(path, name or path.name), columns, units or {})


def series_of(
    data: Any,
    *,
    times: Any = None,
    names: Sequence[str] = (),
    name: str = "data",
    units: dict[str, str] | None = None,
    **columns: Unpack[Columns],
) -> Series:
    """A series from data in memory.

    Args:
        data: numbers of shape (time, features), a structured array, a pandas or polars frame, or an Arrow table.
        times: of an array without a time column: (time,) of datetime64, or Unix seconds.
        names: of the columns of an array; c0, c1, ... if absent.
        name: of the data.
        units: by column.
        columns: the roles of the columns.

    Raises:
        TableError: see `read`.
    """
    if hasattr(data, "columns") or hasattr(data, "__arrow_c_stream__") or hasattr(data, "to_arrow"):
        if times is not None or names:
            raise UnreadableTable(f"{name}: got a frame and times or names beside it; expected both as its columns")
        return _build_series(table_of_frame(data, name), columns, units or {})
    parts = columns_of(np.asarray(data), names, name)
    if times is not None:
        if "time" in parts:
            raise TimeColumnError(f"{name}: got times and a column 'time'; expected one of them")
        parts = {"time": np.asarray(times), **parts}
        columns = {"time": "time", **columns}
    return _build_series(table_of_arrays(parts, name), columns, units or {})


def column_names(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
        UnreadableTable: see `read`.
    """
    return list(open_table(path, path.name).types)


def _build_series(table: Table, columns: Columns, units: dict[str, str]) -> Series:
    """Read the columns, sort the rows by group, and build the series."""
    roles = role_columns(table, columns)
    time = time_column(table, columns, roles)
    names, derived = feature_columns(table, columns, {*roles.values(), *([time] if time else [])})
    arrays = _TableArrays(table, time, roles, names)
    arrays.fill()
    groups = _sort_by_group(arrays, columns)
    labels, classes = _labels(arrays)
    series = Series(
        name=table.name,
        sha256=table.sha256,
        names=tuple(names),
        units=tuple(units.get(column, "") for column in names),
        values=arrays.values,
        times=arrays.times,
        period_s=_period_s(arrays.times, groups) if time else columns.get("period_s"),
        groups=groups,
        labels=labels,
        classes=classes,
        group_column=roles.get("group", ""),
        label_column=roles.get("label", ""),
    )
    # Before the derived features, which depend on the times and on the rows that follow.
    return features.add_derived(fill_gaps(series, columns.get("fill_gaps", 0)), derived)


def _sort_by_group(arrays: "_TableArrays", columns: Columns) -> tuple[Group, ...]:
    """Bring the rows of each group together and check their order; returns the groups."""
    order, groups = _group_order(arrays)
    _set_times(arrays, columns, order, groups)
    if order is not None:
        for index in range(arrays.values.shape[1]):  # one by one, so that the table is not copied as a whole
            arrays.values[:, index] = arrays.values[order, index]
        arrays.codes = {role: codes[order] for role, codes in arrays.codes.items()}
    return groups


class _TableArrays:
    """The columns of a table as arrays, filled block by block.

    `values` is (rows, features) float32, `times` (rows,) datetime64[ns]. For each role, `codes` holds the index of each
    row's text in `texts`, -1 if the cell is empty.
    """

    def __init__(self, table: Table, time: str | None, roles: dict[str, str], names: Sequence[str]) -> None:
        self.table, self.time, self.roles, self.names = table, time, roles, names
        # Memory is touched only when it is filled, so rows that a CSV file might have cost nothing.
        self.values: Floats = np.empty((table.rows, len(names)), np.float32)
        self.times: Times = np.empty(table.rows if time else 0, "datetime64[ns]")
        self.codes: dict[str, Codes] = {role: np.empty(table.rows, np.int32) for role in roles}
        self.texts: dict[str, dict[str, int]] = {role: {} for role in roles}
        self.rows = 0

    def fill(self) -> None:
        """Read all blocks.

        Raises:
            TableError: a value cannot be used.
        """
        columns = [*([self.time] if self.time else []), *dict.fromkeys(self.roles.values()), *self.names]
        for batch in self.table.blocks(columns, frozenset(self.roles.values())):
            part = slice(self.rows, self.rows + batch.num_rows)
            if self.time:
                self.times[part] = times_of(batch.column(self.time), self.time, self.table.name, self.rows)
            for role, column in self.roles.items():
                self.codes[role][part] = codes_of(batch.column(column), column, self.texts[role], self.table.name)
            for index, column in enumerate(self.names):
                self.values[part, index] = numbers_of(batch.column(column), column, self.table.name, self.rows)
            self.rows = part.stop
        pa.default_memory_pool().release_unused()  # the memory of the blocks
        self.values, self.times = self.values[: self.rows], self.times[: self.rows]
        self.codes = {role: codes[: self.rows] for role, codes in self.codes.items()}
        for index, column in enumerate(self.names):
            if np.isnan(self.values[:, index]).all():
                raise EmptyColumn(
                    f"{self.table.name}: column {column!r} is empty, expected a number in some row; "
                    f"leave it out with --exclude {column}"
                )


def _group_order(arrays: _TableArrays) -> tuple[npt.NDArray[np.intp] | None, tuple[Group, ...]]:
    """The order of rows that brings groups together, None if they are together; and the groups by their first rows."""
    if "group" not in arrays.roles:
        return None, ()
    codes, column = arrays.codes["group"], arrays.roles["group"]
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


def _split_keys(
    arrays: _TableArrays, order: npt.NDArray[np.intp] | None, firsts: Sequence[int], names: Sequence[str]
) -> list[str]:
    """The split key of each group; empty without a column to split by."""
    if "split_by" not in arrays.roles:
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
            arrays.roles["split_by"],
            [texts[code] if code >= 0 else "" for code in (of_group[groups[row]], codes[row])],
        )
        raise GroupColumnError(
            f"{arrays.table.name}: group {names[groups[row]]!r} has {keys[1]!r} in row {_file_row(order, row)} and {keys[0]!r} before in "
            f"column {column!r}, expected the same in all its rows to split by it; choose another --split-by or --group"
        )
    return [texts[code] for code in of_group]


def _file_row(order: npt.NDArray[np.intp] | None, row: int) -> int:
    """The number of a row in the file, from 1."""
    return int(row if order is None else order[row]) + 1


def _labels(arrays: _TableArrays) -> tuple[Ints | None, tuple[str, ...]]:
    """(time,) labels and the classes: numbers in numeric order, text in alphabetic order."""
    if "label" not in arrays.roles:
        return None, ()
    texts = list(arrays.texts["label"])
    if len(texts) < 2:
        raise LabelColumnError(
            f"{arrays.table.name}: label column {arrays.roles['label']!r} holds {f'only {texts[0]!r}' if texts else 'nothing'}, "
            f"expected at least two classes"
        )
    numeric = all(text.removeprefix("-").isdecimal() for text in texts)
    classes = sorted(texts, key=lambda text: (int(text) if numeric else 0, text))
    places = np.array([*(classes.index(text) for text in texts), UNLABELLED], np.int64)
    return places[arrays.codes["label"]], tuple(classes)


def _set_times(
    arrays: _TableArrays, columns: Columns, order: npt.NDArray[np.intp] | None, groups: tuple[Group, ...]
) -> None:
    """Sort the times by group, or create them; check that they increase strictly within each group."""
    if arrays.time is None:
        # Without a period the rows are numbered, as seconds since 1970. The series then has no period.
        step = np.timedelta64(round((columns.get("period_s") or 1.0) * 1e9), "ns")
        counts = [group.end - group.first for group in groups] or [arrays.rows]
        arrays.times = np.datetime64(0, "ns") + np.concatenate([np.arange(count) for count in counts]) * step
        return
    label, name = arrays.table.name, arrays.time
    missing = np.flatnonzero(np.isnat(arrays.times))
    if len(missing):
        raise TimeOrderError(f"{label}: column {name!r} has no time in row {missing[0] + 1}; expected one in every row")
    if order is not None:
        arrays.times = arrays.times[order]
    times = arrays.times
    bad = times[1:] <= times[:-1]
    bad[[group.first - 1 for group in groups[1:]]] = False
    if bad.any():
        at = int(bad.argmax()) + 1  # index of the later of the two
        what = "repeats the time of" if times[at] == times[at - 1] else "is earlier than"
        where = next((f" of group {group.name!r}" for group in groups if group.first <= at < group.end), "")
        advice = "" if groups else ", or name the column that tells several series apart with --group"
        raise TimeOrderError(
            f"{label}: row {_file_row(order, at)} ({iso(times[at])}) {what} row {_file_row(order, at - 1)} ({iso(times[at - 1])})"
            f"{where} in column {name!r}; expected strictly increasing times: sort the table and drop repeats{advice}"
        )


def _period_s(times: Times, groups: tuple[Group, ...]) -> float | None:
    """The usual step within a group; None if the steps differ widely."""
    steps_s = group_steps_s(times, groups)
    if len(steps_s) == 0:
        return None
    usual = float(np.median(steps_s, overwrite_input=True))
    regular = (steps_s >= 0.9 * usual) & (steps_s <= 1.1 * usual)
    return usual if float(np.mean(regular)) >= REGULAR_SHARE else None
