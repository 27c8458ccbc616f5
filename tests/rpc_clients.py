"""One interface to the three calls that answer timesteps, without our client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from tests.calls import Ending, RawBlocks, RawCall, pack, read_ending, timestep
from tests.timeouts import TIMEOUT_S
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

STREAM = "a"


class Refused(Exception):
    """The server refused an open or a timestep, or the call ended."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"{ending.reason}: {ending.message}")
        self.ending = ending


def refused(error: pb.Error) -> Refused:
    """The refusal in a response, in the form of a status."""
    reason, action = pb.Error.Reason.Name(error.reason), pb.Error.Action.Name(error.action)
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    words = (reason.removeprefix("REASON_"), action.removeprefix("ACTION_"))
    return Refused(Ending(code, error.message, words[0], "", None, (), words[1], error.next_step))


class RpcClient:
    """A client of one stream by one of the calls. `step` returns the packed outputs, and whether it was a duplicate.

    It raises Refused when the server refuses.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def open(self, **more: Any) -> int:
        """Opens the stream. Returns the number of the next timestep."""
        raise NotImplementedError

    async def send(self, row: Any, number: int) -> None:
        """Sends a timestep without waiting for its answer."""
        raise NotImplementedError

    async def answer(self) -> tuple[bytes, bool]:
        """The answer to the timestep that was sent."""
        raise NotImplementedError

    async def close(self) -> None:
        """Closes the stream."""

    async def cut(self) -> None:
        """Breaks the connection."""
        raise NotImplementedError

    async def step(self, row: Any, number: int) -> tuple[bytes, bool]:
        """Sends a timestep and returns its answer."""
        await self.send(row, number)
        return await self.answer()


class PredictClient(RpcClient):
    """Uses `PredictClient`."""

    async def open(self, **more: Any) -> int:
        """Opens the stream."""
        self.raw = RawCall(self.channel)
        await self.raw.send(pb.PredictRequest(open=pb.Open(stream_id=STREAM, **more)))
        return (await self._read()).opened.next_step

    async def send(self, row: Any, number: int) -> None:
        """Sends a timestep."""
        await _written(self.raw, timestep(*np.asarray(row).tolist(), step=number))

    async def answer(self) -> tuple[bytes, bool]:
        """Its answer."""
        response = await self._read()
        if response.HasField("error"):
            raise refused(response.error)
        return response.prediction.outputs[0], response.prediction.duplicate

    async def close(self) -> None:
        """Closes the stream."""
        await self.raw.send(pb.PredictRequest(close=pb.Close()))
        assert (await self._read()).HasField("closed")

    async def cut(self) -> None:
        """Cancels the call."""
        self.raw.call.cancel()

    async def _read(self) -> pb.PredictResponse:
        while True:
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    response = await self.raw.call.read()
                except grpc.aio.AioRpcError:
                    response = grpc.aio.EOF
            if response is grpc.aio.EOF:
                raise Refused(await self.raw.ending())
            if response.WhichOneof("kind") != "durable":
                return response


class PredictBlocksClient(RpcClient):
    """Uses `PredictBlocks`."""

    async def open(self, **more: Any) -> int:
        """Opens the stream, as the only one of the call."""
        self.raw = RawBlocks(self.channel)
        if "resume_from" in more:
            more["resume_from"] = [more["resume_from"]]
        opened = await self.raw.open(STREAM, **more)
        if opened.errors:
            raise refused(opened.errors[0].error)
        self.handle = opened.handles[0]
        return opened.next_steps[0]

    async def send(self, row: Any, number: int) -> None:
        """Sends a block of one row."""
        block = pb.Block(
            handles=np.array([self.handle], "<u4").tobytes(),
            steps=np.array([number], "<u8").tobytes(),
            values=np.asarray(row, "<f4").tobytes(),
        )
        await _written(self.raw, pb.PredictBlocksRequest(block=block))

    async def answer(self) -> tuple[bytes, bool]:
        """Its answer. The end of the stream comes in a notification."""
        while (response := await self.raw.read()).WhichOneof("kind") == "durable":
            pass
        if response.HasField("ended"):
            raise refused(response.ended.error)
        block = response.block
        if block.HasField("refused"):
            raise refused(block.refused)
        if block.errors:
            raise refused(block.errors[0].error)
        return block.outputs[0], bool(block.duplicate_rows)

    async def close(self) -> None:
        """Closes the stream, then the call."""
        closed = await self.raw.close(self.handle)
        assert not closed.errors
        await self.raw.call.done_writing()
        assert (await self.raw.ending()).code is grpc.StatusCode.OK

    async def cut(self) -> None:
        """Cancels the call."""
        self.raw.call.cancel()


class PredictOneClient(RpcClient):
    """Uses `PredictOne`, which needs no open."""

    sending: "asyncio.Task[pb.PredictOneResponse] | None" = None

    async def open(self, **_: Any) -> int:
        """Does nothing."""
        return 0

    async def send(self, row: Any, number: int) -> None:
        """Starts the call."""
        stub: Any = pb_grpc.TidegateServiceStub(self.channel)
        request = pb.PredictOneRequest(stream_id=STREAM, step=number, values=pack(*np.asarray(row).tolist()))
        self.sending = asyncio.create_task(_call(stub, request))

    async def answer(self) -> tuple[bytes, bool]:
        """The result of the call."""
        assert self.sending is not None
        try:
            prediction = (await self.sending).prediction
        except grpc.aio.AioRpcError as error:
            raise Refused(read_ending(error.code(), error.details(), error.trailing_metadata())) from error
        return prediction.outputs[0], prediction.duplicate

    async def cut(self) -> None:
        """Cancels the call."""
        if self.sending is not None:
            self.sending.cancel()


async def _written(raw: Any, request: Any) -> None:
    """Sends a request. Raises Refused with the status when the call has ended."""
    try:
        await raw.send(request)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        raise Refused(await raw.ending()) from None


async def _call(stub: Any, request: pb.PredictOneRequest) -> pb.PredictOneResponse:
    return await stub.PredictOne(request, timeout=TIMEOUT_S)


RPC_CLIENTS = (PredictClient, PredictBlocksClient, PredictOneClient)


@asynccontextmanager
async def channel_to(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A new connection."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel
