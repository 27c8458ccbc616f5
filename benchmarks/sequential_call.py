"""Calls with one request at a time, for benchmarks that open, cancel and end calls.

There is no time limit for an answer: the caller sets one.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from compare import VALUES

from tidegate.bench.encoding import (
    APPLIED,
    Encoding,
    PredictBlocksEncoding,
    PredictEncoding,
    StreamsEnded,
    UnexpectedResponse,
    encode_rows,
)
from tidegate.bench.http2 import CallStatus, Connection
from tidegate.bench.light_client import client_error
from tidegate.v1 import tidegate_pb2 as pb

ROWS = encode_rows(VALUES)


def predict_call(stream_id: str = "") -> PredictEncoding:
    """Makes the encoding of a stream, new or known. With an empty id the server chooses one."""
    return PredictEncoding(pb.Open(stream_id=stream_id), ROWS)


def predict_blocks_call(stream_ids: list[str]) -> PredictBlocksEncoding:
    """Makes the encoding of many streams."""
    return PredictBlocksEncoding(pb.OpenStreams(stream_ids=stream_ids), VALUES)


class SequentialCall:
    """One call.

    All methods raise the error of `tidegate.client` for the status of a failed call, and RuntimeError when a timestep was not
    applied.
    """

    def __init__(self, connection: Connection, encoding: Encoding) -> None:
        self._encoding = encoding
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._accept: Callable[[bytes], bool]
        self._answer: asyncio.Future[bytes] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.rpc = connection.call(encoding.method, self._on_message, self._on_end)

    async def open(self) -> None:
        """Opens the streams."""
        refused: list[Any] = []

        def accept(message: bytes) -> bool:
            refused.extend(self._encoding.decode_opened(message))
            return True

        await self._request(self._encoding.open_request(), accept)
        if refused:
            raise RuntimeError(f"streams were refused: {refused}")

    async def step(self) -> bytes:
        """Sends the next timestep of every stream. Returns the response."""
        self._number += 1
        return await self._request(self._encoding.request(self._number, {}), self._is_applied)

    async def close(self, *, forget: bool) -> None:
        """Closes the streams, and waits until the server has ended the call."""
        self.rpc.send(self._encoding.close_request(forget=forget), last=True)
        await self._ended

    async def half_close(self) -> None:
        """Ends the requests, and waits until the server has ended the call. The streams stay."""
        self.rpc.half_close()
        await self._ended

    def send(self) -> int:
        """Sends the next timestep of every stream without waiting. Returns its length in bytes."""
        self._number += 1
        message = self._encoding.request(self._number, {})
        self.rpc.send(message)
        return len(message)

    async def _request(self, message: bytes, accept: Callable[[bytes], bool]) -> bytes:
        self._accept, self._answer = accept, self._loop.create_future()
        self.rpc.send(message)
        return await self._answer

    def _is_applied(self, message: bytes) -> bool:
        answer = self._encoding.decode_answer(message, self._number)
        if answer is None or isinstance(answer, StreamsEnded):
            return False
        if answer != APPLIED:
            raise RuntimeError(f"expected that a timestep is applied, got {answer}")
        return True

    def _on_message(self, message: bytes) -> None:
        if self._answer.done():
            return
        try:
            if self._accept(message):
                self._answer.set_result(message)
        except (UnexpectedResponse, RuntimeError) as error:
            self._answer.set_exception(error)

    def _on_end(self, status: CallStatus) -> None:
        if not status.code:
            self._ended.set_result(None)
            return
        for future in (self._answer, self._ended):
            if not future.done():
                future.set_exception(client_error(status))
