"""SQLite files of older servers: they are migrated completely or not at all, and a server with an open file continues."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.store.support import MODEL, checkpoint, claim, key, scan
from tidegate.core.errors import StoreUnavailable
from tidegate.store import Holder, Record, Residency, SqliteStore, StreamMetadata, Tombstone, encode
from tidegate.store import sqlite_file as file_module
from tidegate.store.sqlite_database import Claim, Database

KEPT = checkpoint("kept", 3, step=7, payload=bytes(9000))
# Files as those servers made them.
SCHEMA_1 = """CREATE TABLE streams (
        tenant TEXT NOT NULL, stream_id TEXT NOT NULL, epoch INTEGER NOT NULL, step INTEGER NOT NULL,
        model_name TEXT NOT NULL, model_version TEXT NOT NULL, fingerprint TEXT NOT NULL,
        created_unix_nano INTEGER NOT NULL, updated_unix_nano INTEGER NOT NULL, state_bytes INTEGER NOT NULL,
        expired INTEGER NOT NULL, record BLOB, PRIMARY KEY (tenant, stream_id));
    CREATE INDEX streams_by_age ON streams (expired, updated_unix_nano);
    PRAGMA application_id = 0x54644774;
    PRAGMA user_version = 1;"""
SCHEMA_2 = """CREATE TABLE streams (
        tenant TEXT NOT NULL, stream_id TEXT NOT NULL, epoch INTEGER NOT NULL, writer INTEGER NOT NULL,
        mark INTEGER NOT NULL, asked INTEGER NOT NULL, answered INTEGER NOT NULL, step INTEGER NOT NULL,
        model_name TEXT NOT NULL, model_version TEXT NOT NULL, fingerprint TEXT NOT NULL,
        created_unix_nano INTEGER NOT NULL, updated_unix_nano INTEGER NOT NULL, state_bytes INTEGER NOT NULL,
        tombstone INTEGER NOT NULL, record BLOB, PRIMARY KEY (tenant, stream_id));
    CREATE INDEX streams_by_age ON streams (tombstone, updated_unix_nano);
    CREATE INDEX streams_expired ON streams (tenant, stream_id) WHERE tombstone = 1;
    CREATE INDEX streams_held ON streams (tenant, stream_id) WHERE mark != 0;
    CREATE TABLE writers (writer INTEGER PRIMARY KEY, beat_unix_nano INTEGER NOT NULL);
    CREATE TABLE notices (number INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL, stream_id TEXT NOT NULL, posted_unix_nano INTEGER NOT NULL);
    CREATE TABLE epochs (highest INTEGER NOT NULL);
    INSERT INTO epochs VALUES (5);
    PRAGMA journal_mode = WAL;
    PRAGMA application_id = 0x54644774;
    PRAGMA user_version = 2;"""
# The writer of a server with schema 2, and its save statement.
OLD_WRITER = 1 << 61
OLD_SAVE = """UPDATE streams SET step = ?, state_bytes = ?, record = ?, updated_unix_nano = ?
    WHERE tenant = ? AND stream_id = ? AND epoch = ? AND writer = ? AND tombstone = 0"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the file."""
    return tmp_path / "streams.db"


def make_1(path: Path) -> None:
    """A file of schema 1 with a stream and a tombstone."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA_1)
        for stream_id, expired, record in (("kept", 0, encode(KEPT)), ("old", 1, None)):
            database.execute(
                "INSERT INTO streams VALUES ('default', ?, 3, 7, ?, ?, ?, 1, 2, 9000, ?, ?)",
                (stream_id, *MODEL, expired, record),
            )
        database.commit()


def make_2(path: Path) -> None:
    """A file of schema 2 with the same, and a stream that a server has in memory."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA_2)
        for stream_id, mark, tombstone, record in (
            ("held", Residency.LIVE, 0, None),
            ("kept", Residency.RELEASED, 0, encode(KEPT)),
            ("old", Residency.RELEASED, 1, None),
        ):
            writer = 0 if tombstone else OLD_WRITER
            database.execute(
                "INSERT INTO streams VALUES ('default', ?, 3, ?, ?, 2, 1, 7, ?, ?, ?, 1, 2, 9000, ?, ?)",
                (stream_id, writer, mark, *MODEL, tombstone, record),
            )
        database.execute("INSERT INTO writers VALUES (?, ?)", (OLD_WRITER, time.time_ns()))
        database.commit()


def layout(path: Path) -> list[tuple[Any, ...]]:
    """The columns of each table of a file in order, and the statements of its indexes."""
    with closing(sqlite3.connect(path)) as database:
        columns = """SELECT tables.name, columns.* FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns
            WHERE tables.type = 'table' ORDER BY tables.name, columns.cid"""
        indexes = "SELECT name, tbl_name, sql FROM sqlite_master WHERE type != 'table' ORDER BY name"
        return database.execute(columns).fetchall() + database.execute(indexes).fetchall()


def schema(path: Path) -> int:
    """The schema of a file."""
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Callable[[], None]], None]]:
    """Runs an action once, right before the next connection runs a statement with this beginning."""
    connect = sqlite3.connect

    def arrange(statement: str, act: Callable[[], None]) -> None:
        waiting = [act]

        class Watched(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                if waiting and sql.startswith(statement):
                    monkeypatch.setattr(sqlite3, "connect", connect)
                    waiting.pop()()
                return super().execute(sql, *arguments)

        monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Watched))

    yield arrange
    monkeypatch.setattr(sqlite3, "connect", connect)


async def test_a_file_of_schema_1_is_taken_over(path: Path) -> None:
    """Streams, tombstones and their records are unchanged.

    They are not in memory, have no owner, and can be claimed.
    """
    make_1(path)
    store = SqliteStore(path)
    await store.start()
    head = StreamMetadata(key("kept"), 3, 7, MODEL, 1, 2, 9000)
    tombstone = StreamMetadata(key("old"), 3, 7, MODEL, 1, 2, 9000, Tombstone.EXPIRED)
    assert await store.load(key("kept")) == Record(head, KEPT)
    assert await scan(store, "default", "", "", 10) == [head, tombstone]
    assert await claim(store, key("kept"), 3, owner="ann") == 4
    assert await store.save([replace(KEPT, epoch=4)]) == [True]
    await store.close()


async def test_a_file_of_schema_2_is_taken_over(path: Path) -> None:
    """Residency, save requests and epochs of deleted streams are unchanged too. Streams have no owner."""
    make_2(path)
    store = SqliteStore(path)
    await store.start()
    kept = StreamMetadata(key("kept"), 3, 7, MODEL, 1, 2, 9000, save_requests=2, save_answers=1)
    held = replace(kept, key=key("held"), holder=Holder.OTHER, live=True)
    old = replace(kept, key=key("old"), tombstone=Tombstone.EXPIRED)
    assert await store.load(key("kept")) == Record(kept, KEPT)
    assert await scan(store, "default", "", "", 10) == [held, kept, old]
    assert await claim(store, key("new"), 0, owner="ann") == 6
    assert await claim(store, key("kept"), 3, owner="ann") == 4
    assert await store.save([replace(KEPT, epoch=4)]) == [True]
    record = await store.load(key("kept"))
    assert record is not None
    assert record.metadata.owner == "ann"
    await store.close()


@pytest.mark.parametrize("make", [make_1, make_2])
def test_an_old_file_becomes_like_a_new_one(make: Callable[[Path], None], path: Path) -> None:
    """Its tables and indexes are those of a new file: the same columns in the same order, and nothing more."""
    make(path)
    Database(path, 1, time.time_ns, 5.0).close()
    new = path.with_name("new.db")
    Database(new, 1, time.time_ns, 5.0).close()
    assert layout(path) == layout(new)
    assert schema(path) == schema(new) == 3


async def test_a_server_of_schema_2_that_runs_continues(path: Path) -> None:
    """An old server saves its streams until a newer server opens them. Then its saves are refused."""
    make_2(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        save = (9, 5, encode(checkpoint("held", 3, step=9)), 3, "default", "held", 3, OLD_WRITER)
        assert older.execute(OLD_SAVE, save).rowcount == 1  # its statement is prepared
        store = SqliteStore(path)
        await store.start()
        assert older.execute(OLD_SAVE, save).rowcount == 1
        assert await claim(store, key("held"), 3, owner="ann") == 4
        assert older.execute("SELECT stream_id FROM notices").fetchall() == [("held",)]
        assert older.execute(OLD_SAVE, save).rowcount == 0
        await store.close()


@pytest.mark.parametrize("make", [make_1, make_2])
async def test_servers_that_open_an_old_file_together_take_it_over_once(
    make: Callable[[Path], None], path: Path, meanwhile: Callable[[str, Callable[[], None]], None]
) -> None:
    """A process that has read the old schema does nothing when another one has migrated the file meanwhile."""
    make(path)

    def another() -> None:
        other = Database(path, 1, time.time_ns, 5.0)
        with other.file.transaction():
            [row] = other.claim([Claim(key("kept"), 3, MODEL, "ann")])
            assert row is not None
        other.close()

    meanwhile("PRAGMA synchronous", another)
    store = SqliteStore(path)
    await store.start()
    record = await store.load(key("kept"))
    assert record is not None
    assert (record.metadata.epoch, record.metadata.owner, record.checkpoint) == (4, "ann", KEPT)
    assert schema(path) == 3
    await store.close()


@pytest.mark.parametrize("make", [make_1, make_2])
async def test_many_that_open_an_old_file_at_once_share_it(make: Callable[[Path], None], path: Path) -> None:
    """Stores that start at the same time on an old file all open it, and a stream of it has one next owner."""
    make(path)
    stores = [SqliteStore(path) for _ in range(4)]
    await asyncio.gather(*(store.start() for store in stores))
    won = await asyncio.gather(*(claim(store, key("kept"), 3, owner=str(n)) for n, store in enumerate(stores)))
    assert sorted(won, key=str) == [4, None, None, None]
    for store in stores:
        record = await store.load(key("kept"))
        assert record is not None
        assert record.metadata.owner == str(won.index(4))
    await asyncio.gather(*(store.close() for store in stores))


@pytest.mark.parametrize("make", [make_1, make_2])
@pytest.mark.parametrize("statement", ["INSERT INTO streams", "DROP TABLE", "CREATE INDEX streams_held"])
async def test_a_file_is_taken_over_whole_or_not_at_all(
    make: Callable[[Path], None], path: Path, statement: str, meanwhile: Callable[[str, Callable[[], None]], None]
) -> None:
    """When the migration fails half-way, the file has the old schema and content. The next start migrates it."""
    make(path)
    before, number = layout(path), schema(path)

    def fail() -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    meanwhile(statement, fail)
    with pytest.raises(StoreUnavailable, match="the disk is full; nothing was written"):
        await SqliteStore(path).start()
    assert (layout(path), schema(path)) == (before, number)
    store = SqliteStore(path)
    await store.start()
    record = await store.load(key("kept"))
    assert record is not None
    assert record.checkpoint == KEPT
    await store.close()


async def test_who_takes_an_old_file_over_is_waited_for(
    path: Path, meanwhile: Callable[[str, Callable[[], None]], None]
) -> None:
    """A store waits longer than for a commit, because copying a large file takes longer."""
    make_2(path)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        meanwhile("BEGIN IMMEDIATE", lambda: threading.Timer(0.2, other.execute, ["ROLLBACK"]).start())
        store = SqliteStore(path, busy_timeout_s=0.0)
        await store.start()
        assert not other.in_transaction
    assert schema(path) == 3
    await store.close()


async def test_an_old_file_that_is_locked_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process holds the lock for too long, start fails with that reason, and the file is unchanged."""
    make_2(path)
    monkeypatch.setattr(file_module, "TAKE_OVER_S", 0.25)
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        older.execute("BEGIN IMMEDIATE")
        store = SqliteStore(path, busy_timeout_s=0.05)
        with pytest.raises(StoreUnavailable, match=r"another process held its lock for more than 0\.25 s"):
            await store.start()
        older.execute("ROLLBACK")
    assert schema(path) == 2
    await store.start()
    assert await store.count() == 2
    await store.close()
