"""A store in one SQLite file, which the processes of a machine may share.

One thread owns the file. Operations queue for it; it takes all that wait and commits them together, so that an fsync serves
a thousand opens and saves as well as one.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from serving.core.errors import StoreUnavailable
from serving.core.spec import Checkpoint, Checkpoints, Key, ModelId
from serving.store.codec import read
from serving.store.database import Claim, Database, Row
from serving.store.store import Head, Marking, Record, Wanted, new_writer

# A group commit of another worker takes some 10 ms. Who waits longer than this is stuck, or is no server.
BUSY_TIMEOUT_S = 5.0
# Operations in one commit: one that waits at the end of the line waits for at most this many before it.
BATCH_MAX = 1024
# Operations that may wait. A worker that opens every stream of a full server at once stays below it.
QUEUE_MAX = 1 << 17

_READS = frozenset({"load", "scan", "count", "notices", "newest_unix_nano"})

# A future, and the result or the exception that it gets.
_Outcome = tuple["asyncio.Future[Any]", Any]


@dataclass(slots=True, eq=False)
class _Operation:
    """One call of the store; `name` is that of the method of Database, `keys` the streams that it may change."""

    name: str
    argument: Any  # what that method takes
    keys: frozenset[Key]
    done: asyncio.Future[Any]


class SqliteStore:
    """Keeps checkpoints in a SQLite file.

    A call that is cancelled may happen or not; nothing of it is left half-done.

    Args:
        path: the file; it is made when it is missing, its folder is not.
        clock: stamps what is written.
        busy_timeout_s: for how long to wait for other processes.

    """

    survives = "a killed process and a power loss"

    def __init__(
        self, path: Path, clock: Callable[[], int] = time.time_ns, busy_timeout_s: float = BUSY_TIMEOUT_S
    ) -> None:
        self._path = path
        self._clock = clock
        self._busy_timeout_s = busy_timeout_s
        self._writer = new_writer()
        self._worker: _Worker | None = None

    def __repr__(self) -> str:
        waiting = f"{self._worker.waiting} operations waiting" if self._worker else "closed"
        return f"<SqliteStore {self._path}: {waiting}>"

    async def start(self) -> None:
        """Opens the file; StoreUnavailable when it cannot be used."""
        assert self._worker is None
        worker = _Worker(partial(Database, self._path, self._writer, self._clock, self._busy_timeout_s), self._path)
        await worker.start()
        self._worker = worker

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream."""
        return self._read(await self._submit("load", key))

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Raises the epoch if it still is `seen_epoch`, and gives what is held then; else None."""
        return self._read(await self._submit("claim", Claim(key, seen_epoch, model, owner), key))

    async def plant(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Makes a stream with its first state, if it still is unknown or that tombstone."""
        return self._read(await self._submit("plant", (checkpoint, seen_epoch), checkpoint.key))

    async def restore(self, checkpoint: Checkpoint, owner: str) -> bool:
        """Makes a stream known again under its own epoch, if that is above those of streams that are gone."""
        restored: bool = await self._submit("restore", (checkpoint, owner), checkpoint.key)
        return restored

    async def mark(self, markings: Sequence[Marking]) -> None:
        """Notes who has streams in memory."""
        await self._submit("mark", (markings,), *(marking.key for marking in markings))

    async def ask(self, key: Key, epoch: int) -> int | None:
        """Asks the writer of a stream to store it."""
        number: int | None = await self._submit("ask", (key, epoch), key)
        return number

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps those whose epoch is still theirs; they are on disk when this returns."""
        if isinstance(checkpoints, Checkpoints):
            keys = frozenset(checkpoints.keys)
        else:
            keys = frozenset(checkpoint.key for checkpoint in checkpoints)
        assert len(keys) == len(checkpoints), "a stream twice in one save: SQLite would keep either"
        kept: list[bool] = await self._submit_for("save", checkpoints, keys)
        return kept

    async def forget(self, key: Key, epoch: int) -> bool:
        """Leaves a tombstone of a stream unless its epoch is another."""
        deleted: bool = await self._submit("forget", (key, epoch), key)
        return deleted

    async def scan(
        self, tenant: str, prefix: str, after: str, limit: int, wanted: Wanted = Wanted.ALL
    ) -> tuple[list[Head], str | None]:
        """Heads in the order of their ids."""
        found: tuple[list[Head], str | None] = await self._submit("scan", (tenant, prefix, after, limit, wanted))
        return found

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Turns old streams into tombstones, drops old tombstones."""
        before = (before_unix_nano, purge_before_unix_nano, purge_deleted_before_unix_nano)
        expired: int = await self._submit("expire", before)
        return expired

    async def beat(self) -> str:
        """Says that this writer is alive. A file that is replaced is noticed by every write."""
        await self._submit("beat", ())
        return ""

    async def notices(self) -> list[Key]:
        """The streams to look at since this was last asked."""
        keys: list[Key] = await self._submit("notices", ())
        return keys

    async def count(self) -> int:
        """The streams that are known and not expired."""
        count: int = await self._submit("count", ())
        return count

    async def newest_unix_nano(self) -> int:
        """When a stream that is not a tombstone was last updated."""
        newest: int = await self._submit("newest_unix_nano", ())
        return newest

    def cpu_seconds(self) -> float:
        """What the thread has used."""
        return self._worker.cpu_seconds if self._worker else 0.0

    async def close(self) -> None:
        """Does what still waits, then closes the file."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await worker.close()

    def _read(self, row: Row | None) -> Record | None:
        return row and read(
            row.head, row.record, f"sqlite://{self._path.absolute()}: stream '{row.head.key.stream_id}'"
        )

    async def _submit(self, name: str, argument: Any, *keys: Key) -> Any:
        return await self._submit_for(name, argument, frozenset(keys))

    async def _submit_for(self, name: str, argument: Any, keys: frozenset[Key]) -> Any:
        if self._worker is None:
            raise StoreUnavailable(f"sqlite://{self._path.absolute()}", "is not open")
        return await self._worker.submit(name, argument, keys)


class _Worker:
    """The thread that owns the file, and the line of operations before it."""

    def __init__(self, open_: Callable[[], Database], path: Path) -> None:
        self.waiting = 0  # counted in the event loop alone
        self.cpu_seconds = 0.0  # as of the last commit
        self._open = open_
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Operation | None] = SimpleQueue()  # None ends it
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # A daemon, so that a process whose event loop died can end; what is not committed then was not promised.
        self._thread = Thread(target=self._run, name="tidegate-store", daemon=True)

    async def start(self) -> None:
        """Returns when the file is open."""
        self._thread.start()
        try:
            await self._opened
        except BaseException:
            self._queue.put(None)
            raise

    def submit(self, name: str, argument: Any, keys: frozenset[Key]) -> asyncio.Future[Any]:
        """Queues an operation for the next commit."""
        if self.waiting >= QUEUE_MAX:
            raise StoreUnavailable(
                f"sqlite://{self._path.absolute()}", f"{QUEUE_MAX} operations wait for the disk; try again later"
            )
        operation = _Operation(name, argument, keys, self._loop.create_future())
        self.waiting += 1
        self._queue.put(operation)
        return operation.done

    async def close(self) -> None:
        """Returns when all that waited is done and the thread has ended."""
        self._queue.put(None)
        await self._closed
        self._thread.join()

    def _run(self) -> None:
        """The life of the thread."""
        try:
            database = self._open()
        except Exception as error:  # noqa: BLE001 (it is raised in `start`)
            self._tell(_settle, [(self._opened, error)])
            return
        self._tell(_settle, [(self._opened, None)])
        try:
            while batch := self._take():
                reads = [operation for operation in batch if operation.name in _READS]
                writes = [operation for operation in batch if operation.name not in _READS]
                # Reads stand outside the transaction: they need no lock, and see nothing that may yet be rolled back.
                outcomes = self._attempt(database, reads, nullcontext)
                outcomes += self._attempt(database, writes, database.file.transaction)
                self.cpu_seconds = time.thread_time()
                self._tell(self._finish, outcomes)
            database.close()
        finally:
            self._tell(_settle, [(self._closed, None)])

    def _take(self) -> list[_Operation]:
        """All that wait, once something does; nothing when the end of the line is reached."""
        batch = []
        operation = self._queue.get()
        while operation is not None:
            batch.append(operation)
            if len(batch) == BATCH_MAX:
                return batch
            try:
                operation = self._queue.get_nowait()
            except Empty:
                return batch
        if batch:
            self._queue.put(None)  # for the next turn
        return batch

    def _attempt(
        self, database: Database, operations: Sequence[_Operation], scope: Callable[[], AbstractContextManager[None]]
    ) -> list[_Outcome]:
        """Does operations in one transaction; what each gave, or its error.

        When that fails, each half is tried by itself, down to the one operation that is at fault: a record too large, or
        for which the disk has no room, or a damaged page, does not fail those that happened to wait beside it. Not so when
        another process holds the lock: each attempt would wait for it again.
        """
        if not operations:
            return []
        try:
            return self._patiently(database, operations, scope)
        except Exception as error:  # noqa: BLE001 (each is raised where the operation is awaited)
            if len(operations) == 1 or database.file.is_locked(error):
                # One error for each: awaiting adds to the traceback of what it raises.
                return [
                    (operation.done, database.file.explained(error) if isinstance(error, sqlite3.Error) else error)
                    for operation in operations
                ]
        half = len(operations) // 2
        return self._attempt(database, operations[:half], scope) + self._attempt(database, operations[half:], scope)

    def _patiently(
        self, database: Database, operations: Sequence[_Operation], scope: Callable[[], AbstractContextManager[None]]
    ) -> list[_Outcome]:
        """What operations give; asks again for so long as another process holds the lock, within the time to wait for it."""
        deadline = time.monotonic() + database.file.busy_timeout_s
        while True:
            try:
                with scope():
                    return list(self._results(database, operations))
            except sqlite3.Error as error:
                if not database.file.is_locked(error) or time.monotonic() > deadline:
                    raise

    def _results(self, database: Database, operations: Sequence[_Operation]) -> Iterator[_Outcome]:
        """What each operation gives, in order."""
        for run in _runs(operations):
            arguments = [operation.argument for operation in run]
            results: Sequence[Any]
            match run[0].name:
                case "load":
                    results = database.load(arguments)
                case "claim":
                    results = database.claim(arguments)
                case "save":
                    results = [database.save(checkpoints) for checkpoints in arguments]
                case name:
                    results = [getattr(database, name)(*argument) for argument in arguments]
            yield from zip((operation.done for operation in run), results, strict=True)

    def _finish(self, outcomes: Sequence[_Outcome]) -> None:
        """In the event loop: gives the outcomes to those who wait."""
        self.waiting -= len(outcomes)
        _settle(outcomes)

    def _tell(self, callback: Callable[[Any], None], argument: Any) -> None:
        """Has the event loop call back, unless it is closed: then nobody waits."""
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


def _runs(operations: Sequence[_Operation]) -> Iterator[list[_Operation]]:
    """Operations in order, those of one name that follow each other together, no stream twice in a run."""
    run: list[_Operation] = []
    keys: set[Key] = set()
    for operation in operations:
        if run and (operation.name != run[0].name or not keys.isdisjoint(operation.keys)):
            yield run
            run, keys = [], set()
        run.append(operation)
        keys |= operation.keys
    if run:
        yield run


def _settle(outcomes: Sequence[_Outcome]) -> None:
    for future, outcome in outcomes:
        if future.done():  # cancelled meanwhile
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
