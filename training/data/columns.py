"""The roles of the columns of a table: its time, group, label and split key, its features, and the derived ones."""

from collections.abc import Collection, Sequence
from typing import TypedDict

from tidegate.training.data import features
from tidegate.training.data.table import Table
from tidegate.training.errors import GroupColumnError, LabelColumnError, MissingColumn, TimeColumnError
from tidegate.training.settings import as_typed


class Columns(TypedDict, total=False):
    """The roles of the columns of a table.

    Attributes:
        time: the column of times, or those of date and time of day by a comma. It is detected if there is only one.
        period_s: seconds from row to row of a table without times; the times then count from 1970.
        group: the column that assigns a row to one of several series. Rows of a group need not be together.
        split_by: the column whose values a split keeps together, such as the person; constant within a group.
        label: the class of each row, as text or whole numbers; an empty cell is unlabelled.
        columns: the features, in this order; all columns but those above if empty. A name that the table lacks is derived
            if `features` knows it.
        exclude: columns to leave out.
        keep: features that stay even if they are constant or empty: targets, and the features of a model.
        derived: features to derive, unless the table has them.
        fill_gaps: the longest gap of a regular series, in rows, that becomes missing values.
    """

    time: str | None
    period_s: float | None
    group: str | None
    split_by: str | None
    label: str | None
    columns: Sequence[str]
    exclude: Sequence[str]
    keep: Sequence[str]
    derived: Sequence[str]
    fill_gaps: int


# What a column of Unix times or of digits is called, in lower case: numbers are times only by their name.
TIME_NAMES = frozenset(
    [
        "time",
        "timestamp",
        "datetime",
        "date",
        "ts",
        "epoch",
        "unix",
        "unixtime",
        "unix_time",
        "time_stamp",
        "date_time",
        "_time",
        "utc",
        "zeit",
        "zeitstempel",
        "datum",
        "datum_zeit",
        "fecha",
        "heure",
        "tid",
        "data_hora",
        "time_utc",
        "timestamp_ms",
        "time_ms",
        "epoch_ms",
        "timestamp_ns",
    ]
)


def role_columns(table: Table, columns: Columns) -> dict[str, str]:
    """The columns of group, split key and label, by role."""
    chosen = {"group": columns.get("group"), "split_by": columns.get("split_by"), "label": columns.get("label")}
    roles = {role: column for role, column in chosen.items() if column}
    for role, column in roles.items():
        _require_column(table, column, role.replace("_", "-"))
    if "split_by" in roles and "group" not in roles:
        raise GroupColumnError(
            f"{table.name}: split-by {roles['split_by']!r} without a group, expected the column that separates the series; "
            f"name it with --group, {roles['split_by']} itself if need be"
        )
    if "label" in roles and roles["label"] in (roles.get("group"), roles.get("split_by")):
        raise LabelColumnError(
            f"{table.name}: label {roles['label']!r} is the column of the groups, expected another: the group "
            f"already determines it"
        )
    return roles


def time_columns(
    table: Table, columns: Columns, roles: dict[str, str], kinds: dict[str, str], timed: Collection[str] = ()
) -> list[str]:
    """The columns of times: one, or several that are joined; none if rows are a period apart, or numbered.

    `kinds` tells what the cells of each column are, see `kind_of`; `timed` are the dates that have a time of day.
    """
    chosen, period_s = columns.get("time"), columns.get("period_s")
    passed = {*roles.values(), *columns.get("exclude", ())}
    if chosen:
        found = [chosen] if chosen in table.types else [part.strip() for part in chosen.split(",")]
        for column in found:
            _require_column(table, column, "time")
            if column in roles.values():
                raise TimeColumnError(
                    f"{table.name}: column {column!r} is the time and the group or label; expected one of them"
                )
    else:
        found = _find_times(table, passed, kinds, period_s, timed)
    if period_s is not None and found:
        raise TimeColumnError(
            f"{table.name}: period {period_s:g} s beside the times of column {found[0]!r}, expected one of them; "
            f"leave --period out, or the column with --exclude {as_typed(found[0])}"
        )
    if not found and period_s is None and not table.times_optional:
        clocks = [column for column, kind in kinds.items() if kind == "clock"]
        what = f"{clocks[0]!r} holds times of day without a date" if clocks else "got none"
        raise TimeColumnError(
            f"{table.name}: expected one column of time stamps, {what}; name it with --time, or say with --period how "
            f"many seconds lie between two rows; there are: {', '.join(table.types)}{table.advice}"
        )
    return found


def _find_times(
    table: Table, passed: set[str], kinds: dict[str, str], period_s: float | None, timed: Collection[str]
) -> list[str]:
    """The one column of time stamps, or those of date and time of day, or the numbers whose name says that they are times."""
    dates = [column for column, kind in kinds.items() if column not in passed and kind == "date"]
    clocks = [column for column, kind in kinds.items() if column not in passed and kind == "clock"]
    if len(dates) > 1:
        raise TimeColumnError(
            f"{table.name}: expected one column of time stamps, got several: {', '.join(dates)}; name it with --time"
        )
    named = [column for column in table.types if column not in passed and column.strip().lower() in TIME_NAMES]
    numbers = [column for column in named if kinds[column] == "number"]
    if not dates and len(numbers) == 1 and period_s is None and not table.times_optional:
        dates = numbers
    return [*dates, *clocks] if len(dates) == len(clocks) == 1 and dates[0] not in timed else dates


def feature_columns(table: Table, columns: Columns, taken: set[str]) -> tuple[list[str], list[str]]:
    """The features to read and those to derive."""
    known = [name for name in table.types if name not in taken and name != table.file_column]
    asked, excluded = columns.get("columns", ()), columns.get("exclude", ())
    for name in excluded:
        _require_column(table, name, "excluded")
    derived = [
        name for name in (*asked, *columns.get("derived", ())) if name not in known and features.is_derived(name)
    ]
    for name in asked:
        if name in taken:
            raise MissingColumn(
                f"{table.name}: column {name!r} is the time, the group or the label and no feature; there are: "
                f"{', '.join(known)}"
            )
        if name not in known and name not in derived:
            raise MissingColumn(f"{table.name}: no column {name!r}; there are: {', '.join(known)}")
    chosen_names = [name for name in (asked or known) if name not in excluded and name not in derived]
    if not chosen_names:
        raise MissingColumn(f"{table.name}: no feature column is left beside {', '.join(sorted(taken)) or 'nothing'}")
    return chosen_names, list(dict.fromkeys(derived))


def _require_column(table: Table, column: str, what: str) -> None:
    if column not in table.types:
        raise MissingColumn(
            f"{table.name}: no {what} column {column!r}; there are: {', '.join(table.types)}{table.advice}"
        )
