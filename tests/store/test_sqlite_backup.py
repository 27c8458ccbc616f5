"""A copy of a SQLite file that is in use, and `tidegate backup`, which makes it."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.servers import run_command
from tests.store.support import MODEL, checkpoint, claim, key
from tests.store.test_schema import SCHEMA_1, SCHEMA_2
from tidegate.core.errors import StoreUnavailable
from tidegate.store import SqliteStore, copy_database

STATE = bytes(range(256)) * 16


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store in use, whose newest commit is in the WAL only: stream s at timestep 7."""
    store = SqliteStore(tmp_path / "streams.db")
    await store.start()
    await claim(store, key("s"), 0, MODEL)
    assert await store.save([checkpoint("s", 1, step=7, payload=STATE)]) == [True]
    assert (tmp_path / "streams.db-wal").stat().st_size > 0
    yield store
    await store.close()


async def stored(path: Path) -> tuple[int, bytes]:
    """Timestep and state of stream s in a file."""
    store = SqliteStore(path)
    await store.start()
    record = await store.load(key("s"))
    await store.close()
    assert record is not None
    assert record.checkpoint is not None
    return record.checkpoint.step, bytes(record.checkpoint.payload)


async def test_a_copy_has_what_was_stored_when_it_was_made(store: SqliteStore, tmp_path: Path) -> None:
    """Also what is in the WAL only, and nothing that came later; the server goes on."""
    assert copy_database(tmp_path / "streams.db", tmp_path / "copy.db") == 1
    assert await store.save([checkpoint("s", 1, step=8, payload=STATE)]) == [True]
    assert not (tmp_path / "copy.db-wal").exists()
    assert await stored(tmp_path / "copy.db") == (7, STATE)
    assert await stored(tmp_path / "streams.db") == (8, STATE)


async def test_a_copy_never_sees_half_of_a_commit(store: SqliteStore, tmp_path: Path) -> None:
    """While a transaction is open, it has the state before."""
    with closing(sqlite3.connect(tmp_path / "streams.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE streams SET step = 9")
        assert copy_database(tmp_path / "streams.db", tmp_path / "copy.db") == 1
        other.execute("COMMIT")
    assert await stored(tmp_path / "copy.db") == (7, STATE)


async def test_the_file_of_a_server_that_was_killed_is_copied(store: SqliteStore, tmp_path: Path) -> None:
    """With its WAL, which nobody has copied into it."""
    (tmp_path / "left").mkdir()
    for name in ("streams.db", "streams.db-wal"):
        (tmp_path / "left" / name).write_bytes((tmp_path / name).read_bytes())
    assert copy_database(tmp_path / "left" / "streams.db", tmp_path / "copy.db") == 1
    assert await stored(tmp_path / "copy.db") == (7, STATE)


@pytest.mark.parametrize("schema", [SCHEMA_1, SCHEMA_2], ids=["1", "2"])
def test_a_file_of_an_older_server_is_copied_as_it_is(tmp_path: Path, schema: str) -> None:
    """A backup before an upgrade serves to go back."""
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.executescript(schema)
    assert copy_database(tmp_path / "old.db", tmp_path / "copy.db") == 0
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (1 if schema is SCHEMA_1 else 2,)


def make_foreign(path: Path) -> None:
    """A database of another program."""
    with closing(sqlite3.connect(path)) as other:
        other.executescript("CREATE TABLE streams (tombstone)")


def make_newer(path: Path) -> None:
    """A file of a newer server."""
    with closing(sqlite3.connect(path)) as newer:
        newer.executescript("CREATE TABLE a (b); PRAGMA application_id = 0x54644774; PRAGMA user_version = 99")


def make_rubbish(path: Path) -> None:
    """No database."""
    path.write_bytes(b"rubbish" * 1000)


def make_damaged(path: Path) -> None:
    """A file of Tidegate that lost its second half."""
    with closing(sqlite3.connect(path)) as file:
        file.executescript(
            SCHEMA_2 + "PRAGMA journal_mode = DELETE; INSERT INTO notices VALUES (1, 'a', hex(zeroblob(50000)), 0)"
        )
    path.write_bytes(path.read_bytes()[:40_000])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (make_foreign, "is not a file of Tidegate"),
        (make_newer, "its schema 99 is newer than 3"),
        (make_rubbish, "is not a SQLite database"),
        (make_damaged, "is damaged"),
        (lambda _: None, "cannot be read: No such file"),
    ],
    ids=["foreign", "newer", "rubbish", "damaged", "missing"],
)
def test_what_is_no_store_is_not_copied(tmp_path: Path, make: object, problem: str) -> None:
    """With the reason, and nothing is left of the copy: an empty one would be found out too late."""
    assert callable(make)
    make(tmp_path / "a.db")
    with pytest.raises(StoreUnavailable, match=problem) as caught:
        copy_database(tmp_path / "a.db", tmp_path / "copy.db")
    assert str(tmp_path / "a.db") in str(caught.value)
    assert not (tmp_path / "copy.db").exists()


async def test_the_command_finds_the_file_as_the_server_does(store: SqliteStore, tmp_path: Path) -> None:
    """By the same variables, and it replaces an older copy only when the new one is complete."""
    target = tmp_path / "backup.db"
    target.write_text("older")
    ended = run_command("backup", str(target), TIDEGATE_STATE=f"sqlite://{tmp_path / 'none.db'}")
    assert (ended.returncode, target.read_text()) == (1, "older")
    ended = run_command("backup", str(target), TIDEGATE_STATE=f"sqlite://{tmp_path / 'streams.db'}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"wrote 1 streams, {target.stat().st_size:,} bytes, to {target}\n"
    assert await stored(target) == (7, STATE)


@pytest.mark.parametrize(
    ("state", "target", "problem"),
    [
        ("redis://localhost", "copy.db", "--state: only SQLite is copied"),
        ("memory:", "copy.db", "--state: only SQLite is copied"),
        ("tape:", "copy.db", "--state: tape:: expected memory:"),
        ("sqlite://{folder}/a.db", ".", "is not a file"),
        ("sqlite://{folder}/a.db", "a.db", "is the file that is to be copied"),
        ("sqlite://{folder}/a.db", "none/copy.db", "cannot be written: No such file"),
    ],
)
def test_a_wrong_use_is_one_line(tmp_path: Path, state: str, target: str, problem: str) -> None:
    """With exit code 2, and without a copy."""
    (tmp_path / "a.db").write_bytes(b"kept")
    ended = run_command("backup", target, "--state", state.format(folder=tmp_path), cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert problem in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]
    assert (tmp_path / "a.db").read_bytes() == b"kept"
