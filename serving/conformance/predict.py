"""A call of `Predict`, played by a script."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from tidegate.conformance.scenario_run import Call, CallEnded, ScenarioRun
from tidegate.v1 import tidegate_pb2 as pb


class PredictCall(Call):
    """A call of `Predict`, which has one stream."""

    def __init__(self, context: Any, run: ScenarioRun, open_request: pb.Open) -> None:
        super().__init__(run, open_request)
        self._context = context

    async def write(self, **kind: Any) -> None:
        """Writes a response. Raises CallEnded when the client has gone."""
        await self.write_bytes(pb.PredictResponse(**kind).SerializeToString())

    async def write_bytes(self, message: bytes) -> None:
        """Writes a serialized response. Raises CallEnded when the client has gone."""
        await write_to(self._context, message)

    async def _send_answer(self, on_sent: Callable[[], None], **kind: Any) -> None:
        on_sent()
        await self.write(**kind)


async def write_to(context: Any, message: bytes) -> None:
    """Writes a serialized response. Raises CallEnded when the client has gone."""
    try:
        await context.write(message)
    except (grpc.aio.InternalError, asyncio.InvalidStateError):
        raise CallEnded from None
