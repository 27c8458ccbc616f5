"""The unary calls that describe models and administer streams."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, TypeVar

from tidegate.core.errors import TidegateError
from tidegate.core.model_change import ModelChange, ModelOutcome
from tidegate.core.spec import Key
from tidegate.core.stream_id import check_stream_id
from tidegate.rpc import wire
from tidegate.rpc.backend import DEFAULT_TENANT, AdminBackend, VersionBackend, VersionInfo
from tidegate.rpc.status import abort
from tidegate.rpc.time_slice import TimeSlice
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

PAGE_SIZE = 100
# A page of ten thousand streams is about a megabyte, a quarter of what gRPC clients accept by default.
PAGE_SIZE_MAX = 10_000

OUTCOMES: Mapping[ModelOutcome, pb.ModelChange.Outcome] = {
    "loaded": pb.ModelChange.OUTCOME_LOADED,
    "refused": pb.ModelChange.OUTCOME_REFUSED,
    "unloading": pb.ModelChange.OUTCOME_UNLOADING,
}

Self = TypeVar("Self")
Request = TypeVar("Request")
Response = TypeVar("Response")
# grpc ships no types; this stands for grpc.aio.ServicerContext.
Context = Any


def unary(
    method: Callable[[Self, Request], Awaitable[Response]],
) -> Callable[[Self, Request, Context], Coroutine[Any, Any, Response]]:
    """Turns a method that raises TidegateError into a gRPC method."""

    @wraps(method)
    async def answer(self: Self, request: Request, context: Context) -> Response:
        try:
            return await method(self, request)
        except TidegateError as error:
            await abort(context, error)

    return answer


class AdminServicer(pb_grpc.TidegateServiceServicer):
    """Serves the administrative calls."""

    def __init__(self, admin: AdminBackend, versions: VersionBackend) -> None:
        self._admin = admin
        self._versions = versions

    @unary
    async def ListModels(self, _: pb.ListModelsRequest) -> pb.ListModelsResponse:  # noqa: N802 - named by the protocol
        """Lists the models."""
        models = [
            wire.encode_model(model.spec, batch_invariant=model.batch_invariant) for model in self._admin.models()
        ]
        return pb.ListModelsResponse(models=models)

    @unary
    async def DescribeModel(self, request: pb.DescribeModelRequest) -> pb.DescribeModelResponse:  # noqa: N802
        """Describes one model."""
        model = self._admin.model(request.name, request.version)
        described = wire.encode_model(model.spec, batch_invariant=model.batch_invariant)
        return pb.DescribeModelResponse(model=described, card_json=model.card_json)

    @unary
    async def LoadModel(self, request: pb.LoadModelRequest) -> pb.LoadModelResponse:  # noqa: N802
        """Loads versions."""
        changes = await self._admin.change_models("load", request.name, request.version)
        return pb.LoadModelResponse(changes=map(_encode_change, changes))

    @unary
    async def UnloadModel(self, request: pb.UnloadModelRequest) -> pb.UnloadModelResponse:  # noqa: N802
        """Unloads versions."""
        changes = await self._admin.change_models("unload", request.name, request.version)
        return pb.UnloadModelResponse(changes=map(_encode_change, changes))

    @unary
    async def ReloadModels(self, _: pb.ReloadModelsRequest) -> pb.ReloadModelsResponse:  # noqa: N802
        """Loads what is new and unloads what is gone."""
        changes = await self._admin.change_models("reload", "", "")
        return pb.ReloadModelsResponse(changes=map(_encode_change, changes))

    @unary
    async def ListVersions(self, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:  # noqa: N802
        """Lists versions, with the streams on each."""
        versions = await self._versions.versions(request.name)
        return pb.ListVersionsResponse(versions=map(_encode_version, versions))

    @unary
    async def PromoteModel(self, request: pb.PromoteModelRequest) -> pb.PromoteModelResponse:  # noqa: N802
        """Makes a version the default."""
        changed = await self._versions.promote(request.name, request.version)
        return pb.PromoteModelResponse(version=changed.version, previous_version=changed.previous_version)

    @unary
    async def RollbackModel(self, request: pb.RollbackModelRequest) -> pb.RollbackModelResponse:  # noqa: N802
        """Makes the default before the default again."""
        changed = await self._versions.rollback(request.name)
        return pb.RollbackModelResponse(version=changed.version, previous_version=changed.previous_version)

    @unary
    async def ListStreams(self, request: pb.ListStreamsRequest) -> pb.ListStreamsResponse:  # noqa: N802
        """Lists streams, page by page. The token of a page is the last id of the page before."""
        size = min(request.page_size or PAGE_SIZE, PAGE_SIZE_MAX)
        phase = wire.decode_phase(request.state)
        streams = await self._admin.list(DEFAULT_TENANT, request.prefix, request.page_token, size, phase)
        page = pb.ListStreamsResponse(next_page_token=streams[-1].stream_id if len(streams) == size else "")
        time_slice = TimeSlice()
        for info in streams:
            page.streams.append(wire.encode_stream(info))
            await time_slice.maybe_yield()
        return page

    @unary
    async def DescribeStream(self, request: pb.DescribeStreamRequest) -> pb.DescribeStreamResponse:  # noqa: N802
        """Describes one stream."""
        return pb.DescribeStreamResponse(stream=wire.encode_stream(await self._admin.describe(_key(request.stream_id))))

    @unary
    async def DeleteStream(self, request: pb.DeleteStreamRequest) -> pb.DeleteStreamResponse:  # noqa: N802
        """Deletes a stream."""
        return pb.DeleteStreamResponse(stream=wire.encode_stream(await self._admin.delete(_key(request.stream_id))))

    @unary
    async def ExportStream(self, request: pb.ExportStreamRequest) -> pb.ExportStreamResponse:  # noqa: N802
        """Returns a stream's state."""
        record, info = await self._admin.export(_key(request.stream_id))
        return pb.ExportStreamResponse(checkpoint=record, stream=wire.encode_stream(info))

    @unary
    async def ImportStream(self, request: pb.ImportStreamRequest) -> pb.ImportStreamResponse:  # noqa: N802
        """Creates a stream from an exported state."""
        if request.stream_id:
            check_stream_id(request.stream_id)
        info = await self._admin.import_(DEFAULT_TENANT, request.checkpoint, request.stream_id)
        return pb.ImportStreamResponse(stream=wire.encode_stream(info))

    @unary
    async def ForkStream(self, request: pb.ForkStreamRequest) -> pb.ForkStreamResponse:  # noqa: N802
        """Copies a stream."""
        if request.new_stream_id:
            check_stream_id(request.new_stream_id, "new_stream_id")
        info = await self._admin.fork(_key(request.stream_id), request.new_stream_id)
        return pb.ForkStreamResponse(stream=wire.encode_stream(info))


def _encode_change(change: ModelChange) -> pb.ModelChange:
    return pb.ModelChange(
        name=change.name, version=change.version, outcome=OUTCOMES[change.outcome], reason=change.reason
    )


def _encode_version(info: VersionInfo) -> pb.Version:
    return pb.Version(
        model=info.model.name,
        version=info.model.version,
        fingerprint=info.model.fingerprint,
        is_default=info.is_default,
        is_promoted=info.is_promoted,
        policy=info.policy,
        rewarm_steps=info.rewarm_steps,
        shadow_share=info.shadow_share,
        live_streams=info.live_streams,
        parked_streams=info.parked_streams,
    )


def _key(stream_id: str) -> Key:
    check_stream_id(stream_id)
    return Key(DEFAULT_TENANT, stream_id)
