"""A SQLite file of Tidegate: opening it, migrating its schema, its transactions, and its errors."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidegate.core.errors import StoreGone, StoreUnavailable
from tidegate.store.sqlite_schema import APPLICATION_ID, BUILD, SCHEMA

# For UPDATE ... FROM, ON CONFLICT without a target, and built-in JSON. Debian 12 and Python's own builds have it.
SQLITE_NEEDED = (3, 38, 0)
# The page cache, in KiB. The system caches the file as well. Resident memory stays flat however many streams there are.
CACHE_KIB = 8192
# The page size of a new file, in bytes. Ten records of 1.5 KB share a page. Of SQLite's 4 KiB pages, two would share
# one and leave a quarter of it empty; larger pages take a fifth less processor time for each record. A stream that is
# saved alone writes three pages, which is little beside its fsync.
PAGE_BYTES = 16384
# The size of the WAL, in bytes, at which a commit copies it into the database. SQLite's default of 4 MB would be
# reached by every other commit of a thousand streams. With four times that, a page that is written often is copied
# once.
WAL_BYTES = 16 << 20
# The time between two attempts to enter WAL mode while another process enters it.
RETRY_S = 0.01
# The least time to wait for a file with an older schema, in seconds. Another process may be migrating it, which copies
# every stream (100,000 of 3 KB took 6 s). With a shorter time, the workers of a server could never start on a large
# file: the first that gives up ends the start of all, also of the one that migrates.
TAKE_OVER_S = 600.0
# How long SQLite itself waits for a lock; then the store tries again. SQLite checks after 1, 2, 5 ms and ever more
# rarely, up to every 100 ms. Beside processes that commit without a pause, a process that checks so rarely waits for
# seconds, and perhaps in vain.
LOOK_MS = 8


class SqliteFile:
    """An open SQLite file.

    Every method may raise sqlite3.Error; `explained` turns it into an error for users. Once the file is open, a method
    waits only briefly for other processes. The caller may call it again when `is_locked` is true for the error.

    Args:
        path: the file; it is created if it is missing.
        busy_timeout_s: how long to wait for the lock of another process while the file is opened, and the time that
            errors name. A file with an older schema is migrated first, and the wait for that is longer.

    Raises:
        StoreUnavailable: the file cannot be opened, is not Tidegate's, or has a newer schema.

    """

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self._path = path
        self._name = f"sqlite://{path.absolute()}"
        self.busy_timeout_s = busy_timeout_s
        if sqlite3.sqlite_version_info < SQLITE_NEEDED:
            raise StoreUnavailable(
                self._name, f"SQLite is {sqlite3.sqlite_version}, expected {'.'.join(map(str, SQLITE_NEEDED))} or newer"
            )
        try:
            self.connection = sqlite3.connect(
                path,
                timeout=busy_timeout_s,
                isolation_level=None,  # transactions begin explicitly
                check_same_thread=False,  # one thread uses it; the store ensures that
                cached_statements=72,  # nine to eleven sizes of each statement over many rows, and the others
            )
        except sqlite3.Error as error:
            raise self.explained(error) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.connection.close()
            raise self.explained(error) from error
        except StoreUnavailable:
            self.connection.close()
            raise
        self._inode = _inode(path)
        self._wal_inode: int | None = None  # until it was first seen

    def close(self) -> None:
        """Closes the file. The last process to do so copies the WAL into it."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction: its changes are on disk when it ends, or none of them took effect."""
        self._check_in_place()
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself, for example on a full disk.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def is_locked(self, error: Exception) -> bool:
        """Whether another process held the lock, so that a retry may help."""
        return _code(error) == sqlite3.SQLITE_BUSY

    def explained(self, error: sqlite3.Error) -> StoreUnavailable:
        """What is wrong with the file, and what to do about it."""
        return explain(self._path, error, self.busy_timeout_s)

    def _prepare(self) -> None:
        """Sets the mode and the schema of the file."""
        execute = self.connection.execute
        execute("BEGIN")  # one consistent view of the file, which another process may be creating
        schema = self._check_schema()  # before writing to a file that may belong to another program
        execute("COMMIT")
        timeout_s = self.busy_timeout_s
        if 0 < schema < SCHEMA:
            self.busy_timeout_s = max(timeout_s, TAKE_OVER_S)
            execute(f"PRAGMA busy_timeout = {round(self.busy_timeout_s * 1000)}")
        execute(f"PRAGMA page_size = {PAGE_BYTES}")  # takes effect in an empty file only
        mode = self._enter_wal()
        if mode != "wal":
            raise StoreUnavailable(
                self._name,
                f"its file system cannot share memory (journal mode is {mode}, expected wal); put it on a local disk",
            )
        execute(
            "PRAGMA synchronous = FULL"
        )  # a commit is on disk when it returns; NORMAL would sync only when the WAL is copied
        execute("PRAGMA fullfsync = ON")  # the same on macOS, where fsync stops at the cache of the drive
        execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        execute("PRAGMA temp_store = MEMORY")  # statements over a thousand rows keep them while they run
        (page_bytes,) = execute("PRAGMA page_size").fetchone()
        execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // page_bytes}")
        execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")  # a larger WAL is truncated when it is reset
        execute("BEGIN IMMEDIATE")
        for statement in BUILD[self._check_schema()]:  # checked again: another process may have migrated it
            execute(statement)
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {SCHEMA}")
        execute("COMMIT")
        execute(f"PRAGMA busy_timeout = {LOOK_MS}")
        self.busy_timeout_s = timeout_s

    def _enter_wal(self) -> str:
        """Enters WAL mode. Returns the journal mode that the file has then.

        Only here SQLite does not wait for a lock: two processes that create a file together would fail.
        """
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            try:
                return str(self.connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
            except sqlite3.OperationalError as error:
                if not self.is_locked(error) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_S)

    def _check_schema(self) -> int:
        """The schema of the file, 0 when it is empty. Refuses a newer one, and a file of another program."""
        (application,) = self.connection.execute("PRAGMA application_id").fetchone()
        (schema,) = self.connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (application or schema or tables):
            raise StoreUnavailable(self._name, "is a database of another program; name another file")
        if schema > SCHEMA:
            raise StoreUnavailable(
                self._name,
                f"its schema {schema} is newer than {SCHEMA}, the newest that this server knows; update the server",
            )
        return int(schema)

    def _check_in_place(self) -> None:
        """Raises StoreGone when the file was moved or replaced.

        SQLite would continue to write, and a restart would find nothing. This checks the WAL as well, which has the newest commits.
        """
        wal = _inode(self._path.with_name(self._path.name + "-wal"))
        if self._inode != _inode(self._path) or (self._wal_inode is not None and self._wal_inode != wal):
            raise StoreGone(
                self._name,
                "or its WAL was removed or replaced while in use; restart the server to use what is there now",
            )
        self._wal_inode = wal


_MEANINGS = {
    sqlite3.SQLITE_BUSY: "another process held its lock for more than {seconds:g} s; see who with `fuser`",
    sqlite3.SQLITE_FULL: "the disk is full; nothing was written: make room on the file system of {folder}",
    sqlite3.SQLITE_READONLY: "may not be written; let this user write to the file and to {folder}",
    sqlite3.SQLITE_PERM: "may not be written; let this user write to the file and to {folder}",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; {folder} must exist and this user must be able to write to it",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database; name another file, or put a backup in its place",
    sqlite3.SQLITE_CORRUPT: "is damaged; stop all servers that use it and put a backup in its place",
    sqlite3.SQLITE_IOERR: "the disk failed ({name}); look at the system's log",
}


def explain(path: Path, error: sqlite3.Error, busy_timeout_s: float) -> StoreUnavailable:
    """What is wrong with a file, and what to do about it."""
    name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
    meaning = _MEANINGS.get(_code(error), "{error} ({name})")
    folder = path.absolute().parent
    return StoreUnavailable(
        f"sqlite://{path.absolute()}", meaning.format(error=error, name=name, folder=folder, seconds=busy_timeout_s)
    )


def _inode(path: Path) -> int | None:
    """The inode, which tells a file from another one of the same name; None when there is no file."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _code(error: Exception) -> int:
    """The primary result code of SQLite. Errors of the module itself have none."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
