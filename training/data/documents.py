"""Spreadsheets and JSON -> `Table`. Such files are read whole; their cells go the way of those of a text file."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from typing import Any

import pyarrow as pa

from tidegate.training.data import table
from tidegate.training.data.cells import SAVE_AGAIN, UNCALCULATED
from tidegate.training.data.dialect import (
    COMMENT,
    Dialect,
    dialect_of_rows,
    repeated_lines,
    repeated_note,
    unit_of_name,
)
from tidegate.training.data.files import File
from tidegate.training.data.sheets import read_sheet
from tidegate.training.data.table import Table, unique_names
from tidegate.training.errors import UnreadableTable
from tidegate.training.settings import Format

# Days from the zero of a spreadsheet to that of one that counts from 1904.
DAYS_TO_1904 = 1462
# What JSON files call the list of their rows.
_ROWS = ("data", "rows", "records", "results", "values", "states")


def open_spreadsheet(file: File, name: str, options: Format) -> Table:
    """The table of a sheet: the one that is named, or the first that has values.

    Raises:
        UnreadableTable: it is no spreadsheet, it is encrypted, or no sheet has that name.
    """
    with file.open() as raw:
        sha256 = hashlib.sha256(content := raw.read()).hexdigest()
    sheet = read_sheet(content, options.sheet, name)
    understood = f"sheet {sheet.name!r}" if sheet.others else ""
    advice = f"; or choose another sheet with --sheet: {', '.join(sheet.others)}" if sheet.others else ""
    found = _table_of_rows(sheet.rows, name, sha256, options, understood, sheet.numbers)
    if any(UNCALCULATED in row for row in sheet.rows):
        advice += f"; the sheet has formulas without a value: {SAVE_AGAIN}"
    return replace(found, advice=advice, days_before=DAYS_TO_1904 if sheet.since_1904 else 0)


def open_json(file: File, name: str, options: Format) -> Table:
    """The table of a list of objects, of an object of lists, or of one object a line.

    Raises:
        UnreadableTable: it is not JSON, or has another shape.
    """
    with file.open() as raw:
        content = raw.read()
    sha256 = hashlib.sha256(content).hexdigest()
    parsed = _parse(content, file, name)
    if isinstance(parsed, dict):
        parsed = _unwrapped(parsed)
    if isinstance(parsed, list) and parsed and all(isinstance(row, list) for row in parsed):
        if all(isinstance(row, dict) for part in parsed for row in part):  # the history of Home Assistant
            parsed = [row for part in parsed for row in part]
        else:
            rows = [["" if cell is None else cell for cell in row] for row in parsed]
            return _table_of_rows(rows, name, sha256, options, "", range(1, len(rows) + 1))
    if isinstance(parsed, list) and parsed and all(isinstance(row, dict) for row in parsed):
        flat = [dict(_flat(row)) for row in parsed]
        columns = {key: [row.get(key) for row in flat] for row in flat for key in row}
    elif isinstance(parsed, dict) and parsed and all(isinstance(part, list) for part in parsed.values()):
        columns = parsed
    else:
        raise UnreadableTable(
            f"data: {name} is not a readable table: expected a list of objects, an object of lists, or an object in each line"
        )
    if len({len(values) for values in columns.values()}) > 1:
        raise UnreadableTable(f"data: {name} is not a readable table: its lists differ in length")
    arrays = {str(key): _array(values) for key, values in columns.items()}
    return _table_of(pa.table(arrays), Table(name, sha256, {}, 0, iter))


def _parse(content: bytes, file: File, name: str) -> Any:
    text = content.decode("utf-8-sig")
    try:
        if file.kind == ".json":
            try:
                return json.loads(text)
            except json.JSONDecodeError:
                if "\n" not in text.strip():
                    raise
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise UnreadableTable(f"data: {name} is not a readable table: {error}") from error


def _unwrapped(parsed: dict[str, Any]) -> Any:
    """The rows within an object: those of pandas' ways to write a frame, or of its only list."""
    if isinstance(parsed.get("columns"), list) and isinstance(parsed.get("data"), list):
        names = [str(column) for column in parsed["columns"]]
        rows = [dict(zip(names, row, strict=False)) for row in parsed["data"]]
        index = parsed.get("index", [])
        return [{"index": at, **row} for at, row in zip(index, rows, strict=False)] if index else rows
    if parsed and all(isinstance(part, dict) for part in parsed.values()):  # {"temp": {"1709251200000": 20.5, ...}}
        index = list(dict.fromkeys(key for part in parsed.values() for key in part))
        return {"index": index, **{name: [part.get(key) for key in index] for name, part in parsed.items()}}
    for key in _ROWS:
        if isinstance(parsed.get(key), list) and parsed[key] and isinstance(parsed[key][0], dict):
            return parsed[key]
    return parsed


def _flat(row: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of an object; those of an inner object are called `outer.inner`."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _array(values: Sequence[Any]) -> Any:
    """An Arrow array; as text if the values are of several types."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _table_of_rows(
    rows: Sequence[Sequence[Any]],
    name: str,
    sha256: str,
    options: Format,
    understood: str,
    numbers: Sequence[int],
) -> Table:
    """The table of rows of cells, whose names and units are found as in a text file; `numbers` are those of the rows."""
    comment = COMMENT if options.comment is None else options.comment
    every = [(tuple(_text(cell) for cell in row), row, number) for row, number in zip(rows, numbers, strict=True)]
    lines = [line for line in every if not (comment and line[0] and line[0][0].startswith(comment))] or every
    written = [cell for _, row, _ in lines for cell in row if isinstance(cell, str)]
    dialect = dialect_of_rows([(number, cells) for cells, _, number in lines], options, name, written)
    repeated = set(repeated_lines([cells for cells, _, _ in lines[: dialect.skip]]))
    body = [row for cells, row, _ in lines[dialect.skip :] if cells not in repeated]
    decimal = dialect.numbers.decimal if dialect.numbers else "."
    names, notes = unique_names(dialect.names, dialect.width)
    units = dialect.units or tuple(unit_of_name(column) for column in dialect.names)
    columns = {
        column: pa.array([_cell(row[place], decimal) if place < len(row) else None for row in body], pa.string())
        for place, column in enumerate(names)
    }
    about = ", ".join(part for part in (understood, _place(dialect)) if part)
    head = Table(
        name=name,
        sha256=sha256,
        types={},
        rows=0,
        blocks=iter,
        units={column: unit for column, unit in zip(names, units, strict=False) if unit},
        understood=about,
        notes=(*notes, *dialect.notes, *repeated_note(len(lines) - dialect.skip - len(body))),
        numbers=dialect.numbers,
        ambiguous=dialect.example,
    )
    return _table_of(pa.table(columns), head)


def _table_of(arrow_table: Any, head: Table) -> Table:
    """The table of an Arrow table in memory, with all else from `head`."""

    def blocks(columns: Sequence[str]) -> Iterator[Any]:
        yield from arrow_table.select(list(columns)).combine_chunks().to_batches(max_chunksize=table.BLOCK_ROWS)

    types = {field.name: field.type for field in arrow_table.schema}
    return replace(head, types=types, rows=arrow_table.num_rows, blocks=blocks)


def _place(dialect: Dialect) -> str:
    """Where the names stand, without what only a text file has."""
    return dialect.describe().partition(" between columns")[2].removeprefix(", ")


def _text(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ")
    if isinstance(cell, timedelta):  # a time of day that is written as a span
        hours, rest = divmod(cell.total_seconds(), 3600)
        return f"{int(hours):02}:{int(rest // 60):02}:{rest % 60:06.3f}".removesuffix(".000")
    return cell.isoformat() if isinstance(cell, date | time) else str(cell).strip()


def _cell(cell: Any, decimal: str) -> str | None:
    """The text of a cell in the notation of the table; None if it is empty."""
    text = _text(cell)
    if isinstance(cell, float) and decimal != ".":
        text = text.replace(".", decimal)
    return text or None
