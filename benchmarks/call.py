"""One call of `Predict`, asked and answered in turn: for benchmarks that open, cut and end calls rather than count steps.

An answer that never comes is waited for without end, and a connection that fails tells nobody here: whoever runs calls does
so through `load.first`, and within a time.
"""

import asyncio

import numpy as np
from frames import Connection, prefixed
from load import DURABLE, METHOD, PREDICTION
from model import FEATURES

from protos.tidegate.v1 import tidegate_pb2 as pb

VALUES = np.random.default_rng(0).normal(size=FEATURES).astype("<f4").tobytes()


async def connect(address: str) -> Connection:
    """A connection for calls."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(METHOD, address), host, int(port))
    return connection


class Call:
    """One stream on one call; `step` is the number of the timestep to send next."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answer: asyncio.Future[bytes]
        self._number = connection.call(self._on_message)
        self.stream_id = ""
        self.step = 0

    async def open(self, stream_id: str = "") -> None:
        """Opens a stream, new or known."""
        answer = await self._ask(pb.PredictRequest(open=pb.Open(stream_id=stream_id)))
        opened = pb.PredictResponse.FromString(answer).opened
        self.stream_id, self.step = opened.stream_id, opened.next_step

    async def predict(self) -> None:
        """Has the next timestep answered; RuntimeError when the answer is no prediction."""
        answer = await self._ask(self._timestep())
        if answer[0] != PREDICTION:
            raise RuntimeError(f"expected a prediction, got {pb.PredictResponse.FromString(answer)!s:.500}")
        self.step += 1

    async def close(self, *, forget: bool) -> None:
        """Ends the stream, and waits until the server has ended the call."""
        ended = self._ended()
        await self._ask(pb.PredictRequest(close=pb.Close(forget=forget)))
        await ended

    async def half_close(self) -> None:
        """Sends no more, and waits until the server has ended the call; the stream is kept."""
        ended = self._ended()
        self._connection.half_close(self._number)
        await ended

    def cut(self) -> None:
        """Sends a timestep and cancels the call at once."""
        self._connection.send(self._number, prefixed(self._timestep().SerializeToString()))
        self._connection.cut(self._number)

    def _timestep(self) -> pb.PredictRequest:
        return pb.PredictRequest(timestep=pb.Timestep(step=self.step, values=VALUES))

    def _ended(self) -> asyncio.Future[None]:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connection.on_end(self._number, lambda: ended.set_result(None))
        return ended

    async def _ask(self, request: pb.PredictRequest) -> bytes:
        self._answer = asyncio.get_running_loop().create_future()
        self._connection.send(self._number, prefixed(request.SerializeToString()))
        return await self._answer

    def _on_message(self, answer: bytes) -> None:
        if answer[0] != DURABLE:
            self._answer.set_result(answer)
