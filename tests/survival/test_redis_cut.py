"""Connections to redis that are cut at any moment: no server stops, and no stream loses anything."""

import asyncio
import random
from collections.abc import Callable

from tests.fleet import Fleet, ServerProcess
from tests.survival.conftest import Redis
from tests.timeouts import TIMEOUT_S


class Proxy:
    """A proxy that forwards bytes until it is told to cut.

    Then it closes all connections, and for a moment also new ones.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hanging_up = False
        self.port = 0

    async def start(self) -> None:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Closes everything for good."""
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Closes all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def cut_for(self, seconds: float) -> None:
        """Closes all connections, and new ones as soon as they are accepted."""
        self._hanging_up = True
        self.cut()
        await asyncio.sleep(seconds)
        self._hanging_up = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._hanging_up:
            await asyncio.sleep(0.001)  # so that a client that connects has begun to send
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        for one, other in ((reader, there_writer), (there_reader, writer)):
            self._writers.add(other)
            task = asyncio.create_task(self._pass_on(one, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


async def test_a_redis_that_hangs_up_ends_no_server(
    site: Callable[..., ServerProcess], graph: bytes, redis_server: Redis
) -> None:
    """Hundreds of cuts under load: the server lives, and every prediction comes once and bit-equal."""
    proxy = Proxy(redis_server.port)
    await proxy.start()
    one = site(state=f"redis://127.0.0.1:{proxy.port}/0")
    await one.start()
    fleet = Fleet([one.address], streams=100, steps=30, pause_s=0.05)
    rng = random.Random(7)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(fleet.run())
        await fleet.reached(100)
        for _ in range(100):
            proxy.cut()
            await asyncio.sleep(rng.uniform(0.001, 0.012))
        for _ in range(10):
            await proxy.cut_for(0.05)
            await asyncio.sleep(0.05)
        await running
    assert one.process is not None
    assert one.process.poll() is None
    assert fleet.problems(graph) == []
    assert one.metrics()["tidegate_state_lost_total"] == 0
    assert await one.stop() == 0
    await proxy.close()
