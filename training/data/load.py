"""A table -> `Series`, and back to CSV. Knows no network and no torch.

A missing value is NaN from here to the served graph; everything else that is not a finite number is refused by name.
Columns are filled block by block, so that a series of millions of rows is held once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data import features
from training.data.columns import Columns, feature_columns, role_columns, time_column
from training.data.parse import Codes, codes_of, numbers_of, times_of
from training.data.series import UNLABELLED, Floats, Group, Ints, Series, Times, inner_steps_s, iso
from training.data.table import Table, columns_of, open_table, table_of_arrays, table_of_frame
from training.errors import (
    EmptyColumn,
    GroupColumnError,
    LabelColumnError,
    TimeColumnError,
    TimeOrderError,
    UnreadableTable,
)

# A series counts as regular when this share of its steps lies within a tenth of the median step.
REGULAR_SHARE = 0.9


def read(
    path: Path, *, name: str | None = None, units: dict[str, str] | None = None, **columns: Unpack[Columns]
) -> Series:
    """Read a `.csv`, `.parquet`, `.npy` or `.npz` file.

    Args:
        path: the file.
        name: what to call the data; the file's name when absent.
        units: by column.
        columns: what the columns are.

    Raises:
        TableError: one of its kinds, naming the column, the row and the value that cannot be used.
    """
    return _series(open_table(path, name or path.name), columns, units or {})


def series_of(
    data: Any,
    *,
    times: Any = None,
    names: Sequence[str] = (),
    name: str = "data",
    units: dict[str, str] | None = None,
    **columns: Unpack[Columns],
) -> Series:
    """A series from what a program has in memory.

    Args:
        data: numbers of shape (time, features), a structured array, a pandas or polars frame, or an Arrow table.
        times: of an array without a time column: (time,) of datetime64, or Unix seconds.
        names: of an array's columns; c0, c1, ... when absent.
        name: what to call the data.
        units: by column.
        columns: what the columns are.

    Raises:
        TableError: see `read`.
    """
    if hasattr(data, "columns") or hasattr(data, "__arrow_c_stream__") or hasattr(data, "to_arrow"):
        if times is not None or names:
            raise UnreadableTable(f"{name}: got a frame and times or names beside it; expected both as its columns")
        return _series(table_of_frame(data, name), columns, units or {})
    parts = columns_of(np.asarray(data), names, name)
    if times is not None:
        if "time" in parts:
            raise TimeColumnError(f"{name}: got times and a column 'time'; expected one of them")
        parts = {"time": np.asarray(times), **parts}
        columns = {"time": "time", **columns}
    return _series(table_of_arrays(parts, name), columns, units or {})


def column_names(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
        UnreadableTable: see `read`.
    """
    return list(open_table(path, path.name).types)


def _series(table: Table, columns: Columns, units: dict[str, str]) -> Series:
    """Fill the columns, sort the rows by group, and look at what came of it."""
    roles = role_columns(table, columns)
    time = time_column(table, columns, roles)
    wanted, made = feature_columns(table, columns, {*roles.values(), *([time] if time else [])})
    filled = _Filled(table, time, roles, wanted)
    filled.fill()
    groups = _arrange(filled, columns)
    labels, classes = _labels(filled)
    series = Series(
        name=table.name,
        sha256=table.sha256,
        names=tuple(wanted),
        units=tuple(units.get(column, "") for column in wanted),
        values=filled.values,
        times=filled.times,
        period_s=_period_s(filled.times, groups) if time else columns.get("period_s"),
        groups=groups,
        labels=labels,
        classes=classes,
        group_column=roles.get("group", ""),
        label_column=roles.get("label", ""),
    )
    return features.add(series, made)


def _arrange(filled: "_Filled", columns: Columns) -> tuple[Group, ...]:
    """Bring the rows of each group together and see that they are in order; returns the groups."""
    order, groups = _order(filled)
    _set_times(filled, columns, order, groups)
    if order is not None:
        for index in range(filled.values.shape[1]):  # one at a time, so that the table is not there twice
            filled.values[:, index] = filled.values[order, index]
        filled.codes = {role: codes[order] for role, codes in filled.codes.items()}
    return groups


class _Filled:
    """The columns of a table while its blocks come in.

    `values` is (rows, features) float32, `times` (rows,) datetime64[ns]; `codes` has, for each role, the index of each
    row's text in `texts`, -1 where the cell is empty.
    """

    def __init__(self, table: Table, time: str | None, roles: dict[str, str], wanted: Sequence[str]) -> None:
        self.table, self.time, self.roles, self.wanted = table, time, roles, wanted
        # Not touched until it is filled, so that rows which a CSV file might have cost nothing.
        self.values: Floats = np.empty((table.rows, len(wanted)), np.float32)
        self.times: Times = np.empty(table.rows if time else 0, "datetime64[ns]")
        self.codes: dict[str, Codes] = {role: np.empty(table.rows, np.int32) for role in roles}
        self.texts: dict[str, dict[str, int]] = {role: {} for role in roles}
        self.rows = 0

    def fill(self) -> None:
        """Read all blocks.

        Raises:
            TableError: a value cannot be used.
        """
        columns = [*([self.time] if self.time else []), *dict.fromkeys(self.roles.values()), *self.wanted]
        for batch in self.table.blocks(columns, frozenset(self.roles.values())):
            part = slice(self.rows, self.rows + batch.num_rows)
            if self.time:
                self.times[part] = times_of(batch.column(self.time), self.time, self.table.name, self.rows)
            for role, column in self.roles.items():
                self.codes[role][part] = codes_of(batch.column(column), column, self.texts[role], self.table.name)
            for index, column in enumerate(self.wanted):
                self.values[part, index] = numbers_of(batch.column(column), column, self.table.name, self.rows)
            self.rows = part.stop
        pa.default_memory_pool().release_unused()  # what the blocks needed
        self.values, self.times = self.values[: self.rows], self.times[: self.rows]
        self.codes = {role: codes[: self.rows] for role, codes in self.codes.items()}
        for index, column in enumerate(self.wanted):
            if np.isnan(self.values[:, index]).all():
                raise EmptyColumn(
                    f"{self.table.name}: column {column!r} is empty, expected a number in some row; "
                    f"leave it out with --exclude {column}"
                )


def _order(filled: _Filled) -> tuple[npt.NDArray[np.intp] | None, tuple[Group, ...]]:
    """The order of rows that brings groups together, None if they are, and the groups in order of their first rows."""
    if "group" not in filled.roles:
        return None, ()
    codes, column = filled.codes["group"], filled.roles["group"]
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise GroupColumnError(
            f"{filled.table.name}: group column {column!r} has no value in row {missing[0] + 1}; expected one in every row"
        )
    order = np.argsort(codes, kind="stable") if (codes[1:] < codes[:-1]).any() else None
    names = list(filled.texts["group"])
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    firsts = [0, *ends[:-1]]
    wholes = _wholes(filled, order, firsts, names)
    return order, tuple(
        Group(name, int(first), int(end), whole)
        for name, first, end, whole in zip(names, firsts, ends, wholes, strict=True)
    )


def _wholes(
    filled: _Filled, order: npt.NDArray[np.intp] | None, firsts: Sequence[int], names: Sequence[str]
) -> list[str]:
    """What each group must stay together with; empty where nothing says so."""
    if "split_by" not in filled.roles:
        return [""] * len(names)
    texts, codes = list(filled.texts["split_by"]), filled.codes["split_by"]
    codes = codes if order is None else codes[order]
    of_group = codes[list(firsts)]
    # The group of each row, in the new order.
    groups = np.repeat(np.arange(len(names)), np.diff([*firsts, len(codes)]))
    wrong = np.flatnonzero((codes != of_group[groups]) | (codes < 0))
    if len(wrong):
        row = int(wrong[0])
        column, told = (
            filled.roles["split_by"],
            [texts[code] if code >= 0 else "" for code in (of_group[groups[row]], codes[row])],
        )
        raise GroupColumnError(
            f"{filled.table.name}: group {names[groups[row]]!r} has {told[1]!r} in row {_row(order, row)} and {told[0]!r} before in "
            f"column {column!r}, expected the same in all its rows to split by it; choose another --split-by or --group"
        )
    return [texts[code] for code in of_group]


def _row(order: npt.NDArray[np.intp] | None, row: int) -> int:
    """The number of a row in the file, counted from 1."""
    return int(row if order is None else order[row]) + 1


def _labels(filled: _Filled) -> tuple[Ints | None, tuple[str, ...]]:
    """(time,) and the classes: whole numbers in their order, text in that of the alphabet."""
    if "label" not in filled.roles:
        return None, ()
    texts = list(filled.texts["label"])
    if len(texts) < 2:
        raise LabelColumnError(
            f"{filled.table.name}: label column {filled.roles['label']!r} holds {f'only {texts[0]!r}' if texts else 'nothing'}, "
            f"expected at least two classes"
        )
    whole = all(text.removeprefix("-").isdecimal() for text in texts)
    classes = sorted(texts, key=lambda text: (int(text) if whole else 0, text))
    places = np.array([*(classes.index(text) for text in texts), UNLABELLED], np.int64)
    return places[filled.codes["label"]], tuple(classes)


def _set_times(
    filled: _Filled, columns: Columns, order: npt.NDArray[np.intp] | None, groups: tuple[Group, ...]
) -> None:
    """Put the times in order, or make them; strictly increasing within each group."""
    if filled.time is None:
        # Without a period rows are numbered, which stands as seconds since 1970; the series then has none.
        step = np.timedelta64(round((columns.get("period_s") or 1.0) * 1e9), "ns")
        counts = [group.end - group.first for group in groups] or [filled.rows]
        filled.times = np.datetime64(0, "ns") + np.concatenate([np.arange(count) for count in counts]) * step
        return
    label, name = filled.table.name, filled.time
    missing = np.flatnonzero(np.isnat(filled.times))
    if len(missing):
        raise TimeOrderError(f"{label}: column {name!r} has no time in row {missing[0] + 1}; expected one in every row")
    if order is not None:
        filled.times = filled.times[order]
    times = filled.times
    bad = times[1:] <= times[:-1]
    bad[[group.first - 1 for group in groups[1:]]] = False
    if bad.any():
        at = int(bad.argmax()) + 1  # index of the later of the two
        what = "repeats the time of" if times[at] == times[at - 1] else "is earlier than"
        where = next((f" of group {group.name!r}" for group in groups if group.first <= at < group.end), "")
        advice = "" if groups else ", or name the column that tells several series apart with --group"
        raise TimeOrderError(
            f"{label}: row {_row(order, at)} ({iso(times[at])}) {what} row {_row(order, at - 1)} ({iso(times[at - 1])})"
            f"{where} in column {name!r}; expected strictly increasing times: sort the table and drop repeats{advice}"
        )


def _period_s(times: Times, groups: tuple[Group, ...]) -> float | None:
    """The usual step within a group; None when the steps differ widely."""
    steps_s = inner_steps_s(times, groups)
    if len(steps_s) == 0:
        return None
    usual = float(np.median(steps_s, overwrite_input=True))
    regular = (steps_s >= 0.9 * usual) & (steps_s <= 1.1 * usual)
    return usual if float(np.mean(regular)) >= REGULAR_SHARE else None
