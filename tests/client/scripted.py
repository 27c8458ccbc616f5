"""A server that follows a script: every interleaving that a client must live with, forced and not hoped for.

A script is an asynchronous function that plays one call of `PredictBlocks` with one stream; the calls that come take the scripts in turn, and a
call too many is refused. What the server applied is in `history`, step by step, over all calls: its answer to a timestep
is the sum of all values up to it, so that a lost, doubled or crossed timestep shows as a wrong number.
"""

import asyncio
from collections import deque
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


# Where each field of an `Opened` stands in an `OpenedStreams`.
COLUMNS = {
    "stream_id": "stream_ids",
    "kind": "kinds",
    "next_step": "next_steps",
    "epoch": "epochs",
    "durable_step": "durable_steps",
}


def pack(*values: float) -> bytes:
    """Values as they travel."""
    return np.array(values, "<f4").tobytes()


class Call:
    """One call of `PredictBlocks` with one stream, as a script plays it: row by row, however the client puts rows together.

    A block is answered when each of its rows is.
    """

    def __init__(self, server: "Scripted", context: Any) -> None:
        self.server = server
        self.context = context
        self.ask = pb.Open()
        self.rows: deque[tuple[int, bytes]] = deque()  # read and not looked at
        self.due: deque[pb.PredictedBlock] = deque()  # blocks that are not answered
        self.sizes: deque[int] = deque()  # how many rows each of these has
        self.width = len(pack(0.0))

    async def read(self) -> pb.PredictBlocksRequest | None:
        """The next request, None after the last."""
        request = await self.context.read()
        return None if request is grpc.aio.EOF else request

    async def open(self, next_step: int | None = None, **more: Any) -> None:
        """Reads the open and answers it; goes on after what was applied unless told otherwise.

        Refuses it as the protocol says when it is not the first of its client, and that cannot go on.
        """
        await self.read_open()
        if self.ask.resume_from and self.server.owner != self.ask.owner:
            await self.refuse_open("TAKEN_OVER")
            return
        if self.ask.resume_from > len(self.server.history) + 1:
            await self.refuse_open("STATE_LOST")
            return
        self.server.epoch += 1
        self.server.owner = self.ask.owner
        opened = {
            "stream_id": self.ask.stream_id or "made-up",
            "kind": pb.Opened.KIND_RESUMED,
            "next_step": next_step or len(self.server.history) + 1,
            "epoch": self.server.epoch,
            "answers_remembered": 32,
            "durable_step": 0,
            "model": MODEL,
        }
        await self.tell_opened(**{**opened, **more})

    async def tell_opened(self, **opened: Any) -> None:
        """Tells how the stream was opened."""
        for_all = {name: opened.pop(name) for name in ("answers_remembered", "model") if name in opened}
        columns = {COLUMNS[name]: [value] for name, value in opened.items()}
        await self.write(opened=pb.OpenedStreams(handles=[1], **columns, **for_all))

    async def refuse_open(self, reason: str | pb.Error, **more: Any) -> None:
        """Refuses the open that was read."""
        opened = pb.OpenedStreams(
            stream_ids=[self.ask.stream_id],
            handles=[0],
            kinds=[pb.Opened.KIND_UNSPECIFIED],
            next_steps=[0],
            epochs=[0],
            durable_steps=[0],
            errors=[pb.RowError(row=0, error=error_of(reason, **more))],
        )
        await self.write(opened=opened)

    async def read_open(self) -> None:
        """Reads the open and does not answer."""
        request = await self.read()
        assert request is not None, "the call ended, expected an open"
        assert request.HasField("open"), request
        asked = request.open
        assert len(asked.stream_ids) == 1, asked
        self.ask = pb.Open(
            stream_id=asked.stream_ids[0],
            model=asked.model,
            version=asked.version,
            existence=asked.existence,
            durability=asked.durability,
            owner=asked.owner,
            resume_from=asked.resume_from[0] if asked.resume_from else 0,
            kept_max=asked.kept_max,
        )

    async def write(self, **kind: Any) -> None:
        """Writes a response."""
        await self.context.write(pb.PredictBlocksResponse(**kind))

    async def row(self) -> tuple[int, bytes] | None:
        """The next timestep, number and packed values; None when what comes is none."""
        if not self.rows:
            request = await self.read()
            if request is None or not request.HasField("block"):
                return None
            steps = np.frombuffer(request.block.steps, "<u8").tolist()
            width = len(request.block.values) // len(steps)
            for place, step in enumerate(steps):
                self.rows.append((step, request.block.values[place * width : (place + 1) * width]))
            self.due.append(pb.PredictedBlock(block=request.block.block))
            self.sizes.append(len(steps))
        return self.rows.popleft()

    async def expect(self, *steps: int) -> None:
        """Reads timesteps, which must be these, and applies those that are next."""
        for step in steps:
            row = await self.row()
            assert row is not None, f"expected timestep {step}"
            assert row[0] == step, f"{row}, expected timestep {step}"
            if step == len(self.server.history) + 1:
                self.server.history.append(np.frombuffer(row[1], "<f4").item())

    async def expect_unapplied(self, *steps: int) -> None:
        """Reads timesteps, which must be these, and applies none."""
        history = list(self.server.history)
        await self.expect(*steps)
        self.server.history[:] = history

    async def answer(self, *steps: int, durable: int = 0, outputs: list[bytes] | None = None) -> None:
        """Answers timesteps that were applied; without `outputs` the server no longer remembers."""
        for step in steps:
            block = self.due[0]
            packed = pack(sum(self.server.history[:step])) if outputs is None else b"".join(outputs)
            if not packed:
                block.forgotten_rows.append(len(block.steps) // 8)
                packed = pack(0.0)
            await self._answered(step, packed, durable)

    async def _answered(self, step: int, packed: bytes, durable: int) -> None:
        """A row of the first block is answered; so is the block when that was its last."""
        block = self.due[0]
        if not block.outputs:
            block.outputs.append(b"")
        block.outputs[0] += packed
        block.steps += np.array([step], "<u8").tobytes()
        block.durable_steps += np.array([durable], "<u8").tobytes()
        if len(block.steps) // 8 == self.sizes[0]:
            self.sizes.popleft()
            await self.write(block=self.due.popleft())

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
            self.due[0].errors.add(row=len(self.due[0].steps) // 8, error=error)
            await self._answered(step, pack(0.0), 0)

    async def durable(self, step: int) -> None:
        """Tells what is stored."""
        handles, steps = np.array([1], "<u4").tobytes(), np.array([step], "<u8").tobytes()
        await self.write(durable=pb.DurableStreams(handles=handles, durable_steps=steps))

    async def end_stream(self, reason: str | pb.Error, **more: Any) -> None:
        """Tells that the stream no longer belongs to the call."""
        await self.write(ended=pb.EndedStreams(handles=[1], error=error_of(reason, **more)))

    async def move(self) -> None:
        """Asks the client to move."""
        await self.write(move=pb.Move(message="going"))

    async def close(self, durable: int | None = None, *, forget: bool = False) -> None:
        """Reads the close and answers it."""
        request = await self.read()
        assert request is not None, "the call ended, expected a close"
        assert request.HasField("close"), request
        assert request.close.forget is forget
        step = len(self.server.history)
        await self.write(closed=pb.ClosedStreams(steps=[step], durable_steps=[step if durable is None else durable]))

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

    async def PredictBlocks(self, _: object, context: Any) -> None:  # noqa: N802 - named by the protocol
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


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Waits for what the network brings; fails when it does not come."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - the insides of a client send no event
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen") from None


def let_time_out(client: Client) -> None:
    """What the client's call waits for has not come for `timeout_s`: its timer acts as if it had run down."""
    session = next(session for session in client._sessions[False] if session._call is not None)
    call = session._call
    assert call is not None
    assert call._watchdog is not None, "the client waits without a time-out"
    call._heard_at -= session.limits.timeout_s
    call._watchdog._run()


async def closing(call: Call) -> None:
    """The rest of many scripts: the client closes, everything is stored."""
    await call.close()
