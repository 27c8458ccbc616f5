"""Where a table comes from: a file, a compressed one, a folder or a pattern of several, or standard input.

This module opens bytes and tells what kind of table each name stands for; it reads no table.
"""

import atexit
import bz2
import gzip
import io
import lzma
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from tidegate.training.errors import UnreadableTable

TEXT = (".csv", ".tsv", ".txt", ".dat", ".log", ".asc")
SPREADSHEET = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
JSON = (".json", ".jsonl", ".ndjson")
ARROW = (".feather", ".arrow")
KINDS = (*TEXT, ".parquet", *ARROW, *SPREADSHEET, *JSON, ".npy", ".npz")
COMPRESSED = (".gz", ".zst", ".xz", ".bz2", ".zip")
STDIN = "-"
# The start of a file shows its kind: standard input has no name that would.
_MAGIC = (
    (b"PAR1", ".parquet"),
    (b"ARROW1", ".feather"),
    (b"\x93NUMPY", ".npy"),
    (b"\x1f\x8b", ".csv.gz"),
    (b"\x28\xb5\x2f\xfd", ".csv.zst"),
    (b"\xfd7zXZ\x00", ".csv.xz"),
    (b"BZh", ".csv.bz2"),
)
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class File:
    """A file that holds one table.

    Attributes:
        name: in messages.
        kind: one of `KINDS`.
        open: opens its bytes, unpacked, from the start.
        path: of the file itself; None if its bytes are packed or came from standard input.
    """

    name: str
    kind: str
    open: Callable[[], Any]
    path: Path | None = None


def find_files(path: Path) -> list[File]:
    """The files that a path stands for, sorted by name: itself, those of a folder, those of a pattern, or standard input.

    Raises:
        UnreadableTable: there is none, or they are of an unknown kind or of several kinds.
        OSError: a file cannot be opened.
    """
    if str(path) == STDIN:
        return _open_stdin()
    if path.is_dir():
        return _of_one_kind(path, sorted(child for child in path.iterdir() if child.is_file() and is_table(child)))
    if not path.exists() and set(str(path)) & set("*?["):
        return _of_one_kind(path, sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))))
    return _files_of(path)


def is_table(path: Path) -> bool:
    """Whether the name has a suffix of a table."""
    return _kind(path.name) is not None


def _of_one_kind(path: Path, found: list[Path]) -> list[File]:
    files = [file for child in found for file in _files_of(child)]
    kinds = sorted({file.kind for file in files})
    if len(kinds) != 1:
        raise UnreadableTable(
            f"data: {path} holds {' and '.join(kinds) or 'no'} files, expected tables of one kind; "
            f"choose them with a pattern such as '{path if path.is_dir() else path.parent}/*.csv'"
        )
    return files


def _files_of(path: Path) -> list[File]:
    kind = _kind(path.name)
    packing = path.suffix.lower()
    if packing == ".zip":
        return _members(path.name, path)
    if kind is None:
        raise UnreadableTable(
            f"data: {path} is neither a named data set nor a {', '.join(KINDS[:-1])} or {KINDS[-1]} file, plain or as "
            f"{', '.join(COMPRESSED)}; see `tidegate datasets`"
        )
    # A browser unpacks and keeps the name; a program packs and keeps it. The bytes know better.
    with path.open("rb") as file:
        head = file.read(8)
    told = next((suffix for magic, suffix in _MAGIC if head.startswith(magic)), "")
    packed_as = told.removeprefix(".csv") if told.startswith(".csv") else ""
    if packed_as:
        return [File(str(path), kind, lambda: _unpack(path, packed_as))]
    if kind in TEXT and head.startswith(_ZIP_MAGIC):
        raise UnreadableTable(
            f"data: {path} is a spreadsheet or a zip archive, whatever its name says; call it .xlsx or .zip"
        )
    kind = told if told and kind in TEXT else kind
    return [File(str(path), kind, lambda: path.open("rb"), path)]


def _kind(name: str) -> str | None:
    """The kind of a table by its name; what is packed and has no other suffix is text."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSED
    if packed:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    return suffix if suffix in KINDS else ".csv" if packed else None


def _unpack(source: Any, packing: str) -> Any:
    """Open packed bytes: a path or an open file."""
    if packing == ".gz":
        return gzip.open(source, "rb")
    if packing == ".xz":
        return lzma.open(source, "rb")
    if packing == ".bz2":
        return bz2.open(source, "rb")
    return io.BufferedReader(
        pa.CompressedInputStream(pa.PythonFile(source) if hasattr(source, "read") else pa.OSFile(str(source)), "zstd")
    )


def _members(name: str, source: Any) -> list[File]:
    """The tables in a zip archive."""
    with zipfile.ZipFile(source) as archive:
        inside = [member for member in archive.namelist() if not member.startswith("__MACOSX/") and _kind(member)]
    kinds = sorted({_kind(member) or "" for member in inside})
    if len(kinds) != 1:
        raise UnreadableTable(
            f"data: {name} holds {' and '.join(kinds) or 'no'} files, expected tables of one kind; unpack it and name one"
        )
    return [File(f"{name}/{member}", kinds[0], partial(_open_member, source, member)) for member in sorted(inside)]


def _open_member(source: Any, member: str) -> Any:
    return zipfile.ZipFile(source).open(member)


@cache
def _spool(stream: Any) -> Any:
    """A temporary file with what a stream holds, which can be read once."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
    shutil.copyfileobj(stream, spool)
    spool.flush()
    atexit.register(spool.close)
    return spool


def _open_stdin() -> list[File]:
    """Standard input is read more than once, so it goes through a temporary file."""
    spool = _spool(sys.stdin.buffer)

    def reopen() -> Any:
        os.lseek(spool.fileno(), 0, os.SEEK_SET)
        return os.fdopen(os.dup(spool.fileno()), "rb")

    with reopen() as start:
        head = start.read(8)

    name = "standard input"
    if head.startswith(b"PK"):
        with zipfile.ZipFile(reopen()) as archive:
            if any(member.startswith(("xl/", "[Content_Types]")) for member in archive.namelist()):
                return [File(name, ".xlsx", reopen)]
            if any(member.endswith(".npy") for member in archive.namelist()):
                return [File(name, ".npz", reopen)]
        return _members(name, reopen())
    kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
    if kind is None:
        kind = ".json" if head.lstrip()[:1] in (b"[", b"{") else ".csv"
    packing = next((suffix for suffix in COMPRESSED if kind.endswith(suffix)), "")
    if packing:
        return [File(name, ".csv", lambda: _unpack(reopen(), packing))]
    return [File(name, kind, reopen)]
