"""A server that follows a script: every interleaving that a client must live with, forced and not hoped for.

A script is an asynchronous function that plays one call of `Predict`; the calls that come take the scripts in turn, and a
call too many is refused. What the server applied is in `history`, step by step, over all calls: its answer to a timestep
is the sum of all values up to it, so that a lost, doubled or crossed timestep shows as a wrong number.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.client.reasons import action_of, error_of
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, Stream
from tidegate.client.retry import Backoff
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

CODES = {"STOPPING": "UNAVAILABLE", "TAKEN_OVER": "ABORTED", "STATE_LOST": "DATA_LOSS", "STREAM_NOT_FOUND": "NOT_FOUND"}

MODEL = pb.Model(
    name="toy",
    version="1",
    fingerprint="f" * 64,
    features=[pb.Feature(name="x")],
    outputs=[pb.Output(name="sum", data_type=pb.DATA_TYPE_FLOAT32, shape=[1])],
    batch_invariant=True,
)


def pack(*values: float) -> bytes:
    """Values as they travel."""
    return np.array(values, "<f4").tobytes()


class Call:
    """One call, as a script plays it."""

    def __init__(self, server: "Scripted", context: Any) -> None:
        self.server = server
        self.context = context
        self.ask = pb.Open()

    async def read(self) -> pb.PredictRequest | None:
        """The next request, None after the last."""
        request = await self.context.read()
        return None if request is grpc.aio.EOF else request

    async def open(self, next_step: int | None = None, **more: Any) -> None:
        """Reads the open and answers it; goes on after what was applied unless told otherwise.

        Refuses it as the protocol says when it is not the first of its client, and that cannot go on.
        """
        await self.read_open()
        if self.ask.resume_from and self.server.owner != self.ask.owner:
            await self.end("TAKEN_OVER")
        if self.ask.resume_from > len(self.server.history) + 1:
            await self.end("STATE_LOST")
        self.server.epoch += 1
        self.server.owner = self.ask.owner
        opened = {
            "stream_id": self.ask.stream_id or "made-up",
            "kind": pb.Opened.KIND_RESUMED,
            "next_step": next_step or len(self.server.history) + 1,
            "epoch": self.server.epoch,
            "answers_remembered": 32,
            "model": MODEL,
        }
        await self.context.write(pb.PredictResponse(opened=pb.Opened(**{**opened, **more})))

    async def read_open(self) -> None:
        """Reads the open and does not answer."""
        request = await self.read()
        assert request is not None, "the call ended, expected an open"
        assert request.HasField("open"), request
        self.ask = request.open

    async def expect(self, *steps: int) -> None:
        """Reads timesteps, which must be these, and applies those that are next."""
        for step in steps:
            request = await self.read()
            assert request is not None, f"the call ended, expected timestep {step}"
            assert request.timestep.step == step, f"{request}, expected timestep {step}"
            if step == len(self.server.history) + 1:
                self.server.history.append(np.frombuffer(request.timestep.values, "<f4").item())

    async def expect_unapplied(self, *steps: int) -> None:
        """Reads timesteps, which must be these, and applies none."""
        history = list(self.server.history)
        await self.expect(*steps)
        self.server.history[:] = history

    async def answer(self, *steps: int, durable: int = 0, outputs: list[bytes] | None = None) -> None:
        """Answers timesteps that were applied."""
        for step in steps:
            prediction = pb.Prediction(
                step=step,
                outputs=[pack(sum(self.server.history[:step]))] if outputs is None else outputs,
                durable_step=durable,
            )
            await self.context.write(pb.PredictResponse(prediction=prediction))

    async def serve(self, *steps: int, durable: int = 0) -> None:
        """Reads, applies and answers timesteps, one after the other."""
        for step in steps:
            await self.expect(step)
            await self.answer(step, durable=durable)

    async def refuse(self, *steps: int, reason: str | pb.Error, next_step: int = 0, retry_after_ms: int = 0) -> None:
        """Refuses timesteps."""
        for step in steps:
            if isinstance(reason, pb.Error):
                error = pb.Error(step=step, next_step=next_step or len(self.server.history) + 1)
                error.MergeFrom(reason)
            else:
                error = error_of(
                    reason,
                    step=step,
                    message=f"{step} is refused",
                    next_step=next_step or len(self.server.history) + 1,
                    retry_after_ms=retry_after_ms,
                )
            await self.context.write(pb.PredictResponse(error=error))

    async def durable(self, step: int) -> None:
        """Tells what is stored."""
        await self.context.write(pb.PredictResponse(durable=pb.Durable(durable_step=step)))

    async def move(self) -> None:
        """Asks the client to move."""
        await self.context.write(pb.PredictResponse(move=pb.Move(message="going")))

    async def close(self, durable: int | None = None, *, forget: bool = False) -> None:
        """Reads the close and answers it."""
        request = await self.read()
        assert request is not None, "the call ended, expected a close"
        assert request.HasField("close"), request
        assert request.close.forget is forget
        step = len(self.server.history)
        closed = pb.Closed(step=step, durable_step=step if durable is None else durable)
        await self.context.write(pb.PredictResponse(closed=closed))

    async def end(
        self, reason: str = "", code: str = "", *, message: str = "", domain: str = "tidegate.v1", **metadata: str
    ) -> None:
        """Ends the call with a reason of the protocol and the action that belongs to it, or with a bare code: a break."""
        code = code or CODES.get(reason, "UNAVAILABLE")
        message = message or f"{reason or code} it is"
        details = []
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain=domain)
            info.metadata.update({"action": action_of(reason), **metadata})
            packed = any_pb2.Any()
            packed.Pack(info)
            details.append(packed)
            final = info.metadata["action"] not in ("RETRY", "REOPEN")
        else:
            final = code == "ABORTED" or "larger than max" in message
        status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message, details=details)
        if final:
            self.server.final = rpc_status.to_status(status)
        await self.context.abort_with_status(rpc_status.to_status(status))

    async def gone(self) -> None:
        """Waits until the client has left the call."""
        while await self.read() is not None:
            pass
        await asyncio.Event().wait()


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
        await self.play(Call(self, context))

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
        Client(server.address, backoff=time.backoff, **settings) as client,
    ):
        yield client, server, time


async def sums(stream: Stream, values: Iterable[float]) -> list[float]:
    """Sends values together; gives the sums that were answered."""
    answers = await asyncio.gather(*(stream.step([value]) for value in values))
    return [answer["sum"].item() for answer in answers]


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Waits for what the network brings; fails when it does not come."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - the insides of a client send no event
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen") from None


async def closing(call: Call) -> None:
    """The rest of many scripts: the client closes, everything is stored."""
    await call.close()
