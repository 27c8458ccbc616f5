"""Requests and answers between a supervisor and a worker, as lines of JSON on a socket, in both directions."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

log = logging.getLogger("tidegate.channel")

Message = Mapping[str, Any]
# The settings and the models of a worker are the longest lines.
LINE_BYTES_MAX = 1 << 22


class ChannelClosed(ConnectionError):
    """The other process has ended, or ends."""


class RequestRefused(Exception):
    """The other process refused a request. The message is the reason."""


class Channel:
    """One end. `read` is run by its owner until the other process closes its end.

    Args:
        reader, writer: the socket.
        on_request: answers a request of the other process. What it raises as `RequestRefused` is raised there too.
        on_message: handles a line that is neither a request nor an answer.

    Attributes:
        closed: set when the other process has closed its end.

    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_request: Callable[[Message], Awaitable[object]],
        on_message: Callable[[bytes], None],
    ) -> None:
        self._reader = reader
        self.writer = writer
        self._on_request = on_request
        self._on_message = on_message
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.closed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Channel: {len(self._waiting)} requests are not answered>"

    def send(self, message: Message) -> None:
        """Sends a message that is not answered."""
        if not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")

    async def ask(self, request: Message) -> Any:
        """Sends a request and waits for the answer.

        Raises:
            RequestRefused: the other process refused it.
            ChannelClosed: the other process has ended.

        """
        if self.closed.is_set() or self.writer.is_closing():
            raise ChannelClosed("the other process has ended")
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.send({"ask": number, "request": request})
            return await answer
        finally:
            del self._waiting[number]

    async def read(self) -> None:
        """Reads until the other process closes its end or dies."""
        try:
            async for line in self._reader:
                if line.endswith(b"\n"):  # else it was killed in the middle of a line
                    self._handle(line)
        except ConnectionError:  # it ended before it had read everything
            pass
        finally:
            self.closed.set()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ChannelClosed("the other process has ended"))
            for task in self._answering:
                task.cancel()

    def _handle(self, line: bytes) -> None:
        message = json.loads(line) if line.startswith(b"{") else {}
        if "ask" in message:
            task = asyncio.create_task(self._answer(message["ask"], message["request"]))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif "answer" in message:
            waiting = self._waiting.get(message["answer"])
            if waiting is not None and not waiting.done():
                if "refused" in message:
                    waiting.set_exception(RequestRefused(message["refused"]))
                else:
                    waiting.set_result(message["result"])
        else:
            self._on_message(line)

    async def _answer(self, number: int, request: Message) -> None:
        try:
            result = {"result": await self._on_request(request)}
        except RequestRefused as error:
            result = {"refused": str(error)}
        except Exception:
            log.exception("a request of the other process failed: %s", request)
            result = {"refused": "the request failed; see the log"}
        self.send({"answer": number, **result})
