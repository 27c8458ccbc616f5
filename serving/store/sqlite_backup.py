"""A copy of a SQLite file of Tidegate that servers may be writing to.

`VACUUM INTO` copies in one read transaction: the copy is the file as of one moment, with what is in the WAL, and no
server waits for it. SQLite's backup API begins anew whenever a server commits between two of its pieces, so with a
commit every 200 ms it might never end.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from tidegate.core.errors import StoreUnavailable
from tidegate.store.sqlite_file import explain
from tidegate.store.sqlite_schema import APPLICATION_ID, SCHEMA

# How long to wait for a server that is just creating or migrating the file.
BUSY_TIMEOUT_S = 10.0


def copy_database(path: Path, target: Path) -> int:
    """Copies the streams of a file that may be in use. Returns how many there are.

    The copy has been checked and is on disk when this returns. Nothing of it is left when it fails.

    Args:
        path: the file of a store.
        target: the copy, which must not exist.

    Raises:
        StoreUnavailable: the file cannot be read, is damaged, not Tidegate's, or has a newer schema.
        OSError: the copy cannot be written.

    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise StoreUnavailable(_name(path), f"cannot be read: {error.strerror}") from error
    target.open("xb").close()
    try:
        with _opened(path) as source:
            _check_origin(source, path)
            source.execute("VACUUM INTO ?", (str(target),))
        count = _checked_count(target)
        for written in (target, target.absolute().parent):  # SQLite does not do it for VACUUM INTO
            _sync(written)
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        broken = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        raise explain(path if broken else target, error, BUSY_TIMEOUT_S) from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return count


def _check_origin(source: sqlite3.Connection, path: Path) -> None:
    """Raises StoreUnavailable unless it is a store whose schema is known."""
    (application,) = source.execute("PRAGMA application_id").fetchone()
    (schema,) = source.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise StoreUnavailable(_name(path), "is not a file of Tidegate; name another one")
    if schema > SCHEMA:
        raise StoreUnavailable(
            _name(path),
            f"its schema {schema} is newer than {SCHEMA}; use the version of Tidegate that its servers have",
        )


def _checked_count(target: Path) -> int:
    """The number of streams in a copy. Raises StoreUnavailable when it is damaged."""
    with _opened(target) as copy:
        (finding,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise StoreUnavailable(_name(target), f"the copy is damaged: {finding}")
        (schema,) = copy.execute("PRAGMA user_version").fetchone()
        gone = "expired" if schema == 1 else "tombstone"
        return int(copy.execute(f"SELECT count(*) FROM streams WHERE {gone} = 0").fetchone()[0])  # noqa: S608


def _name(path: Path) -> str:
    return f"sqlite://{path.absolute()}"


def _opened(path: Path) -> "closing[sqlite3.Connection]":
    """A connection that only reads, closed at the end of a `with`."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None))


def _sync(path: Path) -> None:
    """Writes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
