import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.fleet import ServerProcess
from tests.graphs import lstm, write_model
from tests.ports import free_port
from tests.timeouts import TIMEOUT_S


@pytest.fixture(scope="session")
def graph() -> bytes:
    """The LSTM that all these tests serve."""
    return lstm()


@pytest.fixture
def models(tmp_path: Path, graph: bytes) -> Path:
    """A folder with that model."""
    return write_model(tmp_path / "models", graph)


@pytest.fixture
async def site(models: Path, tmp_path: Path) -> AsyncIterator[Callable[..., ServerProcess]]:
    """Makes sites over one SQLite file, or another store. Those that still run at the end are killed."""
    sites: list[ServerProcess] = []

    def make(
        *options: str, state: str = f"sqlite:///{tmp_path / 'state.db'}", port: int | None = None
    ) -> ServerProcess:
        sites.append(ServerProcess(models, state, *options, port=port))
        return sites[-1]

    yield make
    for one in sites:
        await one.close()


class Redis:
    """A redis-server that writes every change to disk before it answers. It can be killed and restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.process = subprocess.Popen(
            [
                "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
                "--appendonly", "yes", "--appendfsync", "always", "--save", "",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        self.process = None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    """A redis-server for one test."""
    if shutil.which("redis-server") is None:
        if os.environ.get("TIDEGATE_REQUIRE_ALL") == "1":
            pytest.fail("redis-server is missing: install Debian's redis-server")
        pytest.skip("redis-server is missing: install Debian's redis-server")
    folder = tmp_path / "redis"
    folder.mkdir()
    server = Redis(folder)
    server.start()
    yield server
    if server.process is not None:
        server.kill()
