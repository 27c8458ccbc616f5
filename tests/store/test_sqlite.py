"""Tests for SQLite only: what survives a kill, how processes affect each other, and the errors when the disk fails."""

# ruff: noqa: ASYNC221, ASYNC240 (a test does not share its event loop)

import asyncio
import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.support import MODEL, checkpoint, claim, key, python, scan
from tests.timeouts import TIMEOUT_S
from tidegate.core.errors import CheckpointBroken, StoreGone, StoreUnavailable
from tidegate.store import SqliteStore, encode
from tidegate.store import sqlite as sqlite_module
from tidegate.store import sqlite_file as file_module
from tidegate.store.sqlite_database import Database, _after_all
from tidegate.store.sqlite_file import SqliteFile

OPEN = """
import asyncio, sys
from pathlib import Path
from tidegate.core.spec import Checkpoint, Key, ModelId
from tidegate.store import SqliteStore
MODEL = ModelId("demo", "1", "f" * 64)
store = SqliteStore(Path(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the file."""
    return tmp_path / "streams.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """An open, empty store that waits for locks only briefly."""
    store = SqliteStore(path, busy_timeout_s=0.05)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SqliteFile]:
    """The files that stores have opened, the last one last. Use one only while its store is idle."""
    files: list[SqliteFile] = []
    prepare = SqliteFile._prepare

    def noted(self: SqliteFile) -> None:
        prepare(self)
        files.append(self)

    monkeypatch.setattr(SqliteFile, "_prepare", noted)
    return files


class Gate:
    """Holds the transactions of stores back until it is opened, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.transactions = 0
        self._entered = threading.Event()
        self._open = threading.Event()
        transaction = SqliteFile.transaction

        @contextmanager
        def gated(file: SqliteFile) -> Iterator[None]:
            self.transactions += 1
            self._entered.set()
            assert self._open.wait(TIMEOUT_S)
            with transaction(file):
                yield

        monkeypatch.setattr(SqliteFile, "transaction", gated)

    async def held(self) -> None:
        """Waits until a transaction waits at the gate."""
        await asyncio.to_thread(self._entered.wait, TIMEOUT_S)

    def open(self) -> None:
        """Lets all transactions through."""
        self._open.set()


async def refusal_error(call: Any) -> str:
    """The message of the StoreUnavailable error of a call; never a traceback, always one line."""
    with pytest.raises(StoreUnavailable) as refused:
        await call
    text = str(refused.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


# --- many at once


async def test_what_waits_is_committed_together(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that are queued during a commit share the next one."""
    gate = Gate(monkeypatch)
    calls = [asyncio.create_task(claim(store, key("first"), 0, MODEL))]
    await gate.held()
    calls += [asyncio.create_task(claim(store, key(str(place)), 0, MODEL)) for place in range(500)]
    await asyncio.sleep(0)  # let them queue
    gate.open()
    assert await asyncio.gather(*calls) == [1] * 501
    assert gate.transactions == 2


async def test_a_stream_twice_in_a_commit_is_done_in_order(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims and saves of one stream in one commit take effect in order."""
    gate = Gate(monkeypatch)
    first = asyncio.create_task(claim(store, key("first"), 0, MODEL))
    await gate.held()
    calls = [
        asyncio.create_task(claim(store, key("a"), 0, MODEL)),
        asyncio.create_task(claim(store, key("a"), 0, MODEL)),
        asyncio.create_task(store.save([checkpoint("a", 1, step=1)])),
        asyncio.create_task(store.save([checkpoint("a", 1, step=2)])),
        asyncio.create_task(claim(store, key("a"), 1, MODEL)),
        asyncio.create_task(store.save([checkpoint("a", 1, step=3)])),
        asyncio.create_task(store.delete(key("a"), 1)),
    ]
    await asyncio.sleep(0)
    gate.open()
    assert await asyncio.gather(*calls) == [1, None, [True], [True], 2, [False], False]
    await first
    record = await store.load(key("a"))
    assert record is not None
    assert record.checkpoint == checkpoint("a", 1, step=2)


async def test_many_rows_are_few_statements(
    store: SqliteStore, opened: list[SqliteFile], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save of a thousand streams is one statement, and a load of them one for every 256."""
    another = SqliteStore(path)
    await another.start()
    keys = [key(str(place)) for place in range(1000)]
    await asyncio.gather(*(claim(another, each, 0, MODEL) for each in keys))
    statements: list[str] = []
    opened[-1].connection.set_trace_callback(statements.append)
    assert all(await another.save([checkpoint(each.stream_id) for each in keys]))
    assert [statement.split()[0] for statement in statements] == ["BEGIN", "UPDATE", "COMMIT"]
    gate = Gate(monkeypatch)
    first = asyncio.create_task(claim(another, key("first"), 0, MODEL))
    await gate.held()
    loads = [asyncio.create_task(another.load(each)) for each in keys]
    await asyncio.sleep(0)  # all are queued behind the claim
    statements.clear()
    gate.open()
    await first
    records = await asyncio.gather(*loads)
    assert [record and record.metadata.key for record in records] == keys
    assert sum("hex(record)" in statement for statement in statements) == 4 + 1  # the claim looks too
    await another.close()


async def test_a_bad_operation_fails_alone(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that fails does not fail the others in its commit. It fails with its own error."""
    gate = Gate(monkeypatch)
    first = asyncio.create_task(claim(store, key("first"), 0, MODEL))
    await gate.held()
    calls = [asyncio.create_task(claim(store, key(str(place)), 0, MODEL)) for place in range(20)]
    calls.insert(7, asyncio.create_task(claim(store, key("\ud800"), 0, MODEL)))  # not a text that UTF-8 can encode
    await asyncio.sleep(0)
    gate.open()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(7), UnicodeEncodeError)
    assert results == [1] * 20
    assert await first == 1


async def test_a_cancelled_caller_harms_no_one(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of a commit get their results when one caller has gone, before or during the commit."""
    gate = Gate(monkeypatch)
    runs = asyncio.create_task(claim(store, key("runs"), 0, MODEL))
    await gate.held()
    waits = asyncio.create_task(claim(store, key("waits"), 0, MODEL))
    stays = asyncio.create_task(claim(store, key("stays"), 0, MODEL))
    await asyncio.sleep(0)  # let them queue
    runs.cancel()
    waits.cancel()
    await asyncio.gather(runs, waits, return_exceptions=True)
    gate.open()
    async with asyncio.timeout(TIMEOUT_S):
        assert await stays == 1
    assert repr(store).endswith(": 0 operations waiting>")


async def test_a_full_queue_refuses_at_once(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operation more than may wait is refused. The others stay queued."""
    monkeypatch.setattr(sqlite_module, "QUEUE_MAX", 2)
    gate = Gate(monkeypatch)
    calls = [asyncio.create_task(claim(store, key(str(place)), 0, MODEL)) for place in range(2)]
    await asyncio.sleep(0)
    assert "2 operations wait for the disk" in await refusal_error(claim(store, key("late"), 0, MODEL))
    gate.open()
    assert await asyncio.gather(*calls) == [1, 1]
    assert await claim(store, key("late"), 0, MODEL) == 1


async def test_close_does_what_still_waits(path: Path) -> None:
    """Operations that were queued before close are completed. Later ones are refused."""
    before = set(threading.enumerate())
    store = SqliteStore(path)
    await store.start()
    own = set(threading.enumerate()) - before
    calls = [asyncio.create_task(claim(store, key(str(place)), 0, MODEL)) for place in range(100)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*calls) == [1] * 100
    assert "is not open" in await refusal_error(claim(store, key("a"), 0, MODEL))
    assert [thread.name for thread in own] == ["tidegate-store"]
    assert not any(thread.is_alive() for thread in own)


# --- what survives


async def test_a_commit_waits_for_the_disk(store: SqliteStore, opened: list[SqliteFile], path: Path) -> None:
    """A commit is on disk when it returns, and the cache is bounded."""
    another = SqliteStore(path)
    await another.start()
    ask = opened[-1].connection.execute
    settings = [
        ask(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "fullfsync", "cache_size")
    ]
    assert settings == ["wal", 2, 1, -8192]
    assert store.survives == "a killed process and a power loss"
    await another.close()


async def test_what_was_saved_survives_a_kill(path: Path) -> None:
    """A process that is killed during continuous saves loses nothing that was acknowledged."""
    script = (
        OPEN
        + """
async def main():
    await store.start()
    for place in range(50):
        await store.claim(Key("default", str(place)), 0, MODEL, "")
    step = 0
    while True:
        step += 1
        assert all(await store.save([Checkpoint(Key("default", str(p)), 1, step, MODEL, 4, b"%d" % step) for p in range(50)]))
        print(step, flush=True)
asyncio.run(main())
"""
    )
    with python(script, str(path)) as process:
        assert process.stdout is not None
        for _ in range(20):
            acknowledged = int(process.stdout.readline())
        process.kill()
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])  # what it printed before it died
    store = SqliteStore(path)
    await store.start()
    records = [await store.load(key(str(place))) for place in range(50)]
    steps = {record.checkpoint.step for record in records if record and record.checkpoint}
    assert len(records) == 50
    assert steps in (
        {acknowledged},
        {acknowledged + 1},
    )  # all of one commit, perhaps of the one that was not acknowledged
    await store.close()


# --- other processes


def test_processes_that_begin_a_file_together_share_it(path: Path) -> None:
    """Processes that create a file at the same time all open it, and each stream gets one first owner."""
    script = (
        OPEN
        + """
async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    await store.start()
    won = await asyncio.gather(*(store.claim(Key("default", str(place)), 0, MODEL, "") for place in range(200)))
    print(*(place for place, epoch in enumerate(won) if epoch), flush=True)
    await store.close()
asyncio.run(main())
"""
    )
    with python(script, str(path)) as one, python(script, str(path)) as two, python(script, str(path)) as three:
        processes = (one, two, three)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        won = [list(map(int, process.stdout.readline().split())) for process in processes if process.stdout]
        assert [process.wait(TIMEOUT_S) for process in processes] == [0, 0, 0]
    assert sorted(place for places in won for place in places) == list(range(200))


async def test_another_process_that_begins_the_file_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store waits for a new file that another process creates, where SQLite itself would fail."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(file_module.time, "sleep", lambda _: other.in_transaction and other.execute("ROLLBACK"))
    store = SqliteStore(path)
    await store.start()
    assert not other.in_transaction
    other.close()
    await store.close()


def test_a_file_that_is_just_made_is_not_taken_for_a_foreign_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process creates between two reads is never seen in part."""

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if sql == "PRAGMA user_version":  # the second read
                with monkeypatch.context() as unwatched, suppress(StoreUnavailable):  # it may have to wait for us
                    unwatched.setattr(sqlite3, "connect", connect)
                    Database(path, 1, time.time_ns, 0.01).close()
            return super().execute(sql, *arguments)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Watched))
    Database(path, 1, time.time_ns, 0.05).close()


async def test_a_frozen_process_is_fenced_when_it_wakes(store: SqliteStore, path: Path) -> None:
    """A process that was suspended during a take-over can neither save nor delete."""
    script = (
        OPEN
        + """
async def main():
    await store.start()
    a = Key("default", "a")
    print((await store.claim(a, 0, MODEL, "")).metadata.epoch, flush=True)
    sys.stdin.readline()
    print(await store.save([Checkpoint(a, 1, 9, MODEL, 4, b"late")]), await store.delete(a, 1), flush=True)
    await store.close()
asyncio.run(main())
"""
    )
    with python(script, str(path)) as sleeper:
        assert sleeper.stdout is not None
        assert await asyncio.to_thread(sleeper.stdout.readline) == "1\n"
        assert await claim(store, key("a"), 1, MODEL) == 2
        assert await store.save([checkpoint("a", 2, step=1)]) == [True]
        assert sleeper.stdin is not None
        sleeper.stdin.write("wake\n")
        sleeper.stdin.flush()
        assert await asyncio.to_thread(sleeper.stdout.readline) == "[False] False\n"
    record = await store.load(key("a"))
    assert record is not None
    assert record.checkpoint == checkpoint("a", 2, step=1)


async def test_a_lock_is_waited_for_and_named(store: SqliteStore, path: Path) -> None:
    """While another process holds the lock, writes fail after the timeout and reads work.

    Then everything works again.
    """
    await claim(store, key("a"), 0, MODEL)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        text = await refusal_error(store.save([checkpoint("a")]))
        assert (
            text == f"store sqlite://{path}: another process held its lock for more than 0.05 s; see who with `fuser`"
        )
        assert await store.count() == 1
        other.execute("ROLLBACK")
    other.close()
    assert await store.save([checkpoint("a")]) == [True]


async def test_a_lock_fails_all_that_wait_for_it_at_once(
    opened: list[SqliteFile], store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations in one commit wait for the lock together, with several tries, and no longer than one operation would."""
    gate = Gate(monkeypatch)
    calls = [asyncio.create_task(claim(store, key(str(place)), 0, MODEL)) for place in range(100)]
    await gate.held()
    opened[-1].busy_timeout_s = 2  # forty tries, of which a busy machine misses some
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        gate.open()
        results = await asyncio.gather(*calls, return_exceptions=True)
    other.close()
    assert {type(result) for result in results} == {StoreUnavailable}
    assert 1 < gate.transactions < 50  # not one for each of a hundred


# --- what is wrong with the file


@pytest.mark.parametrize("full", ["database", "disk"])
async def test_a_full_disk_is_named(full: str, opened: list[SqliteFile], path: Path) -> None:
    """When the disk is full, a save fails and saved state stays. The store works again once there is room."""
    if full == "disk":
        mount_small_disk(path.parent)
    store = SqliteStore(path)
    await store.start()
    try:
        if full == "database":
            opened[-1].connection.execute("PRAGMA max_page_count = 100")
        await claim(store, key("a"), 0, MODEL)
        await claim(store, key("b"), 0, MODEL)
        assert await store.save([checkpoint("a", step=1)]) == [True]
        text = await refusal_error(
            store.save([checkpoint("a", step=2), checkpoint("b", step=2, payload=bytes(2 << 20))])
        )
        assert (
            text
            == f"store sqlite://{path}: the disk is full; nothing was written: make room on the file system of {path.parent}"
        )
        record = await store.load(key("a"))
        assert record is not None
        assert record.checkpoint == checkpoint("a", step=1)
        if full == "database":
            opened[-1].connection.execute("PRAGMA max_page_count = 100000")
        else:
            subprocess.run(["mount", "-o", "remount,size=16m", path.parent], check=True)
        assert await store.save([checkpoint("b", step=2, payload=bytes(2 << 20))]) == [True]
    finally:
        await store.close()
        if full == "disk":
            subprocess.run(["umount", path.parent], check=True)


def mount_small_disk(folder: Path) -> None:
    """Mounts a disk of a megabyte over a folder; skips where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs to be allowed to mount a tmpfs; the same is tested with SQLite's own limit")


async def test_room_for_the_small_is_used(
    store: SqliteStore, opened: list[SqliteFile], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation without room on the disk does not fail those in its commit that fit."""
    another = SqliteStore(path)
    await another.start()
    opened[-1].connection.execute("PRAGMA max_page_count = 100")
    await claim(another, key("big"), 0, MODEL)
    gate = Gate(monkeypatch)
    first = asyncio.create_task(claim(another, key("first"), 0, MODEL))
    await gate.held()
    big = asyncio.create_task(another.save([checkpoint("big", payload=bytes(2 << 20))]))
    small = [asyncio.create_task(claim(another, key(str(place)), 0, MODEL)) for place in range(10)]
    await asyncio.sleep(0)
    gate.open()
    assert "the disk is full" in await refusal_error(big)
    assert await asyncio.gather(first, *small) == [1] * 11
    await another.close()


@pytest.fixture
def as_unprivileged_user() -> Iterator[Callable[[], None]]:
    """Drops the rights of root until the test ends."""
    was = os.geteuid()
    yield lambda: os.seteuid(65534) if was == 0 else None
    os.seteuid(was)


@pytest.mark.parametrize("begun", [False, True], ids=["empty", "with a file"])
async def test_a_read_only_folder_is_named(begun: bool, as_unprivileged_user: Callable[[], None]) -> None:
    """Start refuses a folder that cannot be written, and names it, whether the file exists or not."""
    with tempfile.TemporaryDirectory() as name:  # the user nobody cannot even enter pytest's own folders
        folder = Path(name)
        store = SqliteStore(folder / "streams.db")
        if begun:
            await store.start()
            await store.close()
        folder.chmod(0o555)
        as_unprivileged_user()
        try:
            text = await refusal_error(store.start())
        finally:
            os.seteuid(os.getuid())
            folder.chmod(0o755)
    assert text.startswith(f"store sqlite://{folder}/streams.db: ")
    assert f"write to {folder}" in text or f"and to {folder}" in text or f"{folder} must exist" in text


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """Start refuses a file in a missing folder, and names the folder. It works once the folder exists."""
    store = SqliteStore(tmp_path / "no" / "streams.db")
    assert f"cannot be opened; {tmp_path}/no must exist" in await refusal_error(store.start())
    (tmp_path / "no").mkdir()
    await store.start()
    assert await store.count() == 0
    await store.close()


async def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    """Start refuses a file that is not a database, and does not change it."""
    path.write_bytes(b"precious notes\n" * 1000)
    assert await refusal_error(SqliteStore(path).start()) == (
        f"store sqlite://{path}: is not a SQLite database; name another file, or put a backup in its place"
    )
    assert path.read_bytes() == b"precious notes\n" * 1000


async def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    """Start refuses the database of another program, and does not change it."""
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE notes (text)")
    other.close()
    before = path.read_bytes()
    assert "is a database of another program" in await refusal_error(SqliteStore(path).start())
    assert path.read_bytes() == before


async def test_a_newer_schema_is_named(path: Path) -> None:
    """Start refuses a file of a newer server, with both schema numbers."""
    store = SqliteStore(path)
    await store.start()
    await store.close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 7")
    other.close()
    assert "its schema 7 is newer than 3, the newest that this server knows; update" in await refusal_error(
        store.start()
    )


async def test_an_old_sqlite_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start refuses an SQLite library that is too old, with both versions."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.26.0")
    assert "SQLite is 3.26.0, expected 3.38.0 or newer" in await refusal_error(SqliteStore(path).start())


async def test_a_damaged_page_is_named_and_the_rest_served(path: Path) -> None:
    """Streams on damaged pages are unavailable, and the error says what to do. Others in the same commit are loaded."""
    store = SqliteStore(path)
    await store.start()
    await asyncio.gather(*(claim(store, key(str(place)), 0, MODEL) for place in range(200)))
    await store.save([checkpoint(str(place), payload=bytes(3000)) for place in range(200)])
    await store.close()
    with path.open("r+b") as file:
        file.seek(4096 * (path.stat().st_size // 4096 // 2))
        file.write(b"\xff" * 4096 * 3)
    await store.start()
    results = await asyncio.gather(*(store.load(key(str(place))) for place in range(200)), return_exceptions=True)
    broken = {str(result) for result in results if isinstance(result, Exception)}
    whole = [result for result in results if not isinstance(result, Exception)]
    assert broken == {f"store sqlite://{path}: is damaged; stop all servers that use it and put a backup in its place"}
    assert len(whole) > 150
    assert all(record is not None and record.checkpoint is not None for record in whole)
    await store.close()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (encode(checkpoint("a"))[:-1], "truncated"),
        (encode(checkpoint("b")), "holds stream 'b', not this one"),
        (b"\x93NUMPY", "not Tidegate's"),
        (b"TGCK\x09\x00", "format 9 is newer than 3"),
    ],
)
async def test_a_bad_record_is_named_and_can_be_dropped(
    store: SqliteStore, path: Path, record: bytes, message: str
) -> None:
    """A damaged record is never a new stream: the error of load names file and stream, and delete still works."""
    await claim(store, key("a"), 0, MODEL)
    await store.save([checkpoint("a")])
    with sqlite3.connect(path) as other:
        other.execute("UPDATE streams SET record = ?", (record,))
    other.close()
    with pytest.raises(CheckpointBroken, match=f"{path}: stream 'a': record: .*{message}"):
        await store.load(key("a"))
    [head] = await scan(store, "default", "", "", 1)
    assert await store.delete(key("a"), head.epoch)


@pytest.mark.parametrize("ending", ["", "-wal"])
async def test_a_file_that_is_gone_takes_nothing(store: SqliteStore, path: Path, ending: str) -> None:
    """When the file or its WAL is removed while in use, saves fail: SQLite would write where no restart finds it."""
    await claim(store, key("a"), 0, MODEL)
    assert await store.save([checkpoint("a")]) == [True]
    path.with_name(path.name + ending).unlink()
    with pytest.raises(StoreGone, match="removed or replaced while in use"):
        await store.save([checkpoint("a")])


async def test_the_wal_stays_small(store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is saved, the WAL is copied into the file before it exceeds twice its limit."""
    for place in range(40):
        await claim(store, key(str(place)), 0, MODEL)
    limit = file_module.WAL_BYTES
    for step in range(40):  # 160 MB in all
        await store.save([checkpoint(str(place), step=step, payload=bytes([step]) * 100_000) for place in range(40)])
    assert path.with_name("streams.db-wal").stat().st_size < 2 * limit


async def test_a_file_keeps_the_pages_that_it_was_made_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file has large pages. An existing file keeps its page size, and its WAL has the same limit in bytes."""
    made = []
    for page_bytes in (file_module.PAGE_BYTES, 4096):
        of_these = path.with_name(f"{page_bytes}.db")
        monkeypatch.setattr(file_module, "PAGE_BYTES", page_bytes)
        SqliteFile(of_these, 1.0).close()
        monkeypatch.undo()
        file = SqliteFile(of_these, 1.0)
        settings = [
            file.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "wal_autocheckpoint")
        ]
        made.append(settings)
        file.close()
    assert made == [[16384, file_module.WAL_BYTES // 16384], [4096, file_module.WAL_BYTES // 4096]]


@given(st.text(max_size=3), st.text(max_size=3), st.text(max_size=6))
def test_the_end_of_a_prefix_parts_the_texts(stem: str, rest: str, other: str) -> None:
    """All texts with a prefix come before the end of the prefix in UTF-8, and all texts in between have the prefix."""
    for prefix in (stem, stem + "\ud7ff", stem + "\U0010ffff"):
        end = _after_all(prefix)
        assert end is None or (prefix + rest).encode() < end.encode()
        between = prefix.encode() <= other.encode() and (end is None or other.encode() < end.encode())
        assert between == other.startswith(prefix)
