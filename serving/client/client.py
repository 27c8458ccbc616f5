"""A connection to a server: opens streams and sends unary requests."""

import numbers
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Generic, Literal, Self, TypeVar
from uuid import uuid4

import grpc

from tidegate.client import arguments
from tidegate.client.block import Block
from tidegate.client.connection import Connection, make_channel
from tidegate.client.errors import InvalidArgument, WrongOrder
from tidegate.client.inputs import Values
from tidegate.client.retry import Backoff, Limits
from tidegate.client.session import Session
from tidegate.client.stream import Stream
from tidegate.client.types import STATES, Model, Prediction, StreamInfo, decode_model, decode_stream_info
from tidegate.client.unary import UnaryPredictor
from tidegate.core.spec import STEP_MAX
from tidegate.v1 import tidegate_pb2 as pb

ViewT = TypeVar("ViewT", bound=Stream | Block)

Existence = Literal["any", "must_exist", "must_be_new"]

EXISTENCE: Mapping[str, pb.Existence] = {
    "any": pb.EXISTENCE_UNSPECIFIED,
    "must_exist": pb.EXISTENCE_MUST_EXIST,
    "must_be_new": pb.EXISTENCE_MUST_BE_NEW,
}

# A restart of a server takes seconds, a failover of its store some tens.
RECONNECT_S = 60.0
# At 32 bytes a timestep and a hundred of overhead, about a megabyte; some minutes of a fast sensor.
BUFFER_MAX = 8192
# As many as a server keeps unless it is told otherwise.
STREAMS_MAX = 1_000_000
# A server has some tens of workers at most, each of which has a connection of its own.
CALLS_MAX = 1024


class Client:
    """A connection to a server; of the process that made it, see `WrongProcess`.

    Args:
        address: HOST:PORT, or unix:PATH.
        timeout_s: the longest time to wait for a stream to be opened and for a question to be answered.
        reconnect_s: how long a stream is tried to be opened again after a break, and a timestep to be sent again that
            the server had no room for; None for ever, 0 not at all.
        buffer_max: how many timesteps a stream keeps that the server has not stored; then `step` waits.
        backoff: the waits between tries.
        calls: over so many connections streams are spread, a call on each; for servers with several workers.
        credentials: TLS, such as `grpc.ssl_channel_credentials()`; None for a connection without it.
        metadata: (key, value) pairs that go with every call, such as ("authorization", "Bearer ..."). Without TLS whoever
            listens can read them.
        channel: a channel to use instead of one of the client's own, made on the same event loop; `address` is then only a name.
            `close` leaves it open. What it does when a server is gone for long is up to its options.

    Raises:
        InvalidArgument: one of these cannot be; the message says which.

    After `close` every call raises WrongOrder.
    """

    def __init__(  # noqa: PLR0913 - what a connection needs to know, each by its name
        self,
        address: str,
        *,
        timeout_s: float = 10.0,
        reconnect_s: float | None = RECONNECT_S,
        buffer_max: int = BUFFER_MAX,
        backoff: Backoff | None = None,
        calls: int = 1,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] | None = None,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self.address = arguments.address("address", address)
        self._limits = Limits(
            arguments.seconds("timeout_s", timeout_s),
            float("inf") if reconnect_s is None else arguments.seconds("reconnect_s", reconnect_s, zero=True),
            arguments.integer("buffer_max", buffer_max, 1, arguments.UINT32_MAX),
            arguments.instance("backoff", backoff, Backoff, "a Backoff") or Backoff(),
        )
        self._views: set[Stream | Block] = set()
        given = arguments.instance("channel", channel, grpc.aio.Channel, "a grpc.aio.Channel, or None")
        expected = "what grpc.ssl_channel_credentials() gives, or None for a connection without TLS"
        trusted = arguments.instance("credentials", credentials, grpc.ChannelCredentials, expected)
        if given is not None and trusted is not None:
            raise arguments.invalid("credentials", credentials, "None beside a channel: a channel is made with its own")
        headers = arguments.metadata("metadata", metadata)
        self._connections = [
            Connection(
                given or make_channel(self.address, trusted), self._limits.timeout_s, headers, owned=given is None
            )
            for _ in range(arguments.integer("calls", calls, 1, CALLS_MAX))
        ]
        self._connection = self._connections[0]
        # A stream whose answers wait for the store holds up those behind it, so such streams share a call of their own.
        self._sessions = {
            sync: [Session(connection, self._limits) for connection in self._connections] for sync in (False, True)
        }
        self._owner = uuid4().hex
        self._unary = UnaryPredictor(self._connection, self._limits)
        self._entered = False

    async def __aenter__(self) -> Self:
        self._connection.check_open()
        if self._entered:
            raise WrongOrder("client: was entered before; use it as it is, or make another one")
        self._entered = True
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; streams that are still open are left as they are, and parked by the server.

        Does nothing in a process that was forked: the connection is that of the process that made it.
        """
        if self._connection.forked:
            return
        for view in list(self._views):
            view.detach()
        for session in [*self._sessions[False], *self._sessions[True]]:
            await session.stop()
        for connection in self._connections:
            await connection.close()

    async def models(self) -> list[Model]:
        """The models being served, newest version of each name first."""
        answer = await self._connection.call_unary("ListModels", pb.ListModelsRequest())
        return [decode_model(model) for model in answer.models]

    async def describe(self, model: str = "", version: str = "") -> tuple[Model, str]:
        """One model and its card as JSON, empty when it has none; empty names mean the only one and the newest.

        Raises:
            ModelNotFound: it is not served.

        """
        request = pb.DescribeModelRequest(
            name=arguments.text("model", model), version=arguments.text("version", version)
        )
        answer = await self._connection.call_unary("DescribeModel", request)
        return decode_model(answer.model), answer.card_json

    async def streams(self, prefix: str = "", state: str = "", *, page_size: int = 1000) -> AsyncIterator[StreamInfo]:
        """The streams whose ids begin with `prefix`, in the order of their ids; with `state`, those in it only.

        They are asked for page by page, and streams come and go meanwhile: each is told as it was when its page was made.
        Raises InvalidArgument as `streams_page` does.
        """
        token = ""
        while True:
            page, token = await self.streams_page(prefix, state, page_size, token)
            for info in page:
                yield info
            if not token:
                return

    async def streams_page(self, prefix: str, state: str, page_size: int, token: str) -> tuple[list[StreamInfo], str]:
        """One page of `streams`, and the token of the next, empty when there is none.

        Args:
            prefix: what ids begin with; empty for all.
            state: "live", "parked" or "expired"; empty for all.
            page_size: how many at most; the server gives 10,000 for more, 100 for 0.
            token: of this page; empty for the first.

        Raises:
            InvalidArgument: one of these cannot be.

        """
        number = arguments.choice("state", state, {"": pb.Stream.STATE_UNSPECIFIED, **STATES})
        request = pb.ListStreamsRequest(
            prefix=arguments.name("prefix", prefix),
            state=number,
            page_size=arguments.integer("page_size", page_size, 0, arguments.UINT32_MAX),
            page_token=arguments.text("token", token),
        )
        answer = await self._connection.call_unary("ListStreams", request)
        return [decode_stream_info(stream) for stream in answer.streams], answer.next_page_token

    async def describe_stream(self, stream_id: str) -> StreamInfo:
        """One stream. Raises StreamNotFound."""
        request = pb.DescribeStreamRequest(stream_id=arguments.name("stream_id", stream_id, minimum=1))
        answer = await self._connection.call_unary("DescribeStream", request)
        return decode_stream_info(answer.stream)

    async def delete_stream(self, stream_id: str) -> StreamInfo:
        """Deletes a stream and its state; gives it as it was. Whoever has it open loses it. Raises StreamNotFound."""
        request = pb.DeleteStreamRequest(stream_id=arguments.name("stream_id", stream_id, minimum=1))
        answer = await self._connection.call_unary("DeleteStream", request)
        return decode_stream_info(answer.stream)

    async def export_stream(self, stream_id: str) -> bytes:
        """A stream's state at its last applied timestep, for `import_stream`; the stream goes on. Raises StreamNotFound."""
        request = pb.ExportStreamRequest(stream_id=arguments.name("stream_id", stream_id, minimum=1))
        answer = await self._connection.call_unary("ExportStream", request)
        checkpoint: bytes = answer.checkpoint
        return checkpoint

    async def import_stream(self, checkpoint: bytes, stream_id: str = "") -> StreamInfo:
        """Makes a stream from an exported state, under a new id or the one that it had.

        Raises:
            StreamExists: the id is taken.
            ModelNotFound, ModelMismatch: its model is not served.
            ClientError: the state is damaged, or of a newer format.

        """
        if not isinstance(checkpoint, bytes) or not checkpoint:
            raise arguments.invalid("checkpoint", checkpoint, "the bytes that export_stream gave")
        request = pb.ImportStreamRequest(checkpoint=checkpoint, stream_id=arguments.name("stream_id", stream_id))
        return decode_stream_info((await self._connection.call_unary("ImportStream", request)).stream)

    async def fork_stream(self, source: str, new_id: str = "") -> StreamInfo:
        """Makes a stream that starts at another one's state; without an id the server issues one.

        Raises:
            StreamNotFound: there is no source.
            StreamExists: the id is taken.

        """
        request = pb.ForkStreamRequest(
            stream_id=arguments.name("source", source, minimum=1),
            new_stream_id=arguments.name("new_id", new_id),
        )
        answer = await self._connection.call_unary("ForkStream", request)
        return decode_stream_info(answer.stream)

    async def predict_one(
        self,
        stream_id: str,
        values: Values,
        *,
        step: int | None,
        model: str = "",
        version: str = "",
        sync: bool = True,
    ) -> Prediction:
        """Runs one timestep of one stream in one question, for programs that hold no call open.

        With a number it is applied exactly once: after a break, and when the server has no room, it is asked again for
        `reconnect_s`, and a program that was restarted may ask again with the same number and values and gets the same answer.
        Without a number it is asked once; when that fails, nobody knows whether it was applied. Whoever has the stream open loses it
        by this, as to another client.

        Args:
            stream_id: the stream's name; it is begun by step 1.
            values: (features,) as in `Stream.step`. A mapping costs a question or two more, for the names.
            step: the timestep's number, from 1; None or 0 for the next one, which the server numbers.
            model: the model to run it under; empty for the only one served, or the one it runs under.
            version: that model's version; empty for the newest, or the one it runs under.
            sync: the prediction comes when the timestep is stored; False: at once, and a crash of the server may take it back.

        Raises:
            InvalidArgument: one of these cannot be.
            TimestepRefused: it was not applied.
            AnswerLost: it was applied, but the prediction is gone.
            StreamRefused, StreamLost: the stream cannot be used so, or the server could not be reached.

        """
        request = pb.PredictOneRequest(
            stream_id=arguments.name("stream_id", stream_id, minimum=1),
            model=arguments.text("model", model),
            version=arguments.text("version", version),
            step=0 if step is None else arguments.integer("step", step, 0, STEP_MAX),
            durability=_durability(sync),
        )
        return await self._unary.predict(request, values)

    def open(
        self,
        stream_id: str = "",
        *,
        model: str = "",
        version: str = "",
        existence: Existence = "any",
        sync: bool = False,
        owner: str = "",
    ) -> "Opening[Stream]":
        """Opens a stream, with `async with`: begins it, or goes on where it was. On leaving, it is closed.

        Left by an exception or a cancellation, it is left at once: the server parks it, and it can be opened again.

        Args:
            stream_id: its name; empty for one that the server issues.
            model: the model to run it under; empty for the only one served, or the one it runs under.
            version: that model's version; empty for the newest, or the one it runs under.
            existence: "must_exist" or "must_be_new" to be refused otherwise.
            sync: predictions come only when their timesteps are stored.
            owner: what the server knows this client by when the stream is opened again, at most 256 bytes of UTF-8; empty for a
                random one, the same for all streams of this client. Give the same each time when a program that was restarted shall count
                as the one before it.

        Raises:
            InvalidArgument: one of these cannot be.
            StreamRefused: it may not be opened so.
            StreamLost: the server could not be reached within `timeout_s`, or, on leaving, see `Stream.close`.

        """
        name = arguments.name("stream_id", stream_id)
        ask = self._open_request(model, version, existence, sync, owner)
        return Opening(self._views, lambda: Stream(self._session(name, sync=sync), name, ask))

    def block(
        self,
        streams: Sequence[str] | int,
        *,
        model: str = "",
        version: str = "",
        existence: Existence = "any",
        sync: bool = False,
        owner: str = "",
    ) -> "Opening[Block]":
        """Opens many streams of one model on one call, with `async with`; for gateways. On leaving, they are closed.

        A stream that cannot be opened is in `Block.refused`; the others are open. Left by an exception or a cancellation,
        they are left at once: the server parks them, and they can be opened again.

        Args:
            streams: their names; or how many, with names that the server issues.
            model: the model to run them under; empty for the only one served, or the one that the first runs under.
            version: that model's version; empty for the newest, or the one that the first runs under.
            existence: "must_exist" or "must_be_new" to have streams refused otherwise.
            sync: predictions come only when their timesteps are stored.
            owner: what the server knows this client by, for all streams; see `open`.

        Raises:
            InvalidArgument: one of these cannot be: no stream is named, or one is named twice.
            StreamRefused: none could be opened; the reason of the first.
            StreamLost: the server could not be reached within `timeout_s`, or, on leaving, see `Block.close`.

        """
        stream_ids = _stream_ids(streams)
        ask = self._open_request(model, version, existence, sync, owner)
        return Opening(self._views, lambda: Block(self._session("", sync=sync), stream_ids, ask))

    def _open_request(self, model: str, version: str, existence: Existence, sync: bool, owner: str) -> pb.OpenStreams:
        """What is asked when streams are opened."""
        return pb.OpenStreams(
            model=arguments.text("model", model),
            version=arguments.text("version", version),
            existence=arguments.choice("existence", existence, EXISTENCE),
            durability=_durability(sync),
            owner=arguments.name("owner", owner) or self._owner,
            kept_max=self._limits.buffer_max,
        )

    def _session(self, stream_id: str, *, sync: bool) -> Session:
        """Where streams are opened: where one of that name is already, else where the fewest are."""
        self._connection.check_open()
        sessions = self._sessions[sync]
        return next(
            (session for session in sessions if session.has_open(stream_id)),
            min(sessions, key=lambda session: session.window.usable_count),
        )


def _stream_ids(streams: Sequence[str] | int) -> list[str]:
    """The names of many streams, empty ones where they are only counted."""
    expected = "a list of names, each once and one at least, or how many"
    if isinstance(streams, numbers.Integral) and not isinstance(streams, bool):
        return [""] * arguments.integer("streams", streams, 1, STREAMS_MAX)
    if isinstance(streams, str | bytes | Mapping) or not isinstance(streams, Iterable):
        raise arguments.invalid("streams", streams, expected)
    stream_ids = [arguments.name("streams", stream_id) for stream_id in streams]
    named = [stream_id for stream_id in stream_ids if stream_id]
    if not stream_ids or len(set(named)) < len(named):
        raise InvalidArgument(
            f"streams: got {len(stream_ids)} names, {len(set(named))} different, expected {expected}", field="streams"
        )
    return stream_ids


def _durability(sync: object) -> pb.Durability:
    return pb.DURABILITY_SYNC if arguments.boolean("sync", sync) else pb.DURABILITY_ASYNC


class Opening(Generic[ViewT]):
    """What `Client.open` and `Client.block` give: enter it to have the stream, or the block.

    Not a generator: one that is thrown away half-way would close its stream when the garbage is collected.
    """

    def __init__(self, views: "set[Stream | Block]", begin: Callable[[], ViewT]) -> None:
        self._all = views
        self._begin = begin
        self._views: ViewT | None = None

    async def __aenter__(self) -> ViewT:
        if self._views is not None:
            raise WrongOrder("open: was entered before; open it again to go on")
        view = self._views = self._begin()
        self._all.add(view)
        try:
            await view.start()
        except BaseException:
            self._detach(view)
            raise
        return view

    async def __aexit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        assert self._views is not None
        try:
            if error is None:
                await self._views.close()
        finally:
            self._detach(self._views)

    def _detach(self, view: ViewT) -> None:
        self._all.discard(view)
        view.detach()
