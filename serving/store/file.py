"""A SQLite file of Tidegate's: how it is opened and brought to today's schema, its transactions, and what goes wrong with it."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.core.errors import StoreGone, StoreUnavailable
from serving.store.schema import APPLICATION_ID, BUILD, SCHEMA

# For UPDATE ... FROM, ON CONFLICT without a target, and JSON that is always there. Debian 12 and Python's own builds have it.
SQLITE_NEEDED = (3, 38, 0)
# Page cache, in KiB. The system caches the file as well; resident memory stays flat however many streams there are.
CACHE_KIB = 8192
# Bytes of a page of a new file. Ten records of 1.5 KB share one, where two would share one of SQLite's 4 KiB and leave a quarter of
# it empty: measured a fifth less processor time a record. A stream that is stored alone writes three pages, not much beside its fsync.
PAGE_BYTES = 16384
# Bytes in the WAL at which a commit moves them into the database. SQLite's 4 MB would be reached by every other commit of a thousand
# streams; four times that lets a page that is written often be moved once.
WAL_BYTES = 16 << 20
# Between two attempts to enter WAL mode, which another process is just doing.
RETRY_S = 0.01
# For how long to wait for a file of an older schema, at least, in seconds: another process may just be taking it over, which copies
# every stream (100,000 of 3 KB took 6 s). Were that given up, the workers of a server could never start on a large file: the
# first that gives up ends the start of all, and with it the one that copies.
TAKE_OVER_S = 600.0
# For how long SQLite itself waits for a lock; then the store asks again. SQLite looks after 1, 2, 5 ms and more and more rarely,
# up to every 100 ms. Beside processes that commit without a pause, who looks so rarely waits for seconds, and may wait in vain.
LOOK_MS = 8


class File:
    """An open SQLite file.

    Every method may raise sqlite3.Error; `explained` makes of it what a user can read. Once the file is open a method waits only
    briefly for other processes: whoever calls it may do so again, when `is_locked` says so.

    Args:
        path: the file; it is made when it is missing.
        busy_timeout_s: for how long to wait for other processes when the file is opened, and is said to have been waited. A file
            of an older schema is waited for longer: it is taken over first.

    Raises:
        StoreUnavailable: the file cannot be opened, is not Tidegate's, or is of a newer schema.

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
                isolation_level=None,  # transactions begin where we say so
                check_same_thread=False,  # one thread uses it; which, is the store's business
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
        self._wal_inode: int | None = None  # until it is first seen

    def close(self) -> None:
        """Closes the file; the last process to do so moves the WAL into it."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is inside happens in one commit, on disk when it ends, or not at all."""
        self._check_in_place()
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself, on a full disk for one.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def is_locked(self, error: Exception) -> bool:
        """Whether another process held the lock, and asking again may help."""
        return _code(error) == sqlite3.SQLITE_BUSY

    def explained(self, error: sqlite3.Error) -> StoreUnavailable:
        """What is wrong with the file, and what to do about it."""
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        meaning = _MEANINGS.get(_code(error), "{error} ({name})")
        return StoreUnavailable(
            self._name,
            meaning.format(error=error, name=name, folder=self._path.absolute().parent, seconds=self.busy_timeout_s),
        )

    def _prepare(self) -> None:
        """Settles how the file is used, and its schema."""
        execute = self.connection.execute
        execute("BEGIN")  # one look at the file, which another process may just be making
        schema = self._check_schema()  # before anything is written to what may be somebody else's
        execute("COMMIT")
        patience_s = self.busy_timeout_s
        if 0 < schema < SCHEMA:
            self.busy_timeout_s = max(patience_s, TAKE_OVER_S)
            execute(f"PRAGMA busy_timeout = {round(self.busy_timeout_s * 1000)}")
        execute(
            f"PRAGMA page_size = {PAGE_BYTES}"
        )  # before there is anything in it; a file that is there keeps its own
        mode = self._enter_wal()
        if mode != "wal":
            raise StoreUnavailable(
                self._name,
                f"its file system cannot share memory (journal mode is {mode}, expected wal); put it on a local disk",
            )
        execute(
            "PRAGMA synchronous = FULL"
        )  # a commit is on disk when it returns; NORMAL would wait for the WAL to fill
        execute("PRAGMA fullfsync = ON")  # the same on macOS, where fsync stops at the drive's cache
        execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        execute("PRAGMA temp_store = MEMORY")  # statements over a thousand rows hold them for as long as they run
        (page_bytes,) = execute("PRAGMA page_size").fetchone()
        execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // page_bytes}")
        execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")  # a WAL that outgrew this is cut when it is reset
        execute("BEGIN IMMEDIATE")
        for statement in BUILD[self._check_schema()]:  # looked at again: another process may have been here
            execute(statement)
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {SCHEMA}")
        execute("COMMIT")
        execute(f"PRAGMA busy_timeout = {LOOK_MS}")
        self.busy_timeout_s = patience_s

    def _enter_wal(self) -> str:
        """The journal mode that the file could be brought to.

        Here alone SQLite does not wait for others: two processes that begin a file together would lock each other out.
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
        """The schema of the file, 0 when it is empty; refuses one that is newer or not ours."""
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
        """Refuses to write to a file that is no longer where it was: SQLite would, and a restart would find nothing.

        The same for its WAL, where the newest commits are.
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


def _inode(path: Path) -> int | None:
    """What tells a file from another of the same name; None when there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _code(error: Exception) -> int:
    """SQLite's primary result code; errors that the module itself raises have none."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
