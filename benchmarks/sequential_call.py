"""Streams on a call, asked and answered in turn: for benchmarks that open, cut and end calls rather than count steps.

An answer that never comes is waited for without end: whoever visits does so within a time.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from compare import VALUES

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.bench.encoding import (
    APPLIED,
    Encoding,
    PredictBlocksEncoding,
    PredictEncoding,
    StreamsEnded,
    UnexpectedResponse,
    encode_rows,
)
from serving.bench.http2 import CallStatus, Connection
from serving.bench.light_client import client_error

ROWS = encode_rows(VALUES)


def predict_call(stream_id: str = "") -> PredictEncoding:
    """A stream, new or known; an empty id has the server issue one."""
    return PredictEncoding(pb.Open(stream_id=stream_id), ROWS)


def predict_blocks_call(stream_ids: list[str]) -> PredictBlocksEncoding:
    """Many of them."""
    return PredictBlocksEncoding(pb.OpenStreams(stream_ids=stream_ids), VALUES)


class SequentialCall:
    """One call.

    Raises, at whatever is asked, the error of `serving.client` that says how the server ended the call, and RuntimeError
    when a timestep was not applied.
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
        """Has the next timestep of every stream answered; gives the response."""
        self._number += 1
        return await self._request(self._encoding.request(self._number, {}), self._is_applied)

    async def close(self, *, forget: bool) -> None:
        """Ends the streams, and waits until the server has ended the call."""
        self.rpc.send(self._encoding.close_request(forget=forget), last=True)
        await self._ended

    async def half_close(self) -> None:
        """Sends no more, and waits until the server has ended the call; the streams are kept."""
        self.rpc.half_close()
        await self._ended

    def send(self) -> int:
        """Sends the next timestep of every stream and waits for nothing; gives its length."""
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
