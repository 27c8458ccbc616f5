"""A call of `Predict`, as a script plays it."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.stage import Call, CallOver, Stage


class PredictCall(Call):
    """A call of `Predict`, which has one stream."""

    def __init__(self, context: Any, stage: Stage, ask: pb.Open) -> None:
        super().__init__(stage, ask)
        self._context = context

    async def write(self, **kind: Any) -> None:
        """Writes a response. Raises CallOver when the client has gone."""
        await self.write_bytes(pb.PredictResponse(**kind).SerializeToString())

    async def write_bytes(self, message: bytes) -> None:
        """Writes a packed response. Raises CallOver when the client has gone."""
        await write_to(self._context, message)

    async def _tell(self, told: Callable[[], None], **kind: Any) -> None:
        told()
        await self.write(**kind)


async def write_to(context: Any, message: bytes) -> None:
    """Writes a packed response. Raises CallOver when the client has gone."""
    try:
        await context.write(message)
    except (grpc.aio.InternalError, asyncio.InvalidStateError):
        raise CallOver from None
