"""Which column of a table is what: its time, its roles, the features to read, and those to make."""

from collections.abc import Sequence
from typing import TypedDict

import pyarrow as pa

from training.data import features
from training.data.table import Table
from training.errors import GroupColumnError, LabelColumnError, MissingColumn, TimeColumnError


class Columns(TypedDict, total=False):
    """What the columns of a table are.

    Attributes:
        time: the column of times: time stamps, ISO 8601 text or Unix seconds. Found by itself when there is only one.
        period_s: seconds from row to row of a table without times, which then count from 1970.
        group: says which of several series a row belongs to. Rows of a group need not be together.
        split_by: says what a split must keep whole, such as the person; the same in all rows of a group.
        label: the class of each row, as text or whole numbers; an empty cell is unlabelled.
        columns: take these features, in this order; all but those above when empty. Those that the table does not have
            are made if `features` can.
        exclude: leave these out.
        made: features to make, unless the table has them.
    """

    time: str | None
    period_s: float | None
    group: str | None
    split_by: str | None
    label: str | None
    columns: Sequence[str]
    exclude: Sequence[str]
    made: Sequence[str]


def role_columns(table: Table, columns: Columns) -> dict[str, str]:
    """The columns that say what the rows are, by role."""
    chosen = {"group": columns.get("group"), "split_by": columns.get("split_by"), "label": columns.get("label")}
    roles = {role: column for role, column in chosen.items() if column}
    for role, column in roles.items():
        _see(table, column, role.replace("_", "-"))
    if "split_by" in roles and "group" not in roles:
        raise GroupColumnError(
            f"{table.name}: split-by {roles['split_by']!r} without a group, expected to know which rows are one series; "
            f"name the column that says so with --group, {roles['split_by']} itself if need be"
        )
    if "label" in roles and roles["label"] in (roles.get("group"), roles.get("split_by")):
        raise LabelColumnError(
            f"{table.name}: label {roles['label']!r} is the column of the groups, expected another: what is told by the "
            f"group need not be learned"
        )
    return roles


def time_column(table: Table, columns: Columns, roles: dict[str, str]) -> str | None:
    """The column of times; None when rows are a period apart, or numbered."""
    chosen, period_s = columns.get("time"), columns.get("period_s")
    if chosen:
        _see(table, chosen, "time")
        if chosen in roles.values():
            raise TimeColumnError(
                f"{table.name}: column {chosen!r} is the time and the group or label; expected one of them"
            )
        found = [chosen]
    else:
        passed = {*roles.values(), *columns.get("exclude", ())}
        found = [
            column
            for column, kind in table.types.items()
            if column not in passed and (pa.types.is_timestamp(kind) or pa.types.is_date(kind))
        ]
    if period_s is not None and found:
        raise TimeColumnError(
            f"{table.name}: period {period_s:g} s beside the times of column {found[0]!r}, expected one of them; "
            f"leave --period out, or the column with --exclude {found[0]}"
        )
    if len(found) > 1:
        raise TimeColumnError(
            f"{table.name}: expected one column of time stamps, got several: {', '.join(found)}; name it with --time"
        )
    if not found and period_s is None and not table.timeless:
        raise TimeColumnError(
            f"{table.name}: expected one column of time stamps, got none; name it with --time, or say with --period how "
            f"many seconds lie between two rows"
        )
    return found[0] if found else None


def feature_columns(table: Table, columns: Columns, taken: set[str]) -> tuple[list[str], list[str]]:
    """The features to read and those to make."""
    known = [name for name in table.types if name not in taken]
    asked, excluded = columns.get("columns", ()), columns.get("exclude", ())
    for name in excluded:
        _see(table, name, "excluded")
    made = [name for name in (*asked, *columns.get("made", ())) if name not in known and features.can_make(name)]
    for name in asked:
        if name in taken:
            raise MissingColumn(
                f"{table.name}: column {name!r} is the time, the group or the label and no feature; there are: "
                f"{', '.join(known)}"
            )
        if name not in known and name not in made:
            raise MissingColumn(f"{table.name}: no column {name!r}; there are: {', '.join(known)}")
    wanted = [name for name in (asked or known) if name not in excluded and name not in made]
    if not wanted:
        raise MissingColumn(f"{table.name}: no feature column is left beside {', '.join(sorted(taken)) or 'nothing'}")
    return wanted, list(dict.fromkeys(made))


def _see(table: Table, column: str, what: str) -> None:
    if column not in table.types:
        raise MissingColumn(f"{table.name}: no {what} column {column!r}; there are: {', '.join(table.types)}")
