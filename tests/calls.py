"""Calls without our client: any bytes can be sent, and each response is seen as it comes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from tests.servers import address_of
from tests.timeouts import TIMEOUT_S
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb


def pack(*values: float) -> bytes:
    """The packed values of a timestep."""
    return np.array(values, "<f4").tobytes()


@dataclass(frozen=True)
class Ending:
    """How a call ended."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    retry_s: float | None
    fields: tuple[str, ...]
    action: str
    next_step: int


def read_ending(code: grpc.StatusCode, message: str | None, trailers: Any) -> Ending:
    """Unpacks the google.rpc details of a status."""
    status = status_pb2.Status()
    for name, value in trailers or ():
        if name == "grpc-status-details-bin":
            status.ParseFromString(value)
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    retry_s = None
    fields: tuple[str, ...] = ()
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
        if detail.Unpack(bad):
            fields = tuple(violation.field for violation in bad.field_violations)
    action, next_step = info.metadata.get("action", ""), int(info.metadata.get("next_step", 0))
    return Ending(code, message or "", info.reason, info.domain, retry_s, fields, action, next_step)


class RawCall:
    """A `Predict` call without our client: any bytes can be sent."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = channel.stream_stream(
            "/tidegate.v1.TidegateService/Predict", response_deserializer=pb.PredictResponse.FromString
        )()

    async def send(self, request: pb.PredictRequest | bytes) -> None:
        """Sends a request, or any other bytes."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        async with asyncio.timeout(TIMEOUT_S):
            await self.call.write(data)

    async def read(self) -> pb.PredictResponse:
        """The next response."""
        async with asyncio.timeout(TIMEOUT_S):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, await self.ending()
        return response

    async def ask(self, request: pb.PredictRequest | bytes) -> pb.PredictResponse:
        """Sends a request and reads its response; skips notifications."""
        await self.send(request)
        while (response := await self.read()).HasField("durable"):
            pass
        return response

    async def open(self, stream_id: str = "", **more: Any) -> pb.Opened:
        """Opens a stream."""
        return (await self.ask(pb.PredictRequest(open=pb.Open(stream_id=stream_id, **more)))).opened

    async def step(self, *values: float, step: int = 0) -> pb.PredictResponse:
        """Sends a timestep and reads its answer."""
        return await self.ask(timestep(*values, step=step))

    async def ending(self) -> Ending:
        """Reads until the end of the call."""
        return await ending_of(self.call)


class RawBlocks:
    """A `PredictBlocks` call without our client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = channel.stream_stream(
            "/tidegate.v1.TidegateService/PredictBlocks", response_deserializer=pb.PredictBlocksResponse.FromString
        )()
        self.notifications: list[pb.PredictBlocksResponse] = []  # the notifications so far

    async def send(self, request: pb.PredictBlocksRequest | bytes) -> None:
        """Sends a request, or any other bytes."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        async with asyncio.timeout(TIMEOUT_S):
            await self.call.write(data)

    async def read(self) -> pb.PredictBlocksResponse:
        """The next response of any kind."""
        async with asyncio.timeout(TIMEOUT_S):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, await self.ending()
        return response

    async def ask(self, request: pb.PredictBlocksRequest | bytes) -> pb.PredictBlocksResponse:
        """Sends a request and reads its response; notifications are kept."""
        await self.send(request)
        while (response := await self.read()).WhichOneof("kind") in ("durable", "ended"):
            self.notifications.append(response)
        return response

    async def open(self, *stream_ids: str, **more: Any) -> pb.OpenedStreams:
        """Opens streams."""
        return (await self.ask(pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=stream_ids, **more)))).opened

    async def block(self, handles: Any, x: Any, steps: Any = None, number: int = 0) -> pb.PredictedBlock:
        """Sends a block and reads its answer."""
        return (await self.ask(block_request(handles, x, steps, number))).block

    async def close(self, *handles: int, forget: bool = False) -> pb.ClosedStreams:
        """Closes streams."""
        return (await self.ask(pb.PredictBlocksRequest(close=pb.CloseStreams(handles=handles, forget=forget)))).closed

    async def ending(self) -> Ending:
        """Reads until the end of the call."""
        return await ending_of(self.call)


def block_request(handles: Any, x: Any, steps: Any = None, number: int = 0) -> pb.PredictBlocksRequest:
    """The request with a block."""
    return pb.PredictBlocksRequest(
        block=pb.Block(
            block=number,
            handles=np.asarray(handles, "<u4").tobytes(),
            steps=b"" if steps is None else np.asarray(steps, "<u8").tobytes(),
            values=np.asarray(x, "<f4").tobytes(),
        )
    )


async def ending_of(call: Any) -> Ending:
    """Reads until the end of a call."""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        return read_ending(await call.code(), await call.details(), await call.trailing_metadata())


def timestep(*values: float, step: int = 0) -> pb.PredictRequest:
    """The request with a timestep."""
    return pb.PredictRequest(timestep=pb.Timestep(step=step, values=pack(*values)))


@asynccontextmanager
async def raw_channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A new connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address_of(server), options=options) as channel:
        yield channel
