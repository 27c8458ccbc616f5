"""The unary calls that describe models and administer streams."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, Protocol, TypeVar

from tidegate.core.access import Caller
from tidegate.core.errors import TidegateError
from tidegate.core.model_change import ModelAction, ModelChange, ModelOutcome
from tidegate.core.spec import Key
from tidegate.core.stream_id import check_stream_id
from tidegate.rpc import wire
from tidegate.rpc.backend import Access, AdminBackend, VersionBackend, VersionInfo
from tidegate.rpc.identify import identify
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


class HasAccess(Protocol):
    """A servicer that knows who makes a call."""

    access: Access


Self = TypeVar("Self", bound=HasAccess)
Request = TypeVar("Request")
Response = TypeVar("Response")
# grpc ships no types; this stands for grpc.aio.ServicerContext.
Context = Any


def unary(
    method: Callable[[Self, Request, Caller], Awaitable[Response]],
) -> Callable[[Self, Request, Context], Coroutine[Any, Any, Response]]:
    """Turns a method that raises TidegateError into a gRPC method. The method gets the caller, who has a valid token."""

    @wraps(method)
    async def answer(self: Self, request: Request, context: Context) -> Response:
        try:
            return await method(self, request, identify(self.access, context))
        except TidegateError as error:
            await abort(context, error)

    return answer


class AdminServicer(pb_grpc.TidegateServiceServicer):
    """Serves the administrative calls."""

    def __init__(self, admin: AdminBackend, access: Access, versions: VersionBackend) -> None:
        self._admin = admin
        self._versions = versions
        self.access = access

    @unary
    async def ListModels(self, _: pb.ListModelsRequest, __: Caller) -> pb.ListModelsResponse:  # noqa: N802 - named by the protocol
        """Lists the models."""
        models = [
            wire.encode_model(model.spec, batch_invariant=model.batch_invariant) for model in self._admin.models()
        ]
        return pb.ListModelsResponse(models=models)

    @unary
    async def DescribeModel(self, request: pb.DescribeModelRequest, _: Caller) -> pb.DescribeModelResponse:  # noqa: N802
        """Describes one model."""
        model = await self._admin.model(request.name, request.version)
        described = wire.encode_model(model.spec, batch_invariant=model.batch_invariant)
        return pb.DescribeModelResponse(model=described, card_json=model.card_json)

    @unary
    async def LoadModel(self, request: pb.LoadModelRequest, caller: Caller) -> pb.LoadModelResponse:  # noqa: N802
        """Loads versions."""
        return pb.LoadModelResponse(changes=await self._change(caller, "load", request.name, request.version))

    @unary
    async def UnloadModel(self, request: pb.UnloadModelRequest, caller: Caller) -> pb.UnloadModelResponse:  # noqa: N802
        """Unloads versions."""
        return pb.UnloadModelResponse(changes=await self._change(caller, "unload", request.name, request.version))

    @unary
    async def ReloadModels(self, _: pb.ReloadModelsRequest, caller: Caller) -> pb.ReloadModelsResponse:  # noqa: N802
        """Loads what is new and unloads what is gone."""
        return pb.ReloadModelsResponse(changes=await self._change(caller, "reload"))

    async def _change(
        self, caller: Caller, action: ModelAction, name: str = "", version: str = ""
    ) -> list[pb.ModelChange]:
        self.access.require_admin(caller)
        return [_encode_change(each) for each in await self._admin.change_models(action, name, version)]

    @unary
    async def ListVersions(self, request: pb.ListVersionsRequest, caller: Caller) -> pb.ListVersionsResponse:  # noqa: N802
        """Lists versions, with the streams on each."""
        versions = await self._versions.versions(request.name, caller.tenant.name)
        return pb.ListVersionsResponse(versions=map(_encode_version, versions))

    @unary
    async def PromoteModel(self, request: pb.PromoteModelRequest, caller: Caller) -> pb.PromoteModelResponse:  # noqa: N802
        """Makes a version the default."""
        self.access.require_admin(caller)
        changed = await self._versions.promote(request.name, request.version)
        return pb.PromoteModelResponse(version=changed.version, previous_version=changed.previous_version)

    @unary
    async def RollbackModel(self, request: pb.RollbackModelRequest, caller: Caller) -> pb.RollbackModelResponse:  # noqa: N802
        """Makes the default before the default again."""
        self.access.require_admin(caller)
        changed = await self._versions.rollback(request.name)
        return pb.RollbackModelResponse(version=changed.version, previous_version=changed.previous_version)

    @unary
    async def ListStreams(self, request: pb.ListStreamsRequest, caller: Caller) -> pb.ListStreamsResponse:  # noqa: N802
        """Lists streams, page by page. The token of a page is the last id that was looked at for the page before."""
        size = min(request.page_size or PAGE_SIZE, PAGE_SIZE_MAX)
        phase = wire.decode_phase(request.state)
        streams, token = await self._admin.list(
            caller.tenant.name,
            request.prefix,
            request.page_token,
            size,
            phase,
            model=request.model,
            version=request.version,
        )
        page = pb.ListStreamsResponse(next_page_token=token)
        time_slice = TimeSlice()
        for info in streams:
            page.streams.append(wire.encode_stream(info))
            await time_slice.maybe_yield()
        return page

    @unary
    async def DescribeStream(self, request: pb.DescribeStreamRequest, caller: Caller) -> pb.DescribeStreamResponse:  # noqa: N802
        """Describes one stream."""
        return pb.DescribeStreamResponse(
            stream=wire.encode_stream(await self._admin.describe(_key(caller, request.stream_id)))
        )

    @unary
    async def DeleteStream(self, request: pb.DeleteStreamRequest, caller: Caller) -> pb.DeleteStreamResponse:  # noqa: N802
        """Deletes a stream."""
        return pb.DeleteStreamResponse(
            stream=wire.encode_stream(await self._admin.delete(_key(caller, request.stream_id)))
        )

    @unary
    async def ExportStream(self, request: pb.ExportStreamRequest, caller: Caller) -> pb.ExportStreamResponse:  # noqa: N802
        """Returns a stream's state."""
        record, info = await self._admin.export(_key(caller, request.stream_id))
        return pb.ExportStreamResponse(checkpoint=record, stream=wire.encode_stream(info))

    @unary
    async def ImportStream(self, request: pb.ImportStreamRequest, caller: Caller) -> pb.ImportStreamResponse:  # noqa: N802
        """Creates a stream from an exported state."""
        if request.stream_id:
            check_stream_id(request.stream_id)
        info = await self._admin.import_(caller.tenant.name, request.checkpoint, request.stream_id)
        return pb.ImportStreamResponse(stream=wire.encode_stream(info))

    @unary
    async def ForkStream(self, request: pb.ForkStreamRequest, caller: Caller) -> pb.ForkStreamResponse:  # noqa: N802
        """Copies a stream."""
        if request.new_stream_id:
            check_stream_id(request.new_stream_id, "new_stream_id")
        info = await self._admin.fork(_key(caller, request.stream_id), request.new_stream_id)
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
        on_demand=info.on_demand,
    )


def _key(caller: Caller, stream_id: str) -> Key:
    check_stream_id(stream_id)
    return Key(caller.tenant.name, stream_id)
