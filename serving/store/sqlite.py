"""A store in one SQLite file, which the processes of a machine may share.

One thread owns the file. Operations wait in its queue. It takes all of them and commits them together, so that a
thousand opens and saves share one fsync.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Concatenate, ParamSpec, TypeVar

from tidegate.core.errors import StoreUnavailable
from tidegate.core.spec import Checkpoint, Checkpoints, Key, ModelId
from tidegate.store.codec import decode_record
from tidegate.store.sqlite_database import Claim, Database, StoredRow
from tidegate.store.store import Record, ResidencyUpdate, ScanFilter, StreamMetadata, new_writer_id

# A group commit of another worker takes about 10 ms. A process that holds the lock for longer than this hangs, or is
# not a server.
BUSY_TIMEOUT_S = 5.0
# Operations in one commit. It bounds how long the last one in the queue waits.
BATCH_MAX = 1024
# How many operations may wait. A worker that opens every stream of a full server at once needs fewer.
QUEUE_MAX = 1 << 17

_READS = {Database.load, Database.scan, Database.count, Database.take_notices, Database.newest_unix_nano}
# Methods that do many operations at once.
_BATCHED = {Database.load, Database.claim}

P = ParamSpec("P")
T = TypeVar("T")
# A future, and its result or exception.
_Outcome = tuple["asyncio.Future[Any]", Any]


@dataclass(slots=True, eq=False)
class _Operation:
    """One call of the store. `keys` are the streams that it may change."""

    method: Callable[..., Any]  # of Database
    argument: Any  # what the call adds to the list that a method of `_BATCHED` takes, else a tuple of all arguments
    keys: frozenset[Key]
    done: asyncio.Future[Any]


class SqliteStore:
    """Stores checkpoints in a SQLite file.

    A call that is cancelled may or may not take effect, but never in part.

    Args:
        path: the file. It is created if it is missing; its folder is not.
        clock: the wall clock for timestamps, in nanoseconds.
        busy_timeout_s: how long to wait for the lock of another process.

    """

    survives = "a killed process and a power loss"

    def __init__(
        self, path: Path, clock: Callable[[], int] = time.time_ns, busy_timeout_s: float = BUSY_TIMEOUT_S
    ) -> None:
        self._path = path
        self._clock = clock
        self._busy_timeout_s = busy_timeout_s
        self._writer = new_writer_id()
        self._worker: _Worker | None = None

    def __repr__(self) -> str:
        waiting = f"{self._worker.waiting} operations waiting" if self._worker else "closed"
        return f"<SqliteStore {self._path}: {waiting}>"

    async def start(self) -> None:
        """Opens the file. Raises StoreUnavailable when it cannot be used."""
        assert self._worker is None
        worker = _Worker(partial(Database, self._path, self._writer, self._clock, self._busy_timeout_s), self._path)
        await worker.start()
        self._worker = worker

    async def load(self, key: Key) -> Record | None:
        """The record of a stream."""
        return self._to_record(await self._queue(Database.load, key, []))

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Claims a stream if its epoch is still `seen_epoch`, and returns its record; else returns None."""
        return self._to_record(await self._queue(Database.claim, Claim(key, seen_epoch, model, owner), [key]))

    async def create(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Creates a stream with its first state, if it is unknown or a tombstone of that epoch."""
        return self._to_record(await self._submit([checkpoint.key], Database.create, checkpoint, seen_epoch))

    async def restore(self, checkpoint: Checkpoint, owner: str) -> bool:
        """Stores a lost stream under its own epoch, if that is above the epochs of streams that are gone."""
        return await self._submit([checkpoint.key], Database.restore, checkpoint, owner)

    async def set_residency(self, updates: Sequence[ResidencyUpdate]) -> None:
        """Records which streams are in memory."""
        await self._submit([update.key for update in updates], Database.set_residency, updates)

    async def request_save(self, key: Key, epoch: int) -> int | None:
        """Asks the writer of a stream to save it."""
        return await self._submit([key], Database.request_save, key, epoch)

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Saves the checkpoints whose epoch is current. They are on disk when this returns."""
        if isinstance(checkpoints, Checkpoints):
            keys = frozenset(checkpoints.keys)
        else:
            keys = frozenset(checkpoint.key for checkpoint in checkpoints)
        assert len(keys) == len(checkpoints), "a stream twice in one save: SQLite would keep either"
        return await self._submit(keys, Database.save, checkpoints)

    async def delete(self, key: Key, epoch: int) -> bool:
        """Replaces a stream by a tombstone if it has that epoch."""
        return await self._submit([key], Database.delete, key, epoch)

    async def scan(self, wanted: ScanFilter, after: str, limit: int) -> tuple[list[StreamMetadata], str | None]:
        """Metadata in the order of the ids."""
        return await self._submit([], Database.scan, wanted, after, limit)

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Turns old streams into tombstones, and deletes old tombstones."""
        return await self._submit(
            [], Database.expire, before_unix_nano, purge_before_unix_nano, purge_deleted_before_unix_nano
        )

    async def heartbeat(self) -> str:
        """Announces that this writer is alive. Every write detects a file that was replaced."""
        await self._submit([], Database.heartbeat)
        return ""

    async def take_notices(self) -> list[Key]:
        """The streams of notices since the last call."""
        return await self._submit([], Database.take_notices)

    async def count(self) -> int:
        """The number of streams without tombstones."""
        return await self._submit([], Database.count)

    async def newest_unix_nano(self) -> int:
        """When a stream without a tombstone was last updated."""
        return await self._submit([], Database.newest_unix_nano)

    def cpu_seconds(self) -> float:
        """The processor time of the thread."""
        return self._worker.cpu_seconds if self._worker else 0.0

    async def close(self) -> None:
        """Completes the waiting operations, then closes the file."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await worker.close()

    def _to_record(self, row: StoredRow | None) -> Record | None:
        return row and decode_record(
            row.metadata, row.record, f"sqlite://{self._path.absolute()}: stream '{row.metadata.key.stream_id}'"
        )

    async def _submit(
        self, keys: Iterable[Key], method: Callable[Concatenate[Database, P], T], *arguments: P.args, **_: P.kwargs
    ) -> T:
        result: T = await self._queue(method, arguments, keys)
        return result

    async def _queue(self, method: Callable[..., Any], argument: Any, keys: Iterable[Key]) -> Any:
        if self._worker is None:
            raise StoreUnavailable(f"sqlite://{self._path.absolute()}", "is not open")
        return await self._worker.submit(method, argument, frozenset(keys))


class _Worker:
    """The thread that owns the file, and its queue of operations."""

    def __init__(self, open_: Callable[[], Database], path: Path) -> None:
        self.waiting = 0  # changed only in the event loop
        self.cpu_seconds = 0.0  # as of the last commit
        self._open = open_
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Operation | None] = SimpleQueue()  # None ends the thread
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # A daemon, so that a process without an event loop can exit. What is not committed then was not acknowledged.
        self._thread = Thread(target=self._run, name="tidegate-store", daemon=True)

    async def start(self) -> None:
        """Starts the thread. Returns when the file is open."""
        self._thread.start()
        try:
            await self._opened
        except BaseException:
            self._queue.put(None)
            raise

    def submit(self, method: Callable[..., Any], argument: Any, keys: frozenset[Key]) -> asyncio.Future[Any]:
        """Queues an operation for the next commit."""
        if self.waiting >= QUEUE_MAX:
            raise StoreUnavailable(
                f"sqlite://{self._path.absolute()}", f"{QUEUE_MAX} operations wait for the disk; try again later"
            )
        operation = _Operation(method, argument, keys, self._loop.create_future())
        self.waiting += 1
        self._queue.put(operation)
        return operation.done

    async def close(self) -> None:
        """Returns when all waiting operations are complete and the thread has ended."""
        self._queue.put(None)
        await self._closed
        self._thread.join()

    def _run(self) -> None:
        """The main function of the thread."""
        try:
            database = self._open()
        except Exception as error:  # noqa: BLE001 (it is raised in `start`)
            self._call_in_loop(_settle, [(self._opened, error)])
            return
        self._call_in_loop(_settle, [(self._opened, None)])
        try:
            while batch := self._take():
                reads = [operation for operation in batch if operation.method in _READS]
                writes = [operation for operation in batch if operation.method not in _READS]
                # Reads run outside the transaction: they need no lock, and see nothing that may still be rolled back.
                outcomes = self._attempt(database, reads, nullcontext)
                outcomes += self._attempt(database, writes, database.file.transaction)
                self.cpu_seconds = time.thread_time()
                self._call_in_loop(self._finish, outcomes)
            database.close()
        finally:
            self._call_in_loop(_settle, [(self._closed, None)])

    def _take(self) -> list[_Operation]:
        """All waiting operations, once there is one; empty at the end."""
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
            self._queue.put(None)  # for the next call
        return batch

    def _attempt(
        self, database: Database, operations: Sequence[_Operation], scope: Callable[[], AbstractContextManager[None]]
    ) -> list[_Outcome]:
        """Runs operations in one transaction. Returns the result or the error of each.

        When the transaction fails, each half is tried alone, down to the operation that causes the error: a record that
        is too large, or for which the disk has no room, or a damaged page must not fail the others. There is no such
        retry when another process holds the lock: each try would wait for it again.
        """
        if not operations:
            return []
        try:
            return self._retry_while_locked(database, operations, scope)
        except Exception as error:  # noqa: BLE001 (each is raised where the operation is awaited)
            if len(operations) == 1 or database.file.is_locked(error):
                # Each future gets its own error: awaiting adds to the traceback.
                return [
                    (operation.done, database.file.explained(error) if isinstance(error, sqlite3.Error) else error)
                    for operation in operations
                ]
        half = len(operations) // 2
        return self._attempt(database, operations[:half], scope) + self._attempt(database, operations[half:], scope)

    def _retry_while_locked(
        self, database: Database, operations: Sequence[_Operation], scope: Callable[[], AbstractContextManager[None]]
    ) -> list[_Outcome]:
        """The results of operations. Retries while another process holds the lock, until the timeout."""
        deadline = time.monotonic() + database.file.busy_timeout_s
        while True:
            try:
                with scope():
                    return list(self._results(database, operations))
            except sqlite3.Error as error:
                if not database.file.is_locked(error) or time.monotonic() > deadline:
                    raise

    def _results(self, database: Database, operations: Sequence[_Operation]) -> Iterator[_Outcome]:
        """The result of each operation, in order."""
        for run in _runs(operations):
            method, arguments = run[0].method, [operation.argument for operation in run]
            results = (
                method(database, arguments)
                if method in _BATCHED
                else [method(database, *argument) for argument in arguments]
            )
            yield from zip((operation.done for operation in run), results, strict=True)

    def _finish(self, outcomes: Sequence[_Outcome]) -> None:
        """Sets the results. Runs in the event loop."""
        self.waiting -= len(outcomes)
        _settle(outcomes)

    def _call_in_loop(self, callback: Callable[[Any], None], argument: Any) -> None:
        """Calls back in the event loop. Does nothing when the loop is closed: then nobody waits."""
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


def _runs(operations: Sequence[_Operation]) -> Iterator[list[_Operation]]:
    """Groups consecutive operations with the same method. No stream comes twice in a group."""
    run: list[_Operation] = []
    keys: set[Key] = set()
    for operation in operations:
        if run and (operation.method != run[0].method or not keys.isdisjoint(operation.keys)):
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
