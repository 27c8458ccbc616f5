"""A server that follows a script: every interleaving that a client must live with, forced and not hoped for.

A script is an asynchronous function that plays one call with one stream, of `Predict` or of `PredictBlocks`; the calls that come take the
scripts in turn, and a call too many is refused. What the server applied is in `history`, step by step, over all calls: its answer to a
timestep is the sum of all values up to it, so that a lost, doubled or crossed timestep shows as a wrong number.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tests.scripted_calls import BlocksCall, Call, PredictCall
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, Stream
from tidegate.client.retry import Backoff
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

Script = Callable[[Call], Awaitable[None]]


class Scripted(pb_grpc.TidegateServiceServicer):
    """The server. Its questions are answered from `pages` and `replies`."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self.scripts = list(scripts)
        self.history: list[float] = []
        self.epoch = 0
        self.owner = ""  # the last
        self.final: Any = None  # the status of a call that ended for good
        self.calls: list[Any] = []
        self.failed: list[BaseException] = []
        self.left = asyncio.Event()
        self.address = ""
        self.replies: dict[str, Callable[[Any], Any]] = {}

    async def Predict(self, _: object, context: Any) -> None:  # noqa: N802 - named by the protocol
        """Plays the next script."""
        await self.play(PredictCall(self, context))

    async def PredictBlocks(self, _: object, context: Any) -> None:  # noqa: N802 - named by the protocol
        """Plays the next script."""
        await self.play(BlocksCall(self, context))

    async def play(self, call: Any) -> None:
        """Plays the next script on a call.

        After a call that ended for good, one that only opens again is told the same: grpc.aio takes an end that meets a write
        for a break, and the client with it.
        """
        if not self.scripts and self.final is not None:
            request = await call.read()
            assert request.open.resume_from, f"{request}, expected an open again"
            await call.context.abort_with_status(self.final)
        self.calls.append(call)
        if not self.scripts:
            self.failed.append(AssertionError("a call that no script is for"))
            await call.end(code="FAILED_PRECONDITION")
        try:
            await self.scripts.pop(0)(call)
        except AssertionError as error:
            self.failed.append(error)
            await call.end(code="FAILED_PRECONDITION")
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _reply(self, request: Any, context: Any) -> Any:
        reply = self.replies[type(request).__name__](request)
        if isinstance(reply, tuple):
            reason, code, metadata = (*reply, {})[:3]
            await Call(self, context).end(reason, code, **metadata)
        return reply

    ListModels = DescribeModel = ListStreams = DescribeStream = DeleteStream = _reply
    ExportStream = ImportStream = ForkStream = PredictOne = _reply

    def crash(self, kept: int) -> None:
        """Loses all but the first `kept` timesteps."""
        del self.history[kept:]


class Time:
    """A clock, a sleep that only moves it, and dice that always show the most."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.backoff = Backoff(clock=lambda: self.now, sleep=self.sleep, dice=lambda: 1.0)

    async def sleep(self, seconds: float) -> None:
        """Sleeps without waiting."""
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@asynccontextmanager
async def scripted(*scripts: Any, make: Callable[[Sequence[Any]], Any] = Scripted) -> AsyncIterator[Any]:
    """A server that plays these scripts; fails when one failed or was not played."""
    servicer = make(scripts)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TidegateServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    servicer.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield servicer
    finally:
        await server.stop(None)
        for error in servicer.failed:
            raise error
    assert not servicer.scripts, f"{len(servicer.scripts)} scripts were not played"


@asynccontextmanager
async def connected(
    *scripts: Any, make: Callable[[Sequence[Any]], Any] = Scripted, **settings: Any
) -> AsyncIterator[tuple[Client, Any, Time]]:
    """A server that plays these scripts, a client of it, and the client's time."""
    time = Time()
    async with (
        scripted(*scripts, make=make) as server,
        Client(server.address, **{"backoff": time.backoff, "timeout_s": TIMEOUT_S, **settings}) as client,
    ):
        yield client, server, time


async def sums(stream: Stream, values: Iterable[float]) -> list[float]:
    """Sends values one behind the other, each in a message of its own if nothing holds it up; gives the sums that were answered."""
    steps = []
    for value in values:
        steps.append(asyncio.create_task(stream.step([value])))
        await sent()
    return [answer["sum"].item() for answer in await asyncio.gather(*steps)]


async def sent() -> None:
    """Turns enough for what was submitted to leave, when it may."""
    for _ in range(20):
        await asyncio.sleep(0)


def let_time_out(client: Client) -> None:
    """What the client's call waits for has not come for `timeout_s`: its timer acts as if it had run down."""
    session = next(session for session in client._sessions[False] if session._call is not None)
    call = session._call
    assert call is not None
    assert call._watchdog is not None, "the client waits without a time-out"
    call._last_read_at -= session.limits.timeout_s
    call._watchdog._run()


async def closing(call: Call) -> None:
    """The rest of many scripts: the client closes, everything is stored."""
    await call.close()


async def resume_and_close(call: Call) -> None:
    """Opens, has nothing to do, is closed."""
    await call.open()
    await closing(call)
