"""A table: named columns that are read block by block, so that a file is never in memory as a whole.

Files are CSV, Parquet, NPY and NPZ; programs pass arrays and frames. This module knows no time, no sensor and no torch.
"""

import hashlib
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tidegate.training.errors import SeriesTooShort, UnreadableTable

# Rows of a block: few enough to be small beside a large table, enough to hide the cost of a block in Python.
BLOCK_ROWS = 1 << 16
# Bytes of a block of a CSV file. The first determines the types of the columns. pyarrow buffers some forty of them.
BLOCK_BYTES = 1 << 20
KINDS = (".csv", ".parquet", ".npy", ".npz")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        name: in messages.
        sha256: of its content.
        types: the pyarrow type of each column, as inferred from the first block.
        rows: an upper bound of their number; of a CSV file only the lines are counted.
        blocks: the named columns as pyarrow record batches in row order. The columns of the second argument are read as
            text if the format leaves a choice.
        times_optional: whether the table may have no times, as arrays do.
    """

    name: str
    sha256: str
    types: dict[str, Any]
    rows: int
    blocks: Callable[[Sequence[str], Collection[str]], Iterator[Any]]
    times_optional: bool = False


def open_table(path: Path, name: str) -> Table:
    """Open a `.csv`, `.parquet`, `.npy` or `.npz` file.

    Raises:
        UnreadableTable: it is missing, damaged, or of another kind.
        SeriesTooShort: it has no rows.
    """
    readers = dict(zip(KINDS, (_open_csv, _open_parquet, _open_npy, _open_npz), strict=True))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UnreadableTable(
            f"data: {path} is neither a named data set nor a {', '.join(KINDS[:-1])} or {KINDS[-1]} file; "
            f"see `tidegate datasets`"
        )
    try:
        table = reader(path, name)
    except OSError as error:
        raise UnreadableTable(f"data: cannot read {path}: {error.strerror or error}") from error
    except (pa.ArrowException, UnicodeDecodeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    if table.rows == 0:
        raise SeriesTooShort(f"data: {path} has no rows")
    return table


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
    return _checked(
        Table(
            name=name,
            sha256=digest.hexdigest(),
            types={field.name: field.type for field in arrow_table.schema},
            rows=arrow_table.num_rows,
            blocks=lambda columns, _: iter(arrow_table.select(list(columns)).to_batches(max_chunksize=BLOCK_ROWS)),
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

    def blocks(names: Sequence[str], _: Collection[str]) -> Iterator[Any]:
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


def _open_csv(path: Path, name: str) -> Table:
    sha256, rows = _hash_and_count(path)
    read = pa.csv.ReadOptions(block_size=BLOCK_BYTES)

    # An empty cell is missing in a text column too, so that an error names the first real word.
    def convert(**more: Any) -> Any:
        return pa.csv.ConvertOptions(strings_can_be_null=True, **more)

    try:
        with pa.csv.open_csv(path, read_options=read, convert_options=convert()) as reader:
            schema = reader.schema
    except pa.ArrowInvalid:
        schema = _whole_csv(path, convert()).schema  # a line may be longer than a block

    def blocks(columns: Sequence[str], text: Collection[str]) -> Iterator[Any]:
        types = {column: pa.string() if column in text else _widen(schema.field(column).type) for column in columns}
        options = convert(column_types=types, include_columns=list(columns))
        done = 0
        try:
            with pa.csv.open_csv(path, read_options=read, convert_options=options) as reader:
                for batch in reader:
                    yield batch
                    done += batch.num_rows
        except pa.ArrowInvalid:
            # A later block does not fit the types of the first. Types inferred from the whole file cost memory, but then
            # a word among numbers makes a text column, which an error can name.
            texts = {column: pa.string() for column in text}
            try:
                arrow_table = _whole_csv(path, convert(column_types=texts, include_columns=list(columns)))
            except pa.ArrowException as error:
                raise _unreadable(path, error) from error
            yield from arrow_table.slice(done).to_batches(max_chunksize=BLOCK_ROWS)

    return _checked(Table(name, sha256, dict(zip(schema.names, schema.types, strict=True)), rows, blocks), schema.names)


def _whole_csv(path: Path, options: Any) -> Any:
    """The file as one block, so that types are inferred from all of it."""
    read = pa.csv.ReadOptions(block_size=max(path.stat().st_size, 1))
    return pa.csv.read_csv(path, read_options=read, convert_options=options)


def _widen(kind: Any) -> Any:
    """The type that later blocks fit too: fractions may follow whole numbers, and numbers may follow empty cells."""
    return pa.float64() if pa.types.is_integer(kind) or pa.types.is_null(kind) else kind


def _hash_and_count(path: Path) -> tuple[str, int]:
    """The checksum of the file and an upper bound of its rows: its line ends, without that of the header."""
    digest, lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            lines += max(block.count(b"\n"), block.count(b"\r"))
            last = block[-1:]
    if lines == 0:
        return digest.hexdigest(), 0
    return digest.hexdigest(), lines - (last in b"\r\n")


def _open_parquet(path: Path, name: str) -> Table:
    schema = pa.parquet.read_schema(path)
    rows = pa.parquet.read_metadata(path).num_rows

    def blocks(columns: Sequence[str], _: Collection[str]) -> Iterator[Any]:
        try:
            # With a buffer the file is read on demand; without one, a row group at a time.
            with pa.parquet.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
                yield from file.iter_batches(batch_size=BLOCK_ROWS, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:  # OSError: a page that cannot be unpacked
            raise _unreadable(path, error) from error

    return _checked(
        Table(name, _hash_and_count(path)[0], dict(zip(schema.names, schema.types, strict=True)), rows, blocks),
        schema.names,
    )


def _open_npy(path: Path, name: str) -> Table:
    # Mapped, not read: the blocks come from the disk on demand.
    return table_of_arrays(
        columns_of(np.load(path, mmap_mode="r", allow_pickle=False), (), name), name, _hash_and_count(path)[0]
    )


def _open_npz(path: Path, name: str) -> Table:
    with np.load(path, allow_pickle=False) as archive:
        parts = {part: archive[part] for part in archive.files}
    if "values" not in parts:
        raise UnreadableTable(f"{name}: no array 'values'; there are: {', '.join(parts) or 'none'}")
    columns = columns_of(parts.pop("values"), [str(each) for each in parts.pop("names", np.array([])).tolist()], name)
    for part, values in parts.items():
        if values.ndim != 1:
            raise UnreadableTable(
                f"{name}: array {part!r} has shape {values.shape}, expected one value a row beside 'values' and 'names'"
            )
        if part in columns:
            raise UnreadableTable(f"{name}: {part!r} is an array and a name in 'names'; expected each name once")
    return table_of_arrays(parts | columns, name, _hash_and_count(path)[0])


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


def _checked(table: Table, names: Sequence[str]) -> Table:
    repeated = sorted({column for column in names if names.count(column) > 1})
    if repeated:
        raise UnreadableTable(f"data: {table.name} has several columns called {repeated[0]!r}; expected each name once")
    return table


def _unreadable(path: Path, error: Exception) -> UnreadableTable:
    return UnreadableTable(f"data: {path} is not a readable table: {(str(error).splitlines() or ['damaged'])[0]}")
