"""Requests about models, their versions, and the streams that a server keeps."""

from collections.abc import AsyncIterator, Mapping

from tidegate.client import arguments
from tidegate.client.connection import Connection
from tidegate.client.types import (
    STATES,
    DefaultChange,
    Model,
    ModelChange,
    StreamInfo,
    Version,
    decode_change,
    decode_model,
    decode_stream_info,
)
from tidegate.v1 import tidegate_pb2 as pb

# The calls that change which models are served.
MODEL_CALLS: Mapping[str, tuple[str, type[pb.LoadModelRequest | pb.UnloadModelRequest | pb.ReloadModelsRequest]]] = {
    "load": ("LoadModel", pb.LoadModelRequest),
    "unload": ("UnloadModel", pb.UnloadModelRequest),
    "reload": ("ReloadModels", pb.ReloadModelsRequest),
}


class AdminCalls:
    """The requests of a client that are about models, their versions, and streams."""

    _connection: Connection

    async def models(self) -> list[Model]:
        """The served models, newest version of each name first."""
        answer = await self._connection.call_unary("ListModels", pb.ListModelsRequest())
        return [decode_model(model) for model in answer.models]

    async def describe(self, model: str = "", version: str = "") -> tuple[Model, str]:
        """One model and its card as JSON, empty when it has none. Empty arguments: the only model, its newest version.

        Raises:
            ModelNotFound: the model is not served.

        """
        request = pb.DescribeModelRequest(
            name=arguments.text("model", model), version=arguments.text("version", version)
        )
        answer = await self._connection.call_unary("DescribeModel", request)
        return decode_model(answer.model), answer.card_json

    async def change_models(self, action: str, model: str = "", version: str = "") -> list[ModelChange]:
        """Has all workers "load" or "unload" versions of a model, or "reload": load what is new and unload what is gone.

        Without a version, all of them. Returns what became of each. Raises ModelNotFound when there is no such version.
        """
        call, request_type = arguments.choice("action", action, MODEL_CALLS)
        request = request_type()
        if not isinstance(request, pb.ReloadModelsRequest):
            request.name = arguments.text("model", model, minimum=1)
            request.version = arguments.text("version", version)
        return [decode_change(change) for change in (await self._connection.call_unary(call, request)).changes]

    async def versions(self, model: str = "") -> list[Version]:
        """The versions of a model, or of all, newest first, with the streams on each.

        Raises:
            ModelNotFound: the model is not served.

        """
        request = pb.ListVersionsRequest(name=arguments.text("model", model))
        answer = await self._connection.call_unary("ListVersions", request)
        return [
            Version(**{name: getattr(version, name) for name in Version.__dataclass_fields__})
            for version in answer.versions
        ]

    async def promote(self, model: str, version: str) -> DefaultChange:
        """Makes a version the default of its model. An empty version: from now on the newest is the default.

        Streams on other versions move there if the policy of the model says so.

        Raises:
            ModelNotFound: the version is not served.
            ClientError: the server cannot write its models folder.

        """
        request = pb.PromoteModelRequest(
            name=arguments.text("model", model), version=arguments.text("version", version)
        )
        answer = await self._connection.call_unary("PromoteModel", request)
        return DefaultChange(answer.version, answer.previous_version)

    async def rollback(self, model: str) -> DefaultChange:
        """Undoes the last promotion: its predecessor is the default again; without one, the version before the default.

        Raises as `promote`.
        """
        request = pb.RollbackModelRequest(name=arguments.text("model", model))
        answer = await self._connection.call_unary("RollbackModel", request)
        return DefaultChange(answer.version, answer.previous_version)

    async def streams(
        self, prefix: str = "", state: str = "", *, model: str = "", version: str = "", page_size: int = 1000
    ) -> AsyncIterator[StreamInfo]:
        """The streams whose ids begin with `prefix`, in the order of their ids; see `streams_page`.

        They are listed page by page; each is as it was when its page was made. Raises InvalidArgument as `streams_page` does.
        """
        token = ""
        while True:
            page, token = await self.streams_page(prefix, state, page_size, token, model=model, version=version)
            for info in page:
                yield info
            if not token:
                return

    async def streams_page(
        self, prefix: str, state: str, page_size: int, token: str, *, model: str = "", version: str = ""
    ) -> tuple[list[StreamInfo], str]:
        """One page of `streams`, which may be empty, and the token of the next page, empty when there is none.

        Args:
            prefix: how the ids begin; empty for all.
            state: "live", "parked" or "expired"; empty for all.
            page_size: the largest number of streams. The server gives at most 10,000; 0 means 100.
            token: the token of this page; empty for the first.
            model: only streams of this model; empty for all.
            version: only streams of this version; empty for all.

        Raises:
            InvalidArgument: an argument is invalid.

        """
        request = pb.ListStreamsRequest(
            prefix=arguments.name("prefix", prefix),
            state=arguments.choice("state", state, {"": pb.Stream.STATE_UNSPECIFIED, **STATES}),
            page_size=arguments.integer("page_size", page_size, 0, arguments.UINT32_MAX),
            page_token=arguments.text("token", token),
            model=arguments.text("model", model),
            version=arguments.text("version", version),
        )
        answer = await self._connection.call_unary("ListStreams", request)
        streams = [
            decode_stream_info(stream)
            for stream in answer.streams
            if model in ("", stream.model) and version in ("", stream.version)  # an older server lists all
        ]
        return streams, answer.next_page_token

    async def describe_stream(self, stream_id: str) -> StreamInfo:
        """One stream. Raises StreamNotFound."""
        request = pb.DescribeStreamRequest(stream_id=arguments.name("stream_id", stream_id, minimum=1))
        return decode_stream_info((await self._connection.call_unary("DescribeStream", request)).stream)

    async def delete_stream(self, stream_id: str) -> StreamInfo:
        """Deletes a stream and its state, and returns it as it was. A client that has it open loses it. Raises StreamNotFound."""
        request = pb.DeleteStreamRequest(stream_id=arguments.name("stream_id", stream_id, minimum=1))
        return decode_stream_info((await self._connection.call_unary("DeleteStream", request)).stream)

    async def export_stream(self, stream_id: str) -> bytes:
        """A stream's state at its last applied timestep, for `import_stream`. The stream continues. Raises StreamNotFound."""
        request = pb.ExportStreamRequest(stream_id=arguments.name("stream_id", stream_id, minimum=1))
        checkpoint: bytes = (await self._connection.call_unary("ExportStream", request)).checkpoint
        return checkpoint

    async def import_stream(self, checkpoint: bytes, stream_id: str = "") -> StreamInfo:
        """Makes a stream from an exported state, under a new id or its old one.

        Raises:
            StreamExists: the id is taken.
            ModelNotFound, ModelMismatch: its model is not served.
            ClientError: the state is damaged, or has a newer format.

        """
        if not isinstance(checkpoint, bytes) or not checkpoint:
            raise arguments.invalid("checkpoint", checkpoint, "the bytes that export_stream gave")
        request = pb.ImportStreamRequest(checkpoint=checkpoint, stream_id=arguments.name("stream_id", stream_id))
        return decode_stream_info((await self._connection.call_unary("ImportStream", request)).stream)

    async def fork_stream(self, source: str, new_id: str = "") -> StreamInfo:
        """Makes a stream that starts with another one's state. Without an id the server issues one.

        Raises:
            StreamNotFound: the source does not exist.
            StreamExists: the id is taken.

        """
        request = pb.ForkStreamRequest(
            stream_id=arguments.name("source", source, minimum=1),
            new_stream_id=arguments.name("new_id", new_id),
        )
        return decode_stream_info((await self._connection.call_unary("ForkStream", request)).stream)
