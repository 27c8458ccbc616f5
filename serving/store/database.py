"""The SQLite file under a store: how it is opened, and its statements over many streams at once.

Synchronous, and used by one thread. That thread runs beside a busy event loop, and every call into SQLite gives the GIL
away and queues for it again. So what is asked of many streams is asked in few calls: values go in as one list, and rows come
back as one JSON text instead of one call a row (measured beside a loop that never pauses, 256 rows: 13 ms, not 424).
"""

# ruff: noqa: S608 (what is put into statements is question marks and names from this file)

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from serving.core.errors import StoreGone, StoreUnavailable
from serving.core.spec import Checkpoint, Key, ModelId
from serving.store.codec import encode
from serving.store.schema import APPLICATION_ID, BEAT, BUILD, HEAD, SCHEMA, WANTED
from serving.store.store import BEAT_SECONDS, DEAD_SECONDS, Head, Holder, Mark, Marking, Tombstone, Wanted

# For UPDATE ... FROM, ON CONFLICT without a target, and JSON that is always there. Debian 12 and Python's own builds have it.
SQLITE_NEEDED = (3, 38, 0)

# Rows a statement: enough to make the calls few, few enough that binding them holds the GIL for under a millisecond.
ROWS = 256
# Bytes of state a statement, since it holds a copy of them: 256 large states would be gigabytes.
CHUNK_BYTES = 4 << 20
# Rows that one `expire` turns, so that it holds the write lock for some 10 ms at most.
EXPIRE_ROWS = 1000
# For how long a notice can be read, in seconds; writers look several times a second. One that was away for longer finds out when
# it next stores.
NOTICE_SECONDS = 60
# Writers that have said nothing for so long are dropped from the list, in seconds.
WRITER_SECONDS = 86_400
NANOSECONDS = 1_000_000_000
# How far from now the last word of a writer that is alive may be. One from the future was said before the clock was put back.
DEAD_NANO = round(DEAD_SECONDS * NANOSECONDS)
# Page cache, in KiB. The system caches the file as well; resident memory stays flat however many streams there are.
CACHE_KIB = 8192
# Pages of 4 KiB in the WAL at which a commit moves them into the database. SQLite's 1,000 would be reached by every single
# commit of a thousand streams; four times that lets a page that is written often be moved once.
WAL_PAGES = 4096
# Between two attempts to enter WAL mode, which another process is just doing.
RETRY_S = 0.01
# For how long SQLite itself waits for a lock; then the store asks again. SQLite looks after 1, 2, 5 ms and more and more rarely,
# up to every 100 ms. Beside processes that commit without a pause, who looks so rarely waits for seconds, and may wait in vain.
LOOK_MS = 8


class Claim(NamedTuple):
    """What `Store.claim` is asked."""

    key: Key
    seen_epoch: int
    model: ModelId


class Row(NamedTuple):
    """A stream as the table has it; the record is still closed."""

    head: Head
    record: bytes | None


class Database:
    """An open SQLite file.

    Every method may raise sqlite3.Error; `explained` makes of it what a user can read. Once the file is open a method waits only
    briefly for other processes: whoever calls it may do so again, when `is_locked` says so.

    Args:
        path: the file; it is made when it is missing.
        writer: the number of who uses it.
        clock: stamps what is written.
        busy_timeout_s: for how long to wait for other processes when the file is opened, and is said to have been waited.

    Raises:
        StoreUnavailable: the file cannot be opened, is not Tidegate's, or is of a newer schema.

    """

    def __init__(self, path: Path, writer: int, clock: Callable[[], int], busy_timeout_s: float) -> None:
        self._path = path
        self._writer = writer
        self._clock = clock
        self._beat_unix_nano = 0
        self._name = f"sqlite://{path.absolute()}"
        self.busy_timeout_s = busy_timeout_s
        if sqlite3.sqlite_version_info < SQLITE_NEEDED:
            raise StoreUnavailable(
                self._name, f"SQLite is {sqlite3.sqlite_version}, expected {'.'.join(map(str, SQLITE_NEEDED))} or newer"
            )
        try:
            self._connection = sqlite3.connect(
                path,
                timeout=busy_timeout_s,
                isolation_level=None,  # transactions begin where we say so
                check_same_thread=False,  # one thread uses it; which, is the store's business
                cached_statements=64,  # nine sizes of each statement over many rows, and the others
            )
        except sqlite3.Error as error:
            raise self.explained(error) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise self.explained(error) from error
        except StoreUnavailable:
            self._connection.close()
            raise
        self._inode = _inode(path)
        self._wal_inode: int | None = None  # until it is first seen
        (self._noticed,) = self._connection.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence").fetchone()

    def close(self) -> None:
        """Closes the file; the last process to do so moves the WAL into it."""
        # Whoever cannot say that it has gone is taken for dead soon.
        with suppress(sqlite3.Error, StoreUnavailable), self.transaction():
            self._connection.execute("DELETE FROM writers WHERE writer = ?", (self._writer,))
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is inside happens in one commit, on disk when it ends, or not at all."""
        self._check_in_place()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself, on a full disk for one.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def load(self, keys: Sequence[Key]) -> list[Row | None]:
        """What is known of each."""
        now = self._clock()
        rows: list[Row | None] = [None] * len(keys)
        for start in range(0, len(keys), ROWS):
            chunk = keys[start : start + ROWS]
            for place, *head, record in self._answer(
                f"""SELECT json_group_array(json_array(wanted.column1, {HEAD}, hex(record)))
                FROM ({_values(3, len(chunk))}) AS wanted
                JOIN streams ON tenant = wanted.column2 AND stream_id = wanted.column3""",
                _flat(((place, *key) for place, key in enumerate(chunk)), 3, len(chunk)),
            ):
                rows[start + place] = Row(self._head(chunk[place].tenant, head, now), bytes.fromhex(record) or None)
        return rows

    def claim(self, claims: Sequence[Claim]) -> list[Row | None]:
        """What is known of each after the claim, None where another epoch is seen. In a transaction; each stream once."""
        now = self._clock()
        if now - self._beat_unix_nano > BEAT_SECONDS * NANOSECONDS:
            self.beat()  # who has a stream is alive
        rows: list[Row | None] = [None] * len(claims)
        for start in range(0, len(claims), ROWS):
            chunk = claims[start : start + ROWS]
            won = self._at_epoch([(claim.key, claim.seen_epoch) for claim in chunk])
            self._give_notice([chunk[place].key for place in won], now)
            highest = self._highest_epoch()
            self._connection.execute(
                f"""INSERT INTO streams (tenant, stream_id, epoch, model_name, model_version, fingerprint,
                    writer, mark, asked, answered, step, created_unix_nano, updated_unix_nano, state_bytes, tombstone)
                SELECT column1, column2, column3, column4, column5, column6, ?, {Mark.LIVE}, 0, 0, 0, ?, ?, 0, 0
                FROM ({_values(6, len(won))}) WHERE column1 IS NOT NULL
                ON CONFLICT DO UPDATE SET
                    epoch = excluded.epoch,
                    writer = excluded.writer,
                    mark = excluded.mark,
                    asked = 0,
                    answered = 0,
                    model_name = excluded.model_name,
                    model_version = excluded.model_version,
                    fingerprint = excluded.fingerprint,
                    step = iif(tombstone, 0, step),
                    created_unix_nano = iif(tombstone, excluded.created_unix_nano, created_unix_nano),
                    updated_unix_nano = excluded.updated_unix_nano,
                    tombstone = 0""",
                [
                    self._writer,
                    now,
                    now,
                    *_flat(
                        (
                            (*chunk[place].key, (chunk[place].seen_epoch or highest) + 1, *chunk[place].model)
                            for place in won
                        ),
                        6,
                        len(won),
                    ),
                ],
            )
            for place, row in zip(won, self.load([chunk[place].key for place in won]), strict=True):
                rows[start + place] = row
        return rows

    def plant(self, checkpoint: Checkpoint, seen_epoch: int) -> Row | None:
        """What is known of a stream that was made with its first state; None where it is there. In a transaction."""
        now = self._clock()
        known = self.load([checkpoint.key])[0]
        if (known.head.epoch if known else 0) != seen_epoch or (known and not known.head.tombstone):
            return None
        self._insert(replace(checkpoint, epoch=(seen_epoch or self._highest_epoch()) + 1), Mark.RELEASED, now)
        return self.load([checkpoint.key])[0]

    def restore(self, checkpoint: Checkpoint) -> bool:
        """Whether a stream was made known again under its own epoch. In a transaction."""
        now = self._clock()
        if self.load([checkpoint.key])[0] is not None or checkpoint.epoch <= self._highest_epoch():
            return False
        self._insert(checkpoint, Mark.LIVE, now)
        return True

    def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps those that are not fenced. In a transaction; each stream once."""
        now = self._clock()
        kept: list[bool] = []
        for chunk in _chunks(checkpoints):
            changed = self._connection.execute(
                f"""UPDATE streams SET
                    step = next.column4, state_bytes = next.column5, record = next.column6, updated_unix_nano = ?
                FROM ({_values(6, len(chunk))}) AS next
                WHERE tenant = next.column1 AND stream_id = next.column2 AND epoch = next.column3
                    AND writer = ? AND tombstone = 0""",
                [
                    now,
                    *_flat(((*c.key, c.epoch, c.step, len(c.payload), encode(c)) for c in chunk), 6, len(chunk)),
                    self._writer,
                ],
            ).rowcount
            if changed == len(chunk):
                kept += [True] * len(chunk)
            else:
                theirs = set(self._at_epoch([(c.key, c.epoch) for c in chunk], writer=self._writer))
                kept += [place in theirs for place in range(len(chunk))]
        return kept

    def mark(self, markings: Sequence[Marking]) -> None:
        """Notes of streams who has them in memory. In a transaction."""
        for start in range(0, len(markings), ROWS):
            chunk = markings[start : start + ROWS]
            self._connection.execute(
                f"""UPDATE streams SET mark = said.column4, answered = max(answered, said.column5)
                FROM ({_values(5, len(chunk))}) AS said
                WHERE tenant = said.column1 AND stream_id = said.column2 AND epoch = said.column3
                    AND writer = ? AND tombstone = 0""",
                [
                    *_flat(((*said.key, said.epoch, said.mark, said.answered) for said in chunk), 5, len(chunk)),
                    self._writer,
                ],
            )

    def ask(self, key: Key, epoch: int) -> int | None:
        """How often the writer of a stream has been asked to store it, now once more. In a transaction."""
        self._give_notice([key], self._clock())
        row = self._connection.execute(
            "UPDATE streams SET asked = asked + 1 WHERE tenant = ? AND stream_id = ? AND epoch = ? RETURNING asked",
            (*key, epoch),
        ).fetchone()
        return row and int(row[0])

    def forget(self, key: Key, epoch: int) -> bool:
        """Whether a stream was deleted. In a transaction."""
        now = self._clock()
        self._give_notice([key], now)
        sql = """UPDATE streams SET epoch = epoch + 1, writer = 0, mark = 0, state_bytes = 0, record = NULL,
            tombstone = 2, updated_unix_nano = ? WHERE tenant = ? AND stream_id = ? AND epoch = ? AND tombstone != 2"""
        return self._connection.execute(sql, (now, *key, epoch)).rowcount == 1

    def scan(self, tenant: str, prefix: str, after: str, limit: int, wanted: Wanted) -> tuple[list[Head], str | None]:
        """Heads in the order of their ids, and the id to go on after."""
        now = self._clock()
        heads = self._answer(
            f"""SELECT json_group_array(json_array({HEAD})) FROM (
                SELECT * FROM streams
                WHERE tenant = :tenant AND stream_id > :after AND stream_id >= :prefix AND (:all OR stream_id < :end)
                    AND {WANTED[wanted]}
                ORDER BY stream_id LIMIT :limit) AS streams""",
            {
                "tenant": tenant,
                "after": after,
                "prefix": prefix,
                "all": _after_all(prefix) is None,
                "end": _after_all(prefix),
                "self": self._writer,
                "first": now - DEAD_NANO,
                "last": now + DEAD_NANO,
                "limit": limit,
            },
        )
        # SQLite does not promise that the array keeps the order of the rows.
        found = sorted((self._head(tenant, head, now) for head in heads), key=lambda head: head.key)
        return found, found[-1].key.stream_id if len(found) == limit else None

    def expire(self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int) -> int:
        """Turns some old streams into tombstones, after dropping some old tombstones. In a transaction."""
        now = self._clock()
        for tombstone, before in (
            (Tombstone.EXPIRED, purge_before_unix_nano),
            (Tombstone.DELETED, purge_deleted_before_unix_nano),
        ):
            gone = self._connection.execute(
                """DELETE FROM streams WHERE rowid IN (
                    SELECT rowid FROM streams WHERE tombstone = ? AND updated_unix_nano < ? LIMIT ?) RETURNING epoch""",
                (tombstone, before, EXPIRE_ROWS),
            ).fetchall()
            if gone:
                self._connection.execute("UPDATE epochs SET highest = max(highest, ?)", max(gone))
        return self._connection.execute(
            f"""UPDATE streams SET epoch = epoch + 1, writer = 0, mark = 0, state_bytes = 0, tombstone = 1, record = NULL
            WHERE rowid IN (
                SELECT rowid FROM streams WHERE tombstone = 0 AND updated_unix_nano < ?
                    AND NOT (mark = {Mark.LIVE} AND (streams.writer = ? OR {BEAT} BETWEEN ? AND ?)) LIMIT ?)""",
            (before_unix_nano, self._writer, now - DEAD_NANO, now + DEAD_NANO, EXPIRE_ROWS),
        ).rowcount

    def beat(self) -> None:
        """Notes that this writer is alive. In a transaction."""
        now = self._beat_unix_nano = self._clock()
        self._connection.execute(
            "INSERT INTO writers VALUES (?, ?) ON CONFLICT DO UPDATE SET beat_unix_nano = excluded.beat_unix_nano",
            (self._writer, now),
        )
        self._connection.execute("DELETE FROM writers WHERE beat_unix_nano < ?", (now - WRITER_SECONDS * NANOSECONDS,))

    def notices(self) -> list[Key]:
        """The streams that writers were told to look at since this was last asked."""
        rows = self._connection.execute(
            "SELECT number, tenant, stream_id FROM notices WHERE number > ? ORDER BY number", (self._noticed,)
        ).fetchall()
        if rows:
            self._noticed = rows[-1][0]
        return list(dict.fromkeys(Key(tenant, stream_id) for _, tenant, stream_id in rows))

    def count(self) -> int:
        """The streams that are not tombstones."""
        count: int = self._connection.execute("SELECT count(*) FROM streams WHERE tombstone = 0").fetchone()[0]
        return count

    def newest_unix_nano(self) -> int:
        """When a stream that is not a tombstone was last updated; 0 when there is none."""
        newest: int | None = self._connection.execute(
            "SELECT max(updated_unix_nano) FROM streams WHERE tombstone = 0"
        ).fetchone()[0]
        return newest or 0

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
        execute = self._connection.execute
        execute("BEGIN")  # one look at the file, which another process may just be making
        self._check_schema()  # before anything is written to what may be somebody else's
        execute("COMMIT")
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
        execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        execute(f"PRAGMA journal_size_limit = {WAL_PAGES * 4096}")  # a WAL that outgrew this is cut when it is reset
        execute("BEGIN IMMEDIATE")
        for statement in BUILD[self._check_schema()]:  # looked at again: another process may have been here
            execute(statement)
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {SCHEMA}")
        execute("COMMIT")
        execute(f"PRAGMA busy_timeout = {LOOK_MS}")

    def _enter_wal(self) -> str:
        """The journal mode that the file could be brought to.

        Here alone SQLite does not wait for others: two processes that begin a file together would lock each other out.
        """
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            try:
                return str(self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
            except sqlite3.OperationalError as error:
                if not self.is_locked(error) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_S)

    def _check_schema(self) -> int:
        """The schema of the file, 0 when it is empty; refuses one that is newer or not ours."""
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
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

    def _at_epoch(self, seen: Sequence[tuple[Key, int]], writer: int | None = None) -> list[int]:
        """Places of those whose epoch is the one that was seen; 0 is that of an unknown stream. At most ROWS.

        With a writer only of those that it may store.
        """
        mine = "" if writer is None else f"AND writer = {writer} AND tombstone = 0"
        [places] = self._connection.execute(
            f"""SELECT json_group_array(seen.column1) FROM ({_values(4, len(seen))}) AS seen
            LEFT JOIN streams ON tenant = seen.column2 AND stream_id = seen.column3
            WHERE seen.column1 IS NOT NULL AND ifnull(epoch, 0) = seen.column4 {mine}""",
            _flat(((place, *key, epoch) for place, (key, epoch) in enumerate(seen)), 4, len(seen)),
        ).fetchone()
        return sorted(json.loads(places))

    def _give_notice(self, keys: Sequence[Key], now: int) -> None:
        """Has the other writers that have these streams in memory look at them. At most ROWS."""
        posted = self._connection.execute(
            f"""INSERT INTO notices (tenant, stream_id, posted_unix_nano)
            SELECT tenant, stream_id, ? FROM ({_values(2, len(keys))}) AS said
            JOIN streams ON tenant = said.column1 AND stream_id = said.column2 WHERE mark != 0 AND writer != ?""",
            [now, *_flat((tuple(key) for key in keys), 2, len(keys)), self._writer],
        ).rowcount
        if posted:
            before = now - NOTICE_SECONDS * NANOSECONDS
            self._connection.execute("DELETE FROM notices WHERE posted_unix_nano < ?", (before,))

    def _insert(self, checkpoint: Checkpoint, mark: Mark, now: int) -> None:
        """Puts a stream with its first state where there is none, or a tombstone."""
        c = checkpoint
        self._connection.execute(
            """INSERT OR REPLACE INTO streams (tenant, stream_id, epoch, writer, mark, asked, answered, step, model_name,
                model_version, fingerprint, created_unix_nano, updated_unix_nano, state_bytes, tombstone, record)
            VALUES (?, ?, ?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, 0, ?)""",
            (*c.key, c.epoch, self._writer, mark, c.step, *c.model, now, now, len(c.payload), encode(c)),
        )

    def _highest_epoch(self) -> int:
        """The highest epoch of a stream that is gone without a tombstone."""
        (highest,) = self._connection.execute("SELECT highest FROM epochs").fetchone()
        return int(highest)

    def _head(self, tenant: str, row: Sequence[Any], now: int) -> Head:
        stream_id, epoch, step, name, version, fingerprint, created, updated, state_bytes, *rest = row
        tombstone, writer, mark, asked, answered, beat = rest
        alive = abs(now - beat) <= DEAD_NANO
        holder = Holder.SELF if mark and writer == self._writer else Holder.OTHER if mark and alive else Holder.NOBODY
        return Head(
            Key(tenant, stream_id),
            epoch,
            step,
            ModelId(name, version, fingerprint),
            created,
            updated,
            state_bytes,
            Tombstone(tombstone),
            holder,
            live=holder is not Holder.NOBODY and mark == Mark.LIVE,
            mine=writer == self._writer,
            asked=asked,
            answered=answered,
        )

    def _answer(self, sql: str, arguments: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
        """The rows that a statement gives as one JSON text."""
        [text] = self._connection.execute(sql, arguments).fetchone()
        return list(json.loads(text))


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


def _chunks(checkpoints: Sequence[Checkpoint]) -> Iterator[Sequence[Checkpoint]]:
    """Parts of up to ROWS checkpoints, of fewer when they are large."""
    start = size = 0
    for place, checkpoint in enumerate(checkpoints):
        if place - start == ROWS or (size and size + len(checkpoint.payload) > CHUNK_BYTES):
            yield checkpoints[start:place]
            start, size = place, 0
        size += len(checkpoint.payload)
    if start < len(checkpoints):
        yield checkpoints[start:]


def _padded(rows: int) -> int:
    """The next power of two: few sizes make few statements, which then stay prepared."""
    return 1 << max(rows - 1, 0).bit_length()


@cache  # nine sizes, three widths
def _values(columns: int, rows: int) -> str:
    """A table of parameters with so many rows, padded."""
    row = f"({','.join('?' * columns)})"
    return "VALUES " + ",".join([row] * _padded(rows))


def _flat(rows: Iterator[tuple[Any, ...]], columns: int, count: int) -> list[Any]:
    """The values of `count` rows one after another; the padding is NULL, which equals nothing."""
    return [*chain.from_iterable(rows), *([None] * (columns * (_padded(count) - count)))]


def _after_all(prefix: str) -> str | None:
    """The least text that comes after all that begin with `prefix`; None when there is none.

    UTF-8 sorts as the characters do, so it is the next character in the place of the last one that has a next.
    """
    stem = prefix.rstrip(chr(0x10FFFF))
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)  # surrogates are no characters
