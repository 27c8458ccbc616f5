"""The gRPC server of the scenarios: it passes each call to the run of the stream's scenario."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc

from tidegate.conformance.blocks import PredictBlocksRpc
from tidegate.conformance.predict import PredictCall
from tidegate.conformance.predict_one import PredictOneCall, check_request
from tidegate.conformance.scenario_run import CallEnded, ScenarioRun
from tidegate.conformance.toy_model import MODEL, make_status
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


class ScriptedService(pb_grpc.TidegateServiceServicer):
    """Serves scenario runs. The id of a stream is the name of its scenario."""

    def __init__(self, runs: Mapping[str, ScenarioRun]) -> None:
        self._runs = runs

    async def ListModels(self, _: pb.ListModelsRequest, __: Any) -> pb.ListModelsResponse:  # noqa: N802 - named by the protocol
        """Returns the toy model."""
        return pb.ListModelsResponse(models=[MODEL])

    async def DescribeModel(self, _: pb.DescribeModelRequest, __: Any) -> pb.DescribeModelResponse:  # noqa: N802
        """Returns the toy model."""
        return pb.DescribeModelResponse(model=MODEL)

    async def Predict(self, _: object, context: Any) -> None:  # noqa: N802
        """Plays one call."""
        message = await context.read()
        if message is grpc.aio.EOF:
            return
        request = pb.PredictRequest.FromString(message)
        run = await self._find_run(context, request.open.stream_id)
        if not request.HasField("open"):
            run.add_violation("open-first", f"a call starts with {request.WhichOneof('kind')}")
        run.check_open(request.open)
        call = PredictCall(context, run, request.open)
        run.add_call(call)

        async def receive(message: bytes) -> None:
            call.receive(pb.PredictRequest.FromString(message))

        await _play(context, call, receive)

    async def PredictBlocks(self, _: object, context: Any) -> None:  # noqa: N802
        """Plays one call with one stream."""
        rpc = PredictBlocksRpc(context, self._find)
        await _play(context, rpc, rpc.receive)

    async def PredictOne(self, request: pb.PredictOneRequest, context: Any) -> pb.PredictOneResponse:  # noqa: N802
        """Plays one call of one timestep."""
        run = await self._find_run(context, request.stream_id)
        check_request(run, request, context.time_remaining())
        single = PredictOneCall(context, run, request)
        run.single_calls.put_nowait(single)
        reply = await single.reply
        if isinstance(reply, pb.PredictOneResponse):
            return reply
        await context.abort_with_status(reply)
        raise AssertionError("abort returned")

    async def _find_run(self, context: Any, stream_id: str) -> ScenarioRun:
        """Returns the run of a stream's scenario. Aborts the call when there is none."""
        run = self._find(stream_id)
        if isinstance(run, str):
            status = make_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "STREAM_LOST")
            await context.abort_with_status(status._replace(details=run))
        assert isinstance(run, ScenarioRun)
        return run

    def _find(self, stream_id: str) -> ScenarioRun | str:
        """Returns the run of a stream's scenario, or an error message."""
        run = self._runs.get(stream_id)
        if run is not None and not run.finished:
            return run
        names = ", ".join(self._runs) if run is None else "another one: this one has ended"
        return f"stream_id: got '{stream_id}', expected the name of a scenario: {names}"


async def _play(context: Any, call: PredictCall | PredictBlocksRpc, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Passes on what the client sends, until the script ends the call."""

    async def read() -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await take(message)
        except CallEnded:
            pass  # the client has gone
        finally:
            call.client_done()

    reading = asyncio.create_task(read())
    try:
        await call.ended.wait()
    finally:
        reading.cancel()
        await asyncio.wait([reading])
    if call.status is not None:
        await context.abort_with_status(call.status)


@contextlib.asynccontextmanager
async def serve(runs: Mapping[str, ScenarioRun], address: str) -> AsyncIterator[str]:
    """Serves scenario runs. Yields the address. Raises RuntimeError when the address is taken."""
    service = ScriptedService(runs)
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
