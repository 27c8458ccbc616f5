"""Streams on a call, asked and answered in turn: for benchmarks that open, cut and end calls rather than count steps.

An answer that never comes is waited for without end: whoever visits does so within a time.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from compare import VALUES

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.bench.frames import Connection, Ending
from serving.bench.light import said
from serving.bench.speech import APPLIED, Ended, Many, Single, Speech, WrongAnswer, packed

ROWS = packed(VALUES)


def one(stream_id: str = "") -> Single:
    """A stream, new or known; an empty id has the server issue one."""
    return Single(pb.Open(stream_id=stream_id), ROWS)


def block(stream_ids: list[str]) -> Many:
    """Many of them."""
    return Many(pb.OpenStreams(stream_ids=stream_ids), VALUES)


class Visit:
    """One call.

    Raises, at whatever is asked, the error of `serving.client` that says how the server ended the call, and RuntimeError
    when a timestep was not applied.
    """

    def __init__(self, connection: Connection, speech: Speech) -> None:
        self._speech = speech
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._take: Callable[[bytes], bool]
        self._answer: asyncio.Future[bytes] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.call = connection.call(speech.method, self._on_message, self._on_end)

    async def open(self) -> None:
        """Opens the streams."""
        refused: list[Any] = []

        def take(message: bytes) -> bool:
            refused.extend(self._speech.opened(message))
            return True

        await self._ask(self._speech.open(), take)
        if refused:
            raise RuntimeError(f"streams were refused: {refused}")

    async def step(self) -> bytes:
        """Has the next timestep of every stream answered; gives the response."""
        self._number += 1
        return await self._ask(self._speech.message(self._number, {}), self._is_answer)

    async def close(self, *, forget: bool) -> None:
        """Ends the streams, and waits until the server has ended the call."""
        self.call.send(self._speech.close(forget=forget), last=True)
        await self._ended

    async def half_close(self) -> None:
        """Sends no more, and waits until the server has ended the call; the streams are kept."""
        self.call.half_close()
        await self._ended

    def send(self) -> int:
        """Sends the next timestep of every stream and waits for nothing; gives its length."""
        self._number += 1
        message = self._speech.message(self._number, {})
        self.call.send(message)
        return len(message)

    async def _ask(self, message: bytes, take: Callable[[bytes], bool]) -> bytes:
        self._take, self._answer = take, self._loop.create_future()
        self.call.send(message)
        return await self._answer

    def _is_answer(self, message: bytes) -> bool:
        verdict = self._speech.verdict(message, self._number)
        if verdict is None or isinstance(verdict, Ended):
            return False
        if verdict != APPLIED:
            raise RuntimeError(f"expected that a timestep is applied, got {verdict}")
        return True

    def _on_message(self, message: bytes) -> None:
        if self._answer.done():
            return
        try:
            if self._take(message):
                self._answer.set_result(message)
        except (WrongAnswer, RuntimeError) as error:
            self._answer.set_exception(error)

    def _on_end(self, ending: Ending) -> None:
        if not ending.code:
            self._ended.set_result(None)
            return
        for future in (self._answer, self._ended):
            if not future.done():
                future.set_exception(said(ending))
