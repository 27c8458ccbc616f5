"""Servers in trouble, one for each alert: real ones, in the state that the alert is about."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

from tests.fleet import ServerProcess
from tests.graphs import counting, picky, running_sum, with_moments, write_model
from tests.store.support import RedisServer
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, ClientError, DataLost

# Has a server scraped from now on, under a name, and waits until it was: its name, and the address of its metrics.
Scrape = Callable[[str, str], Awaitable[None]]
Trouble = Callable[[Path, Scrape], AbstractAsyncContextManager[None]]
# Turns of the loop in `counting` that take about 50 ms: twice what the objective for latency allows.
SLOW = 20_000.0
# The limit of descriptors of a server that runs out of them.
DESCRIPTORS = 300


@asynccontextmanager
async def running(*tasks: "asyncio.Task[None]") -> AsyncIterator[None]:
    """Tasks that run meanwhile. One that has ended with an error fails the test."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


@asynccontextmanager
async def served(models: Path, state: str, *options: str, **more: object) -> AsyncIterator[ServerProcess]:
    """A server process."""
    server = ServerProcess(models, state, "--models-poll", "0", *options, **more)  # type: ignore[arg-type]
    try:
        await server.start()
        yield server
    finally:
        await server.close()


async def steps(address: str, model: str, values: Iterable[float], *, pause_s: float, owner: int = 0) -> None:
    """Sends these values again and again; what is refused is not sent again."""
    async with Client(address, timeout_s=TIMEOUT_S) as client:
        while True:
            with suppress(ClientError):
                async with client.open(f"{model}-{owner}", model=model) as stream:
                    while True:
                        for value in values:
                            with suppress(ClientError):
                                await stream.step([value])
                            await asyncio.sleep(pause_s)


async def bursts(address: str, model: str, value: float, *, together: int) -> None:
    """Sends this value to so many streams at once, again and again; what is refused is not sent again."""
    async with Client(address, timeout_s=TIMEOUT_S) as client:

        async def send(number: int) -> None:
            with suppress(ClientError):
                await client.predict_one(f"{model}-{number}", [value], step=None, model=model, sync=False)

        while True:
            await asyncio.gather(*(send(number) for number in range(together)))
            await asyncio.sleep(0.3)


def task_of(*arguments: object, **more: object) -> "asyncio.Task[None]":
    """A task of `steps`."""
    return asyncio.create_task(steps(*arguments, **more))  # type: ignore[arg-type]


@asynccontextmanager
async def healthy(folder: Path, scrape: Scrape) -> AsyncIterator[None]:
    """A server with two workers, SQLite and a few clients, whose inputs are those of training."""
    models = write_model(folder / "models", with_moments(), "healthy")
    async with served(models, f"sqlite://{folder / 'db'}", "--workers", "2") as server:
        await scrape("healthy", server.metrics_url)
        tasks = [task_of(server.address, "healthy", (9.0, 11.0), pause_s=0.05, owner=number) for number in range(4)]
        async with running(*tasks):
            yield


@asynccontextmanager
async def unwell(folder: Path, scrape: Scrape) -> AsyncIterator[None]:
    """A server with a model that fails, one that is slow and gets more than it can do, and one whose sensor was exchanged."""
    models = folder / "models"
    for name, graph in {"failing": picky(), "slow": counting(), "moved": with_moments()}.items():
        write_model(models, graph, name)
    async with served(models, "memory:", "--queue-max", "2", "--batch-max", "1") as server:
        await scrape("unwell", server.metrics_url)
        crowd = asyncio.create_task(bursts(server.address, "slow", SLOW, together=8))
        failing = task_of(server.address, "failing", (1.0, 9.0), pause_s=0.05)
        moved = task_of(server.address, "moved", (29.0, 31.0), pause_s=0.05)
        async with running(crowd, failing, moved):
            yield


@asynccontextmanager
async def amnesic(folder: Path, scrape: Scrape) -> AsyncIterator[None]:
    """A server whose redis lost all it had confirmed while the server was replaced. The first server is scraped for ever."""
    models = write_model(folder / "models", running_sum(), "kept")
    redis = RedisServer(folder)
    redis.start()
    async with AsyncExitStack() as stack:
        stack.callback(redis.kill)
        first = await stack.enter_async_context(served(models, redis.address))
        await scrape("stopped", first.metrics_url)
        client = await stack.enter_async_context(Client(first.address, timeout_s=TIMEOUT_S, reconnect_s=TIMEOUT_S))
        stream = await stack.enter_async_context(client.open("remembered", sync=True))
        for _ in range(5):
            await stream.step([1.0])
        await first.kill()
        redis.kill()
        redis.start()
        second = await stack.enter_async_context(served(models, redis.address, port=first.port))
        with suppress(DataLost):
            await stream.step([1.0])
            raise AssertionError("the loss was not noticed")
        # Only now, as a scraper finds a new pod: what it has lost was counted before the first scrape.
        await scrape("amnesic", second.metrics_url)
        yield


@asynccontextmanager
async def storeless(folder: Path, scrape: Scrape) -> AsyncIterator[None]:
    """Two servers: the redis of one hangs, the redis of the other was killed."""
    models = write_model(folder / "models", running_sum(), "unsaved")
    async with AsyncExitStack() as stack:
        tasks = []
        for name, harm in {"hanging": signal.SIGSTOP, "killed": signal.SIGKILL}.items():
            (folder / name).mkdir()
            redis = RedisServer(folder / name)
            redis.start()
            stack.callback(redis.kill)
            server = await stack.enter_async_context(served(models, redis.address))
            await scrape(name, server.metrics_url)
            tasks.append(task_of(server.address, "unsaved", (1.0,), pause_s=0.05))
            await eventually_stored(server)
            redis.signal(harm)
        async with running(*tasks):
            yield


async def eventually_stored(server: ServerProcess) -> None:
    """Waits until the server has stored something."""
    stored = 0.0
    while not stored:
        stored = (await asyncio.to_thread(server.metrics))['tidegate_checkpoints_total{outcome="ok"}']


@asynccontextmanager
async def dying(folder: Path, scrape: Scrape) -> AsyncIterator[None]:
    """A server with two workers, one of which dies each time as soon as it has started again."""
    models = write_model(folder / "models", running_sum(), "dying")
    async with served(models, f"sqlite://{folder / 'db'}", "--workers", "2") as server:
        await scrape("dying", server.metrics_url)

        async def kill() -> None:
            killed = 0
            while True:
                pid = server.workers().get(0, killed)
                if pid != killed:
                    os.kill(pid, signal.SIGKILL)
                    killed = pid
                await asyncio.sleep(0.01)

        async with running(asyncio.create_task(kill())):
            yield


@asynccontextmanager
async def crowded(folder: Path, scrape: Scrape) -> AsyncIterator[None]:
    """A server with few descriptors and many connections."""
    models = write_model(folder / "models", running_sum(), "crowded")
    before = ("prlimit", f"--nofile=128:{DESCRIPTORS}")
    async with served(models, "memory:", before=before) as server:
        await scrape("crowded", server.metrics_url)
        with ExitStack() as stack:
            while server.descriptors() < 0.92 * (DESCRIPTORS - 100):
                connect = asyncio.to_thread(socket.create_connection, ("127.0.0.1", server.port), TIMEOUT_S)
                stack.enter_context(await connect)
            yield


@asynccontextmanager
async def unread(folder: Path, scrape: Scrape) -> AsyncIterator[None]:
    """A server whose log nobody reads."""
    models = write_model(folder / "models", running_sum(), "unread")
    read, write = os.pipe()
    try:
        log = ("--log-format", "json", "--log-level", "info")
        async with served(models, "memory:", *log, stderr=write) as server:
            await scrape("unread", server.metrics_url)
            names = [f"{number:0200}" for number in range(1000)]  # a line for each open and each release
            async with Client(server.address, timeout_s=TIMEOUT_S) as client:
                for _ in range(3):
                    async with client.block(names):
                        pass
            yield
    finally:
        os.close(read)
        os.close(write)


@asynccontextmanager
async def busy(folder: Path, scrape: Scrape) -> AsyncIterator[None]:
    """A server with more work than a core can do: some slow models, each in its own thread."""
    models = folder / "models"
    names = [f"busy{number}" for number in range(4)]
    for name in names:
        write_model(models, counting(), name)
    async with served(models, "memory:") as server:
        await scrape("busy", server.metrics_url)
        async with running(
            *(
                task_of(server.address, name, (3 * SLOW,), pause_s=0.0, owner=number)
                for name in names
                for number in range(2)
            )
        ):
            yield


TROUBLES: Sequence[Trouble] = (
    unwell,
    amnesic,
    storeless,
    dying,
    crowded,
    unread,
)
