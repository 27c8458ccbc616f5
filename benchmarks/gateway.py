"""A gateway: one call of `PredictBlocks` that carries many streams, its messages put together from parts made beforehand.

Of a block only the numbers of its timesteps are new; handles, values and everything between are bytes that are there
already. An answer is not parsed: one without refusals, duplicates or gaps has exactly one length. At thousands of rows a
message grpc.aio costs a client next to nothing, so it carries them.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

import grpc
import numpy as np
from model import FEATURES, OUTPUTS

from protos.tidegate.v1 import tidegate_pb2 as pb

METHOD = "/tidegate.v1.TidegateService/PredictBlocks"
# What is told unasked comes between answers. The first byte of a response: the number and type of the field it holds.
DURABLE = (pb.PredictBlocksResponse.DURABLE_FIELD_NUMBER << 3) | 2
ENDED = (pb.PredictBlocksResponse.ENDED_FIELD_NUMBER << 3) | 2
# Blocks are numbered from here on, so that the number takes as many bytes in each: a varint of four, for 266 million blocks.
BLOCK_FIRST = 1 << 21
# Different rows of values, which blocks take in turn.
VALUES = 16
# A lost answer must end a benchmark, not hang it.
ANSWER_SECONDS_MAX = 60.0


def channel(address: str, *options: tuple[str, int]) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1), *options])


class Gateway:
    """Streams on one call, all stepped by each block."""

    def __init__(self, call: Any, handles: Sequence[int], next_steps: Sequence[int]) -> None:
        self.call = call
        self.rows = len(handles)
        self._handles = handles
        self._steps = np.array(next_steps, "<u8")
        self._parts = _Parts(handles)
        self._number = BLOCK_FIRST
        self._sent: deque[tuple[int, float]] = deque()

    @classmethod
    async def open(cls, connection: grpc.aio.Channel, stream_ids: Sequence[str]) -> Self:
        """Opens streams on a call of their own; an empty id has the server issue one."""
        return await cls.open_on(connection.stream_stream(METHOD)(), stream_ids)

    @classmethod
    async def open_on(cls, call: Any, stream_ids: Sequence[str]) -> Self:
        """Opens streams on a call that may have others. Those take turns: an answer goes to whoever reads next."""
        await call.write(pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=stream_ids)).SerializeToString())
        opened = pb.PredictBlocksResponse.FromString(await _answer(call)).opened
        if opened.errors or not opened.handles:
            raise RuntimeError(f"expected {len(stream_ids)} streams to be opened, got {opened.errors[:1]}")
        return cls(call, opened.handles, opened.next_steps)

    @property
    def block_bytes(self) -> int:
        """The length of a block as it travels."""
        return len(self._parts.block(self._number, self._steps))

    async def send(self) -> None:
        """Sends a block; returns when the network has taken it."""
        message = self._parts.block(self._number, self._steps)
        self._sent.append((self._number, time.monotonic()))
        self._number += 1
        self._steps += 1
        await self.call.write(message)

    async def receive(self) -> float:
        """Waits for the answer to the oldest block under way; gives when that was sent.

        Raises:
            RuntimeError: a row was not applied, or it is the answer to something else.

        """
        answer = await _answer(self.call)
        number, sent = self._sent.popleft()
        if not self._parts.is_clean(answer, number):
            raise RuntimeError(
                f"expected {self.rows} predictions, got {pb.PredictBlocksResponse.FromString(answer)!s:.500}"
            )
        return sent

    async def forget(self) -> None:
        """Ends the streams and the call."""
        close = pb.CloseStreams(handles=self._handles, forget=True)
        await self.call.write(pb.PredictBlocksRequest(close=close).SerializeToString())
        await _answer(self.call)
        await self.call.done_writing()

    async def half_close(self) -> None:
        """Ends the call; the streams are kept."""
        await self.call.done_writing()
        while await self.call.read() is not grpc.aio.EOF:
            pass

    def cut(self) -> None:
        """Cancels the call, with whatever is under way."""
        self.call.cancel()


class _Parts:
    """What the messages of some streams are made of. Messages of protobuf may be joined, so each field is made alone."""

    def __init__(self, handles: Sequence[int]) -> None:
        rows = len(handles)
        rng = np.random.default_rng(0)
        self._handles = pb.Block(handles=np.array(handles, "<u4").tobytes()).SerializeToString()
        self._steps_head = pb.Block(steps=bytes(8 * rows)).SerializeToString()[: -8 * rows]
        self._values = [
            pb.Block(values=rng.normal(size=(rows, FEATURES)).astype("<f4").tobytes()).SerializeToString()
            for _ in range(VALUES)
        ]
        whole = pb.Block(block=BLOCK_FIRST, handles=bytes(4 * rows), steps=bytes(8 * rows),
                         values=bytes(4 * FEATURES * rows))  # fmt: skip
        self._head = pb.PredictBlocksRequest(block=whole).SerializeToString()[: -whole.ByteSize()]
        answer = pb.PredictedBlock(
            block=BLOCK_FIRST, steps=bytes(8 * rows), outputs=[bytes(4 * OUTPUTS * rows)], durable_steps=bytes(8 * rows)
        )
        response = pb.PredictBlocksResponse(block=answer).SerializeToString()
        self._answer_bytes = len(response)
        self._answer_head = response[: -answer.ByteSize()]

    def block(self, number: int, steps: Any) -> bytes:
        """One block as it travels."""
        values = self._values[number % VALUES]
        return b"".join((self._head, _number(number), self._handles, self._steps_head, steps.tobytes(), values))

    def is_clean(self, answer: bytes, number: int) -> bool:
        """Whether it answers that block, every row applied and nothing to be said of any."""
        return len(answer) == self._answer_bytes and answer.startswith(self._answer_head + _number(number))


def _number(number: int) -> bytes:
    """The number of a block as a field, the first of both messages."""
    return pb.Block(block=number).SerializeToString()


async def _answer(call: Any) -> bytes:
    """The next response that answers something."""
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        while (response := await call.read()) is not grpc.aio.EOF and response[0] in (DURABLE, ENDED):
            pass
    if response is grpc.aio.EOF:
        raise RuntimeError(f"the server ended the call: {await call.code()} {await call.details()}")
    answer: bytes = response
    return answer
