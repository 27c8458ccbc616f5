"""The server behind the scripts: it hands each call to the stage of the stream that it names."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc

from protos.tidegate.v1 import tidegate_pb2 as pb
from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc
from serving.conformance.blocks import BlockWire
from serving.conformance.predict import PredictCall
from serving.conformance.single import Single, judge
from serving.conformance.stage import CallOver, Stage
from serving.conformance.toy import MODEL, end_status


class ScriptedService(pb_grpc.TidegateServiceServicer):
    """Serves stages, by the ids of their streams."""

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        self._stages = stages

    async def ListModels(self, _: pb.ListModelsRequest, __: Any) -> pb.ListModelsResponse:  # noqa: N802 - named by the protocol
        """The toy model."""
        return pb.ListModelsResponse(models=[MODEL])

    async def DescribeModel(self, _: pb.DescribeModelRequest, __: Any) -> pb.DescribeModelResponse:  # noqa: N802
        """The toy model."""
        return pb.DescribeModelResponse(model=MODEL)

    async def Predict(self, _: object, context: Any) -> None:  # noqa: N802
        """Plays one call."""
        message = await context.read()
        if message is grpc.aio.EOF:
            return
        request = pb.PredictRequest.FromString(message)
        stage = await self._stage(context, request.open.stream_id)
        if not request.HasField("open"):
            stage.broke("open-first", f"a call begins with {request.WhichOneof('kind')}")
        stage.check_open(request.open)
        call = PredictCall(context, stage, request.open)
        stage.enter(call)

        async def take(message: bytes) -> None:
            call.take(pb.PredictRequest.FromString(message))

        await _play(context, call, take)

    async def PredictBlocks(self, _: object, context: Any) -> None:  # noqa: N802
        """Plays one call that has one stream."""
        wire = BlockWire(context, self._find)
        await _play(context, wire, wire.take)

    async def PredictOne(self, request: pb.PredictOneRequest, context: Any) -> pb.PredictOneResponse:  # noqa: N802
        """Plays one single call."""
        stage = await self._stage(context, request.stream_id)
        judge(stage, request, context.time_remaining())
        single = Single(context, stage, request)
        stage.singles.put_nowait(single)
        reply = await single.reply
        if isinstance(reply, pb.PredictOneResponse):
            return reply
        await context.abort_with_status(reply)
        raise AssertionError("abort returned")

    async def _stage(self, context: Any, stream_id: str) -> Stage:
        """The stage of a stream, while it is played."""
        stage = self._find(stream_id)
        if isinstance(stage, str):
            status = end_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "STREAM_LOST")
            await context.abort_with_status(status._replace(details=stage))
        assert isinstance(stage, Stage)
        return stage

    def _find(self, stream_id: str) -> Stage | str:
        """The stage of a stream, while it is played; a sentence when there is none."""
        stage = self._stages.get(stream_id)
        if stage is not None and not stage.finished:
            return stage
        names = ", ".join(self._stages) if stage is None else "another, for this one is over"
        return f"stream_id: got '{stream_id}', expected the name of a scenario: {names}"


async def _play(context: Any, call: PredictCall | BlockWire, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Hands over what the client sends as soon as it comes, until the script ends the call."""

    async def read() -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await take(message)
        except CallOver:
            pass  # the client has gone
        finally:
            call.leave()

    reading = asyncio.create_task(read())
    try:
        await call.over.wait()
    finally:
        reading.cancel()
        await asyncio.wait([reading])
    if call.status is not None:
        await context.abort_with_status(call.status)


@contextlib.asynccontextmanager
async def serve(stages: Mapping[str, Stage], address: str) -> AsyncIterator[str]:
    """Serves stages; gives the address. RuntimeError when it is taken."""
    service = ScriptedService(stages)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TidegateServiceServicer_to_server(service, server)
    server.add_registered_method_handlers(
        pb.DESCRIPTOR.services_by_name["TidegateService"].full_name,
        {
            "Predict": grpc.stream_stream_rpc_method_handler(service.Predict),
            "PredictBlocks": grpc.stream_stream_rpc_method_handler(service.PredictBlocks),
        },
    )
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(None)
