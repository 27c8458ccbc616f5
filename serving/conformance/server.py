"""The server behind the scripts: it hands each call to the stage of the stream that it names."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from protos.tidegate.v1 import tidegate_pb2 as pb
from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc
from serving.conformance.single import Single, judge
from serving.conformance.stage import MODEL, Call, Stage, end_status


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
        call = Call(context, stage, request.open)
        stage.calls.put_nowait(call)
        try:
            await call.over.wait()
        finally:
            call.finish()
        if call.status is not None:
            await context.abort_with_status(call.status)

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
        stage = self._stages.get(stream_id)
        if stage is None or stage.finished:
            names = ", ".join(self._stages) if stage is None else "another, for this one is over"
            text = f"stream_id: got '{stream_id}', expected the name of a scenario: {names}"
            status = end_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "STREAM_LOST")
            await context.abort_with_status(status._replace(details=text))
        assert stage is not None
        return stage


@contextlib.asynccontextmanager
async def serve(stages: Mapping[str, Stage], address: str) -> AsyncIterator[str]:
    """Serves stages; gives the address. RuntimeError when it is taken."""
    service = ScriptedService(stages)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TidegateServiceServicer_to_server(service, server)
    server.add_registered_method_handlers(
        pb.DESCRIPTOR.services_by_name["TidegateService"].full_name,
        {"Predict": grpc.stream_stream_rpc_method_handler(service.Predict)},
    )
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(None)
