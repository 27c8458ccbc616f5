"""Shared parts of the store tests: checkpoints, a manual clock, a real redis, and places for stores."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.ports import free_port
from tests.timeouts import TIMEOUT_S
from tidegate.core.spec import Checkpoint, Checkpoints, Key, ModelId
from tidegate.store import (
    MemoryStore,
    Residency,
    ResidencyUpdate,
    ScanFilter,
    ScanScope,
    SqliteStore,
    Store,
    StreamMetadata,
)

MODEL = ModelId("demo", "1", "f" * 64)
OTHER_MODEL = ModelId("démo", "2", "e" * 64)
# Times in tests are whole milliseconds: redis has a resolution of microseconds.
MS = 1_000_000


def key(stream_id: str, tenant: str = "default") -> Key:
    """A key of the default tenant."""
    return Key(tenant, stream_id)


def checkpoint(stream_id: str, epoch: int = 1, step: int = 1, payload: bytes = b"state") -> Checkpoint:
    """A checkpoint of a stream of the default tenant."""
    return Checkpoint(key(stream_id), epoch, step, MODEL, 4, payload)


def in_columns(checkpoints: Sequence[Checkpoint]) -> Checkpoints:
    """The same checkpoints, at least one, of one model and one size, in the columns that the checkpointer uses."""
    first = checkpoints[0]
    return Checkpoints(
        [each.key for each in checkpoints],
        [each.epoch for each in checkpoints],
        np.array([each.step for each in checkpoints], np.int64),
        first.model,
        first.answers,
        np.array([list(each.payload) for each in checkpoints], np.uint8),
    )


async def claim(store: Store, of: Key, seen_epoch: int, model: ModelId = MODEL, owner: str = "") -> int | None:
    """Claims a stream. Returns the epoch, None when another writer was faster."""
    record = await store.claim(of, seen_epoch, model, owner)
    return record and record.metadata.epoch


async def begin(store: Store, of: Key, seen_epoch: int = 0, model: ModelId = MODEL) -> int | None:
    """Claims a stream and releases it from memory. Returns the epoch."""
    epoch = await claim(store, of, seen_epoch, model)
    assert epoch is not None
    await store.set_residency([ResidencyUpdate(of, epoch, Residency.RELEASED)])
    return epoch


async def scan(
    store: Store, tenant: str, prefix: str, after: str, limit: int, scope: ScanScope = ScanScope.ALL, **of_model: str
) -> list[StreamMetadata]:
    """Up to so many streams, however often the scan stops early."""
    wanted = ScanFilter(tenant, prefix, scope, **of_model)
    heads: list[StreamMetadata] = []
    following: str | None = after
    while following is not None and len(heads) < limit:
        page, following = await store.scan(wanted, following, limit - len(heads))
        heads += page
    return heads


@dataclass
class Clock:
    """A clock that is set by hand, in nanoseconds."""

    now: int = 1_000_000 * MS

    def __call__(self) -> int:
        """The time."""
        return self.now


class RedisServer:
    """A redis-server with its own folder, which can be killed and restarted. With `config` it is a sentinel."""

    def __init__(self, folder: Path, *settings: str, config: Path | None = None, port: int | None = None) -> None:
        self.port = port or free_port()
        self.address = f"redis://127.0.0.1:{self.port}"
        common = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder), "--loglevel", "warning"]
        if config is None:
            self._command = ["redis-server", *common, "--save", "", *settings]
        else:
            self._command = ["redis-server", str(config), "--sentinel", *common]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Waits until it listens and has loaded its data."""
        process = self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + TIMEOUT_S
        while not self.command("PING").startswith((b"+PONG", b"-NOAUTH")):
            assert process.poll() is None, f"redis-server ended with {process.returncode}"
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def command(self, *words: str) -> bytes:
        """The first bytes of its answer to a command; empty when it does not listen."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S) as connection:
                connection.sendall(" ".join(words).encode() + b"\r\n")
                return connection.recv(4096)
        except ConnectionError:
            return b""

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kills it as a power failure would. Does nothing when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass
class Place:
    """A place for stores of one kind: each store that is opened finds what the last one left."""

    make: Callable[[Clock], Store]
    clock: Clock = field(default_factory=Clock)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        """An open store."""
        store = self.make(self.clock)
        await store.start()
        try:
            yield store
        finally:
            await store.close()


def memory_place() -> Place:
    """In this process."""
    return Place(MemoryStore)


def sqlite_place(folder: Path) -> Place:
    """In a file."""
    return Place(lambda clock: SqliteStore(folder / "streams.db", clock))


def redis_place(server: RedisServer) -> Place:
    """In an emptied redis. On a busy machine it may not answer for some seconds."""
    from tidegate.store.redis import RedisStore  # needs the package `redis`
    from tidegate.store.redis_address import parse_redis_address

    assert server.command("FLUSHALL") == b"+OK\r\n"
    address = parse_redis_address(server.address)
    return Place(lambda clock: RedisStore(address, clock=clock, timeout_s=TIMEOUT_S))


@contextmanager
def python(script: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs a script. It is killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    with process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
