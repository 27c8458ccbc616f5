"""A table: named columns that are read block by block, so that a file is never in memory as a whole.

`formats` opens files; programs pass arrays and frames. This module knows no time, no sensor and no torch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegate.training.data.cells import POINT, NumberFormat
from tidegate.training.errors import UnreadableTable

# Rows of a block: few enough to be small beside a large table, enough to hide the cost of a block in Python.
BLOCK_ROWS = 1 << 16
# Bytes of a block of a CSV file. The first determines the types of the columns. pyarrow buffers some forty of them.
BLOCK_BYTES = 1 << 20

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        name: in messages.
        sha256: of its content.
        types: the pyarrow type of each column; text files have only text.
        rows: an upper bound of their number; of a text file only the lines are counted.
        blocks: the named columns as pyarrow record batches in row order.
        times_optional: whether the table may have no times, as arrays do.
        units: by column, where the file tells them.
        understood: what was guessed of the file, in words; empty if nothing was.
        notes: sentences for the user.
        numbers: how numbers are written in columns of text; None if that cannot be told.
        ambiguous: a cell that shows why `numbers` is None.
        later_notes: more sentences, known when all blocks are read.
        advice: what may help where the table lacks a column, to be added to such an error.
        days_before: days of a spreadsheet before those of its numbers, if these are not counted from 1900.
        file_column: the column with the name of the file of each row, if there are several; no feature.
    """

    name: str
    sha256: str
    types: dict[str, Any]
    rows: int
    blocks: Callable[[Sequence[str]], Iterator[Any]]
    times_optional: bool = False
    units: dict[str, str] = field(default_factory=dict)
    understood: str = ""
    notes: tuple[str, ...] = ()
    numbers: NumberFormat | None = POINT
    ambiguous: str = ""
    later_notes: Callable[[], Sequence[str]] = tuple
    advice: str = ""
    days_before: int = 0
    file_column: str = ""


def unique_names(names: Sequence[str], width: int) -> tuple[list[str], tuple[str, ...]]:
    """A name for each of `width` columns, each once; and what was changed, for the user.

    A column without a name is called c0, c1, ... by its place; of equal names the second is `name_2`.
    """
    taken: set[str] = set()
    result, unnamed, repeated = [], [], []
    for place in range(width):
        written = " ".join(names[place].split()) if place < len(names) else ""
        name, number = written or f"c{place}", 2
        while name in taken or (name != written and name in names):
            name, number = f"{written or f'c{place}'}_{number}", number + 1
        if not written:
            unnamed.append(name)
        elif name != written:
            repeated.append(f"{written!r} is called {name!r}")
        taken.add(name)
        result.append(name)
    notes = [f"a name occurs twice: {', '.join(repeated)}"] if repeated else []
    if names and unnamed:
        notes.append(f"columns without a name are called {', '.join(unnamed)}")
    return result, tuple(notes)


def table_of_frame(frame: Any, name: str) -> Table:
    """The table of a pandas or polars frame, a pyarrow table, or any object with the same interface.

    Raises:
        UnreadableTable: the object has no such interface.
    """
    try:
        if hasattr(frame, "__arrow_c_stream__"):
            arrow_table = pa.table(frame)
        elif hasattr(frame, "to_arrow"):
            arrow_table = frame.to_arrow()
        elif hasattr(frame, "columns") and hasattr(frame, "to_numpy"):
            arrow_table = pa.table({str(column): np.asarray(frame[column]) for column in frame.columns})
        else:
            raise UnreadableTable(
                f"{name}: got {type(frame).__name__}, expected an array of numbers (time, features), a data frame or an "
                f"Arrow table"
            )
    except pa.ArrowException as error:
        raise UnreadableTable(f"{name}: not a readable table: {str(error).splitlines()[0]}") from error
    digest = hashlib.sha256()
    for batch in arrow_table.to_batches(max_chunksize=BLOCK_ROWS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        digest.update(sink.getvalue())
    return checked(
        Table(
            name=name,
            sha256=digest.hexdigest(),
            types={field.name: field.type for field in arrow_table.schema},
            rows=arrow_table.num_rows,
            blocks=lambda columns: iter(arrow_table.select(list(columns)).to_batches(max_chunksize=BLOCK_ROWS)),
        ),
        arrow_table.schema.names,
    )


def table_of_arrays(columns: dict[str, Array], name: str, sha256: str | None = None) -> Table:
    """The table of one-dimensional arrays of equal length. The arrays are not copied.

    Raises:
        UnreadableTable: the lengths differ, or an array holds no numbers, times or text.
    """
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{column!r} has {length}" for column, length in lengths.items())
        raise UnreadableTable(f"{name}: the columns differ in length: {listed}; expected one value a row in each")
    try:
        types = {column: _arrow(values[:1]).type for column, values in columns.items()}
    except (pa.ArrowException, TypeError) as error:
        raise UnreadableTable(f"{name}: not a readable table: {str(error).splitlines()[0]}") from error
    rows = next(iter(lengths.values()), 0)

    def blocks(names: Sequence[str]) -> Iterator[Any]:
        for first in range(0, rows, BLOCK_ROWS):
            parts = [_arrow(columns[column][first : first + BLOCK_ROWS]) for column in names]
            yield pa.RecordBatch.from_arrays(parts, names=list(names))

    return Table(name, sha256 or _sha256_of(columns), types, rows, blocks, times_optional=True)


def _arrow(values: Array) -> Any:
    if values.dtype.kind == "M":
        values = values.astype("datetime64[ns]")  # Arrow knows neither minutes nor hours
    return pa.array(np.ascontiguousarray(values))


def _sha256_of(columns: dict[str, Array]) -> str:
    digest = hashlib.sha256()
    for column, values in columns.items():
        digest.update(f"{column} {values.dtype.str} {len(values)}\n".encode())
        for first in range(0, len(values), BLOCK_ROWS):
            digest.update(np.ascontiguousarray(values[first : first + BLOCK_ROWS]).tobytes())
    return digest.hexdigest()


def columns_of(values: Array, names: Sequence[str], name: str) -> dict[str, Array]:
    """The columns of a two-dimensional array, called `names` or c0, c1, ..., or the fields of a structured one.

    Raises:
        UnreadableTable: the array has another shape, or there are not as many names as columns.
    """
    if values.dtype.names and values.ndim == 1:
        return {field: values[field] for field in values.dtype.names}
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise UnreadableTable(
            f"{name}: got an array of {values.dtype} with shape {values.shape}, expected numbers of shape (time, features) "
            f"or a structured array of shape (time,)"
        )
    names = list(names) or [f"c{index}" for index in range(values.shape[1])]
    if len(names) != values.shape[1] or len(set(names)) != len(names):
        raise UnreadableTable(
            f"{name}: got {len(set(names))} different names for {values.shape[1]} columns, expected one for each"
        )
    return {column: values[:, index] for index, column in enumerate(names)}


def checked(table: Table, names: Sequence[str]) -> Table:
    """The table, if each name occurs once.

    Raises:
        UnreadableTable: a name occurs twice.
    """
    repeated = sorted({column for column in names if names.count(column) > 1})
    if repeated:
        raise UnreadableTable(f"data: {table.name} has several columns called {repeated[0]!r}; expected each name once")
    return table
