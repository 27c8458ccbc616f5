import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.store.support import Place, RedisServer, memory_place, redis_place, sqlite_place
from tidegate.store import Store


@pytest.fixture(scope="session")
def redis_installed() -> None:
    """Skips if redis-server is not installed."""
    if shutil.which("redis-server") is None:
        assert os.environ.get("TIDEGATE_REQUIRE_ALL") != "1", "redis-server is missing; apt-get install redis-server"
        pytest.skip("needs redis-server; apt-get install redis-server")


@pytest.fixture(scope="session")
def redis_server(redis_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis without persistence. Tests share it and empty it."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def durable_redis(redis_installed: None, tmp_path: Path) -> Iterator[RedisServer]:
    """A redis that writes every change to its disk before it answers."""
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a store of each kind keeps its streams."""
    match request.param:
        case "memory":
            return memory_place()
        case "sqlite":
            return sqlite_place(tmp_path)
        case _:
            return redis_place(request.getfixturevalue("redis_server"))


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    """An open, empty store of each kind."""
    async with place.open() as store:
        yield store
