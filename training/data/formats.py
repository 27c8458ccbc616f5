"""A path -> `Table`: files of each kind, and several files as one table."""

import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from tidegate.training.data import files, table
from tidegate.training.data.delimited import open_delimited, unreadable
from tidegate.training.data.documents import open_json, open_spreadsheet
from tidegate.training.data.files import File, find_files
from tidegate.training.data.table import Table, checked, columns_of, table_of_arrays
from tidegate.training.errors import SeriesTooShort, UnreadableTable
from tidegate.training.settings import Format

# The column with the names of several files.
FILE_COLUMN = "file"
Opener = Callable[[File, str, Format], Table]


def open_table(path: Path, name: str, options: Format | None = None) -> Table:
    """Open a file, the files of a folder or a pattern as one table, or standard input (`-`).

    Raises:
        UnreadableTable: it is missing, damaged, or of another kind.
        SeriesTooShort: it has no rows.
    """
    try:
        found = find_files(path)
        tables = [_open(file, name if len(found) == 1 else file.name, options or Format()) for file in found]
    except OSError as error:
        raise UnreadableTable(f"data: cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise unreadable(str(path), error) from error
    opened = tables[0] if len(tables) == 1 else _joined(tables, name)
    if opened.rows == 0:
        raise SeriesTooShort(f"data: {path} has no rows")
    return opened


def _open(file: File, name: str, options: Format) -> Table:
    try:
        return _OPENERS[file.kind](file, name, options)
    except UnreadableTable:
        raise
    except (
        pa.ArrowException,
        LookupError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        lzma.LZMAError,
        zlib.error,
    ) as error:
        raise unreadable(file.name, error) from error


def _joined(tables: Sequence[Table], name: str) -> Table:
    """The rows of several tables one after the other."""
    first = tables[0]
    for other in tables[1:]:
        if set(other.types) != set(first.types):
            extra = sorted(set(other.types) ^ set(first.types))
            raise UnreadableTable(
                f"data: {other.name} has other columns than {first.name}: {', '.join(extra)}; expected the same in all "
                f"files"
            )
        if (other.numbers, other.understood, other.days_before) != (first.numbers, first.understood, first.days_before):
            raise UnreadableTable(
                f"data: {other.name} is written otherwise than {first.name}: {other.understood}, not {first.understood}; "
                f"name what is right for all files with --delimiter, --decimal and --encoding"
            )

    # Often each machine has a file of its own: their names are a column for --group.
    file_column = FILE_COLUMN if FILE_COLUMN not in first.types else ""

    def blocks(columns: Sequence[str]) -> Iterator[Any]:
        own = [column for column in columns if column != file_column]
        for part in tables:
            for batch in part.blocks(own or list(first.types)[:1]):
                arrays = {column: batch.column(column) for column in own}
                if file_column in columns:
                    arrays[file_column] = pa.array([Path(part.name).name.split(".")[0]] * batch.num_rows)
                yield pa.record_batch([arrays[column] for column in columns], names=list(columns))

    return Table(
        name=name,
        sha256=hashlib.sha256("".join(part.sha256 for part in tables).encode()).hexdigest(),
        types=first.types | ({file_column: pa.string()} if file_column else {}),
        rows=sum(part.rows for part in tables),
        blocks=blocks,
        times_optional=first.times_optional,
        units=first.units,
        understood=f"{len(tables)} files" + (f", {first.understood}" if first.understood else ""),
        notes=first.notes,
        later_notes=lambda: [note for part in tables for note in part.later_notes()],
        advice=first.advice,
        days_before=first.days_before,
        numbers=first.numbers,
        ambiguous=first.ambiguous,
        file_column=file_column,
    )


def _open_parquet(file: File, name: str, _: Format) -> Table:
    schema, rows = _parquet_head(file)

    def blocks(columns: Sequence[str]) -> Iterator[Any]:
        try:
            # With a buffer the file is read on demand; without one, a row group at a time.
            with pa.parquet.ParquetFile(_source(file), buffer_size=table.BLOCK_BYTES, pre_buffer=False) as parquet:
                yield from parquet.iter_batches(batch_size=table.BLOCK_ROWS, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:  # OSError: a page that cannot be unpacked
            raise unreadable(file.name, error) from error

    opened = Table(name, _sha256(file), dict(zip(schema.names, schema.types, strict=True)), rows, blocks)
    return checked(opened, schema.names)


def _parquet_head(file: File) -> tuple[Any, int]:
    with pa.parquet.ParquetFile(_source(file)) as parquet:
        return parquet.schema_arrow, parquet.metadata.num_rows


def _source(file: File) -> Any:
    """What pyarrow reads at any place: the file, or its unpacked bytes."""
    if file.path:
        return file.path
    with file.open() as raw:
        return pa.BufferReader(raw.read())


def _open_feather(file: File, name: str, _: Format) -> Table:
    arrow_table = pa.feather.read_table(_source(file))

    def blocks(columns: Sequence[str]) -> Iterator[Any]:
        yield from arrow_table.select(list(columns)).combine_chunks().to_batches(max_chunksize=table.BLOCK_ROWS)

    types = {field.name: field.type for field in arrow_table.schema}
    return checked(Table(name, _sha256(file), types, arrow_table.num_rows, blocks), arrow_table.schema.names)


def _open_npy(file: File, name: str, _: Format) -> Table:
    # Mapped, not read: the blocks come from the disk on demand.
    values = np.load(file.path, mmap_mode="r", allow_pickle=False) if file.path else np.load(file.open())
    return table_of_arrays(columns_of(values, (), name), name, _sha256(file))


def _open_npz(file: File, name: str, _: Format) -> Table:
    with np.load(file.path or file.open(), allow_pickle=False) as archive:
        parts = {part: archive[part] for part in archive.files}
    if "values" not in parts:
        raise UnreadableTable(
            f"{name}: no array 'values'; there are: {', '.join(parts) or 'none'}; save the sensors as one array 'values' of shape "
            f"(time, features), their names as 'names', and the times beside them"
        )
    columns = columns_of(parts.pop("values"), [str(each) for each in parts.pop("names", np.array([])).tolist()], name)
    for part, values in parts.items():
        if values.ndim != 1:
            raise UnreadableTable(
                f"{name}: array {part!r} has shape {values.shape}, expected one value a row beside 'values' and 'names'"
            )
        if part in columns:
            raise UnreadableTable(f"{name}: {part!r} is an array and a name in 'names'; expected each name once")
    return table_of_arrays(parts | columns, name, _sha256(file))


def _sha256(file: File) -> str:
    digest = hashlib.sha256()
    with file.open() as raw:
        while block := raw.read(table.BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


_OPENERS: dict[str, Opener] = {
    **dict.fromkeys(files.TEXT, open_delimited),
    **dict.fromkeys(files.SPREADSHEET, open_spreadsheet),
    **dict.fromkeys(files.JSON, open_json),
    **dict.fromkeys(files.ARROW, _open_feather),
    ".parquet": _open_parquet,
    ".npy": _open_npy,
    ".npz": _open_npz,
}
