"""The streams in a SQLite file: statements over many of them at once.

The code is synchronous, and one thread uses it. This thread runs beside a busy event loop, and every call into SQLite
releases the GIL and waits for it again. So operations on many streams need few calls: values go in as one list, and
rows come back as one JSON text instead of one call for each row (measured beside a loop that never pauses, 256 rows: 13
ms, not 424).
"""

# ruff: noqa: S608 (statements are built from question marks and names in this file)

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tidegate.core.errors import StoreUnavailable
from tidegate.core.spec import Checkpoint, Key, ModelId
from tidegate.store.codec import encode, encode_all
from tidegate.store.parameters import ROWS, chunks, columns, flat, table
from tidegate.store.sqlite_file import SqliteFile
from tidegate.store.sqlite_schema import BEAT, METADATA_COLUMNS, SCAN_CONDITIONS
from tidegate.store.store import (
    DEAD_SECONDS,
    HEARTBEAT_SECONDS,
    Holder,
    Residency,
    ResidencyUpdate,
    ScanFilter,
    StreamMetadata,
    Tombstone,
)

# How many rows one `expire` changes, so that it holds the write lock for about 10 ms at most.
EXPIRE_ROWS = 1000
# How many rows one `scan` for a model reads: about ten milliseconds.
SCAN_ROWS = 2_500
# How long a notice is kept, in seconds. Writers read them several times a second. One that was suspended for longer
# finds out when it next saves.
NOTICE_SECONDS = 60
# The time without a heartbeat after which a writer is deleted from the table, in seconds.
WRITER_SECONDS = 86_400
NANOSECONDS = 1_000_000_000
# The largest distance between now and the last heartbeat of a writer that is alive. A heartbeat in the future was
# written before the clock was set back.
DEAD_NANO = round(DEAD_SECONDS * NANOSECONDS)


class Claim(NamedTuple):
    """The arguments of `Store.claim`."""

    key: Key
    seen_epoch: int
    model: ModelId
    owner: str


class StoredRow(NamedTuple):
    """A row of the table. The record is not decoded."""

    metadata: StreamMetadata
    record: bytes | None


class Database:
    """The streams in a SQLite file.

    A method that says "in a transaction" must be called within one of `file`. SQLite's errors are raised as they are.

    Args:
        path: the file; it is created if it is missing.
        writer: the number of the writer that uses it.
        clock: the wall clock for timestamps, in nanoseconds.
        busy_timeout_s: how long to wait for the lock of another process while the file is opened.

    Raises:
        StoreUnavailable: the file cannot be opened, is not Tidegate's, or has a newer schema.

    """

    def __init__(self, path: Path, writer: int, clock: Callable[[], int], busy_timeout_s: float) -> None:
        self.file = SqliteFile(path, busy_timeout_s)
        self._execute = self.file.connection.execute
        self._writer = writer
        self._clock = clock
        self._beat_unix_nano = 0
        (self._noticed,) = self._execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence").fetchone()

    def close(self) -> None:
        """Deletes the entry of its writer, and closes the file."""
        # If that fails, the writer soon counts as dead.
        with suppress(sqlite3.Error, StoreUnavailable), self.file.transaction():
            self._execute("DELETE FROM writers WHERE writer = ?", (self._writer,))
        self.file.close()

    def load(self, keys: Sequence[Key]) -> list[StoredRow | None]:
        """The row of each stream."""
        now = self._clock()
        rows: list[StoredRow | None] = [None] * len(keys)
        for start in range(0, len(keys), ROWS):
            chunk = keys[start : start + ROWS]
            for index, *head, record in self._query_json(
                f"""SELECT json_group_array(json_array(wanted.column1, {METADATA_COLUMNS}, hex(record)))
                FROM ({table(3, len(chunk))}) AS wanted
                JOIN streams ON tenant = wanted.column2 AND stream_id = wanted.column3""",
                flat(((index, *key) for index, key in enumerate(chunk)), 3, len(chunk)),
            ):
                rows[start + index] = StoredRow(
                    self._metadata(chunk[index].tenant, head, now), bytes.fromhex(record) or None
                )
        return rows

    def claim(self, claims: Sequence[Claim]) -> list[StoredRow | None]:
        """The row of each stream after the claim, None where the epoch is another.

        In a transaction; each stream once.
        """
        now = self._clock()
        if now - self._beat_unix_nano > HEARTBEAT_SECONDS * NANOSECONDS:
            self.heartbeat()  # a server that claims streams is alive
        rows: list[StoredRow | None] = [None] * len(claims)
        for start in range(0, len(claims), ROWS):
            chunk = claims[start : start + ROWS]
            won = self._at_epoch([(claim.key, claim.seen_epoch) for claim in chunk])
            self._post_notices([chunk[index].key for index in won], now)
            highest = self._highest_epoch()
            self._execute(
                f"""INSERT INTO streams (tenant, stream_id, epoch, model_name, model_version, fingerprint, owner,
                    writer, mark, asked, answered, step, created_unix_nano, updated_unix_nano, state_bytes, tombstone)
                SELECT column1, column2, column3, column4, column5, column6, column7, ?, {Residency.LIVE}, 0, 0, 0, ?, ?, 0, 0
                FROM ({table(7, len(won))}) WHERE column1 IS NOT NULL
                ON CONFLICT DO UPDATE SET
                    epoch = excluded.epoch,
                    writer = excluded.writer,
                    mark = excluded.mark,
                    asked = 0,
                    answered = 0,
                    model_name = excluded.model_name,
                    model_version = excluded.model_version,
                    fingerprint = excluded.fingerprint,
                    owner = excluded.owner,
                    step = iif(tombstone, 0, step),
                    created_unix_nano = iif(tombstone, excluded.created_unix_nano, created_unix_nano),
                    updated_unix_nano = excluded.updated_unix_nano,
                    tombstone = 0""",
                [
                    self._writer,
                    now,
                    now,
                    *flat(
                        (
                            (*c.key, (c.seen_epoch or highest) + 1, *c.model, c.owner)
                            for c in (chunk[index] for index in won)
                        ),
                        7,
                        len(won),
                    ),
                ],
            )
            for index, row in zip(won, self.load([chunk[index].key for index in won]), strict=True):
                rows[start + index] = row
        return rows

    def create(self, checkpoint: Checkpoint, seen_epoch: int) -> StoredRow | None:
        """The row of a stream that was created with its first state, None where the stream exists. In a transaction."""
        now = self._clock()
        known = self.load([checkpoint.key])[0]
        if (known.metadata.epoch if known else 0) != seen_epoch or (known and not known.metadata.tombstone):
            return None
        self._insert(replace(checkpoint, epoch=(seen_epoch or self._highest_epoch()) + 1), "", Residency.RELEASED, now)
        return self.load([checkpoint.key])[0]

    def restore(self, checkpoint: Checkpoint, owner: str) -> bool:
        """Stores a lost stream under its own epoch. Returns whether it did. In a transaction."""
        now = self._clock()
        if self.load([checkpoint.key])[0] is not None or checkpoint.epoch <= self._highest_epoch():
            return False
        self._insert(checkpoint, owner, Residency.LIVE, now)
        return True

    def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Saves the checkpoints that are not fenced. In a transaction; each stream once."""
        now = self._clock()
        kept: list[bool] = []
        for chunk in chunks(checkpoints):
            keys, epochs, steps, sizes = columns(chunk)
            records = encode_all(chunk)
            firsts = [offset + 1 for offset in records.offsets]  # SQL counts from 1
            rows = zip(*zip(*keys, strict=True), epochs, steps, sizes, firsts, records.sizes, strict=True)
            changed = self._execute(
                f"""UPDATE streams SET
                    step = next.column4, state_bytes = next.column5, record = substr(?, next.column6, next.column7),
                    updated_unix_nano = ?
                FROM ({table(7, len(chunk))}) AS next
                WHERE tenant = next.column1 AND stream_id = next.column2 AND epoch = next.column3
                    AND writer = ? AND tombstone = 0""",
                [records.content, now, *flat(rows, 7, len(chunk)), self._writer],
            ).rowcount
            if changed == len(chunk):
                kept += [True] * len(chunk)
            else:
                writable = set(self._at_epoch(list(zip(keys, epochs, strict=True)), writer=self._writer))
                kept += [index in writable for index in range(len(chunk))]
        return kept

    def set_residency(self, updates: Sequence[ResidencyUpdate]) -> None:
        """Records which streams are in memory. In a transaction."""
        for start in range(0, len(updates), ROWS):
            chunk = updates[start : start + ROWS]
            self._execute(
                f"""UPDATE streams SET mark = changes.column4, answered = max(answered, changes.column5)
                FROM ({table(5, len(chunk))}) AS changes
                WHERE tenant = changes.column1 AND stream_id = changes.column2 AND epoch = changes.column3
                    AND writer = ? AND tombstone = 0""",
                [
                    *flat(
                        ((*update.key, update.epoch, update.residency, update.save_answers) for update in chunk),
                        5,
                        len(chunk),
                    ),
                    self._writer,
                ],
            )

    def request_save(self, key: Key, epoch: int) -> int | None:
        """Requests a save of a stream from its writer. Returns how many requests there were. In a transaction."""
        self._post_notices([key], self._clock())
        row = self._execute(
            "UPDATE streams SET asked = asked + 1 WHERE tenant = ? AND stream_id = ? AND epoch = ? RETURNING asked",
            (*key, epoch),
        ).fetchone()
        return row and int(row[0])

    def delete(self, key: Key, epoch: int) -> bool:
        """Replaces a stream by a tombstone. Returns whether it did. In a transaction."""
        now = self._clock()
        self._post_notices([key], now)
        sql = """UPDATE streams SET epoch = epoch + 1, writer = 0, mark = 0, state_bytes = 0, record = NULL,
            tombstone = 2, owner = '', updated_unix_nano = ? WHERE tenant = ? AND stream_id = ? AND epoch = ? AND tombstone != 2"""
        return self._execute(sql, (now, *key, epoch)).rowcount == 1

    def scan(self, wanted: ScanFilter, after: str, limit: int) -> tuple[list[StreamMetadata], str | None]:
        """Metadata in the order of the ids, and the id to continue after."""
        now = self._clock()
        tenant, prefix, scope, model, version = wanted
        arguments = {
            "tenant": tenant,
            "after": after,
            "prefix": prefix,
            "all": _after_all(prefix) is None,
            "end": _after_all(prefix),
            "self": self._writer,
            "first": now - DEAD_NANO,
            "last": now + DEAD_NANO,
            "limit": limit,
            "model": model,
            "version": version,
        }
        condition = f"""tenant = :tenant AND stream_id > :after AND stream_id >= :prefix AND (:all OR stream_id < :end)
            AND {SCAN_CONDITIONS[scope]}"""
        stop: str | None = None
        if model or version:  # perhaps few of many: there is no index for them
            last = self._execute(
                f"SELECT stream_id FROM streams WHERE {condition} ORDER BY stream_id LIMIT 1 OFFSET {SCAN_ROWS - 1}",
                arguments,
            ).fetchone()
            [stop] = last or [None]
            condition += """ AND (:model = '' OR model_name = :model) AND (:version = '' OR model_version = :version)
                AND (:stop IS NULL OR stream_id <= :stop)"""
        rows = self._query_json(
            f"""SELECT json_group_array(json_array({METADATA_COLUMNS})) FROM (
                SELECT * FROM streams WHERE {condition} ORDER BY stream_id LIMIT :limit) AS streams""",
            {**arguments, "stop": stop},
        )
        # SQLite does not promise that the array keeps the order of the rows.
        found = sorted((self._metadata(tenant, head, now) for head in rows), key=lambda head: head.key)
        return found, found[-1].key.stream_id if len(found) == limit else stop

    def expire(self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int) -> int:
        """Turns some old streams into tombstones, after deleting some old tombstones. In a transaction."""
        now = self._clock()
        for tombstone, before in (
            (Tombstone.EXPIRED, purge_before_unix_nano),
            (Tombstone.DELETED, purge_deleted_before_unix_nano),
        ):
            deleted = self._execute(
                """DELETE FROM streams WHERE rowid IN (
                    SELECT rowid FROM streams WHERE tombstone = ? AND updated_unix_nano < ? LIMIT ?) RETURNING epoch""",
                (tombstone, before, EXPIRE_ROWS),
            ).fetchall()
            if deleted:
                self._execute("UPDATE epochs SET highest = max(highest, ?)", max(deleted))
        return self._execute(
            f"""UPDATE streams SET epoch = epoch + 1, writer = 0, mark = 0, state_bytes = 0, tombstone = 1, owner = '',
                record = NULL
            WHERE rowid IN (
                SELECT rowid FROM streams WHERE tombstone = 0 AND updated_unix_nano < ?
                    AND NOT (mark = {Residency.LIVE} AND (streams.writer = ? OR {BEAT} BETWEEN ? AND ?)) LIMIT ?)""",
            (before_unix_nano, self._writer, now - DEAD_NANO, now + DEAD_NANO, EXPIRE_ROWS),
        ).rowcount

    def heartbeat(self) -> None:
        """Records a heartbeat of this writer. In a transaction."""
        now = self._beat_unix_nano = self._clock()
        self._execute(
            "INSERT INTO writers VALUES (?, ?) ON CONFLICT DO UPDATE SET beat_unix_nano = excluded.beat_unix_nano",
            (self._writer, now),
        )
        self._execute("DELETE FROM writers WHERE beat_unix_nano < ?", (now - WRITER_SECONDS * NANOSECONDS,))

    def take_notices(self) -> list[Key]:
        """The streams of notices since the last call."""
        rows = self._execute(
            "SELECT number, tenant, stream_id FROM notices WHERE number > ? ORDER BY number", (self._noticed,)
        ).fetchall()
        if rows:
            self._noticed = rows[-1][0]
        return list(dict.fromkeys(Key(tenant, stream_id) for _, tenant, stream_id in rows))

    def count(self) -> int:
        """The number of streams without tombstones."""
        count: int = self._execute("SELECT count(*) FROM streams WHERE tombstone = 0").fetchone()[0]
        return count

    def newest_unix_nano(self) -> int:
        """When a stream without a tombstone was last updated; 0 when there is none."""
        newest: int | None = self._execute("SELECT max(updated_unix_nano) FROM streams WHERE tombstone = 0").fetchone()[
            0
        ]
        return newest or 0

    def _at_epoch(self, seen: Sequence[tuple[Key, int]], writer: int | None = None) -> list[int]:
        """The indices of the streams that still have the seen epoch; 0 means an unknown stream. At most SAVED_ROWS.

        With `writer`, only those that this writer may save.
        """
        mine = "" if writer is None else f"AND writer = {writer} AND tombstone = 0"
        [indices] = self._execute(
            f"""SELECT json_group_array(seen.column1) FROM ({table(4, len(seen))}) AS seen
            LEFT JOIN streams ON tenant = seen.column2 AND stream_id = seen.column3
            WHERE seen.column1 IS NOT NULL AND ifnull(epoch, 0) = seen.column4 {mine}""",
            flat(((index, *key, epoch) for index, (key, epoch) in enumerate(seen)), 4, len(seen)),
        ).fetchone()
        return sorted(json.loads(indices))

    def _post_notices(self, keys: Sequence[Key], now: int) -> None:
        """Posts notices to the other writers that have these streams in memory. At most ROWS."""
        posted = self._execute(
            f"""INSERT INTO notices (tenant, stream_id, posted_unix_nano)
            SELECT tenant, stream_id, ? FROM ({table(2, len(keys))}) AS changes
            JOIN streams ON tenant = changes.column1 AND stream_id = changes.column2 WHERE mark != 0 AND writer != ?""",
            [now, *flat((tuple(key) for key in keys), 2, len(keys)), self._writer],
        ).rowcount
        if posted:
            before = now - NOTICE_SECONDS * NANOSECONDS
            self._execute("DELETE FROM notices WHERE posted_unix_nano < ?", (before,))

    def _insert(self, checkpoint: Checkpoint, owner: str, mark: Residency, now: int) -> None:
        """Inserts a stream with its first state, or replaces a tombstone."""
        c = checkpoint
        self._execute(
            """INSERT OR REPLACE INTO streams (tenant, stream_id, epoch, writer, mark, asked, answered, step, model_name,
                model_version, fingerprint, created_unix_nano, updated_unix_nano, state_bytes, tombstone, owner, record)
            VALUES (?, ?, ?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)""",
            (*c.key, c.epoch, self._writer, mark, c.step, *c.model, now, now, len(c.payload), owner, encode(c)),
        )

    def _highest_epoch(self) -> int:
        """The highest epoch of a stream that is gone without a tombstone."""
        (highest,) = self._execute("SELECT highest FROM epochs").fetchone()
        return int(highest)

    def _metadata(self, tenant: str, row: Sequence[Any], now: int) -> StreamMetadata:
        stream_id, epoch, step, name, version, fingerprint, created, updated, state_bytes, *rest = row
        tombstone, writer, mark, asked, answered, owner, beat = rest
        alive = abs(now - beat) <= DEAD_NANO
        holder = Holder.SELF if mark and writer == self._writer else Holder.OTHER if mark and alive else Holder.NONE
        return StreamMetadata(
            Key(tenant, stream_id),
            epoch,
            step,
            ModelId(name, version, fingerprint),
            created,
            updated,
            state_bytes,
            Tombstone(tombstone),
            holder,
            live=holder is not Holder.NONE and mark == Residency.LIVE,
            is_ours=writer == self._writer,
            save_requests=asked,
            save_answers=answered,
            owner=owner,
        )

    def _query_json(self, sql: str, arguments: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
        """The rows that a statement returns as one JSON text."""
        [text] = self._execute(sql, arguments).fetchone()
        return list(json.loads(text))


def _after_all(prefix: str) -> str | None:
    """The least text after all texts that begin with `prefix`; None when there is none.

    UTF-8 sorts by code point. So it is the prefix with its last character incremented; a last character without a
    successor is dropped.
    """
    stem = prefix.rstrip(chr(0x10FFFF))
    if not stem:
        return None
    next_character = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if next_character == 0xD800 else next_character)  # surrogates are not characters
