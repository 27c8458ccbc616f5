"""A connection to a server: opens streams, and runs single timesteps."""

import numbers
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, Literal, Self, TypeVar
from uuid import uuid4

import grpc

from tidegate.client import arguments
from tidegate.client.admin import AdminCalls
from tidegate.client.block import Block
from tidegate.client.connection import Connection, make_channel
from tidegate.client.errors import InvalidArgument, WrongOrder
from tidegate.client.inputs import Values
from tidegate.client.retry import Backoff, Limits
from tidegate.client.session import Session
from tidegate.client.stream import Stream
from tidegate.client.tensors import BeginInputs, StreamInputs, stream_inputs
from tidegate.client.types import Prediction
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

# A restart of a server takes seconds, a failover of its store some tens of seconds.
RECONNECT_S = 60.0
# About a megabyte with 32 bytes a timestep and 100 of overhead; some minutes of a fast sensor.
BUFFER_MAX = 8192
# The default limit of a server.
STREAMS_MAX = 1_000_000
# A server has some tens of workers at most, and a connection to each is enough.
CALLS_MAX = 1024


class Client(AdminCalls):
    """A connection to a server. It belongs to the process that made it; see `WrongProcess`.

    Args:
        address: HOST:PORT, or unix:PATH.
        timeout_s: the deadline for opening a stream and for a unary call, in seconds.
        reconnect_s: for how many seconds a stream is reopened after a disconnect, and a timestep is sent again that the server had no
            room for; None for ever, 0 not at all.
        buffer_max: how many timesteps that the server has not stored a stream keeps; then `step` waits.
        backoff: the delays between tries.
        calls: the number of connections, with a call on each, over which streams are spread; for servers with several workers.
        credentials: for TLS, such as `grpc.ssl_channel_credentials()`; None for no TLS.
        metadata: (key, value) pairs sent with every call, such as ("authorization", "Bearer ..."). Without TLS, anyone on the network
            can read them.
        channel: a channel to use instead of a new one, made on the same event loop; `address` is then only a label. `close` leaves it
            open. Its own options decide how it reconnects.

    Raises:
        InvalidArgument: an argument is invalid; the message names it.

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
        tls = arguments.instance("credentials", credentials, grpc.ChannelCredentials, expected)
        if given is not None and tls is not None:
            raise arguments.invalid("credentials", credentials, "None beside a channel: a channel is made with its own")
        headers = arguments.metadata("metadata", metadata)
        self._connections = [
            Connection(given or make_channel(self.address, tls), self._limits.timeout_s, headers, owned=given is None)
            for _ in range(arguments.integer("calls", calls, 1, CALLS_MAX))
        ]
        self._connection = self._connections[0]
        # Answers of SYNC streams wait for the store and would delay other answers on the call, so these streams have a call of their own.
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
        """Ends the connection. The server parks the streams that are still open.

        Does nothing in a forked process, as the connection belongs to its parent.
        """
        if self._connection.forked:
            return
        for view in list(self._views):
            view.detach()
        for session in [*self._sessions[False], *self._sessions[True]]:
            await session.stop()
        for connection in self._connections:
            await connection.close()

    async def predict_one(
        self,
        stream_id: str,
        values: Values,
        *,
        step: int | None,
        model: str = "",
        version: str = "",
        sync: bool = True,
        inputs: BeginInputs | None = None,
    ) -> Prediction:
        """Runs one timestep of one stream in a unary call, for programs that keep no call open.

        With a number it is applied exactly once: after a disconnect, and when the server has no room, it is sent again for up to
        `reconnect_s`. A restarted program may send the same number and values again, and gets the same answer. Without a number it is sent
        once; when that fails, it may have been applied or not. A client that has the stream open loses it, as to any other client.

        Args:
            stream_id: the stream's name; step 1 begins it.
            values: as in `Stream.step`. Named values and other inputs than one vector of float32 need one or two more calls, for the model.
            step: the timestep's number, from 1; None or 0: the server numbers it.
            model: the model; empty for the stream's own, or the only one served.
            version: its version; empty for the stream's own, or the newest.
            sync: answer when the timestep is stored; False: at once, and a crash of the server may undo it.
            inputs: as in `open`; needed with the first timestep of a stream.

        Raises:
            InvalidArgument: an argument is invalid.
            TimestepRefused: it was not applied.
            AnswerLost: it was applied, but its prediction is lost.
            StreamRefused, StreamLost: the stream cannot be used like this, or the server was not reached.

        """
        request = pb.PredictOneRequest(
            stream_id=arguments.name("stream_id", stream_id, minimum=1),
            model=arguments.text("model", model),
            version=arguments.text("version", version),
            step=0 if step is None else arguments.integer("step", step, 0, STEP_MAX),
            durability=_durability(sync),
        )
        return await self._unary.predict(request, values, arguments.mapping("inputs", inputs))

    def open(
        self,
        stream_id: str = "",
        *,
        model: str = "",
        version: str = "",
        existence: Existence = "any",
        sync: bool = False,
        owner: str = "",
        inputs: BeginInputs | None = None,
    ) -> "Opening[Stream]":
        """Opens a stream, with `async with`: begins or resumes it. It is closed at the end of the block.

        When the block ends with an exception or a cancellation, nothing is awaited: the server parks the stream, which can be opened
        again.

        Args:
            stream_id: its name; empty: the server issues one.
            model: the model; empty for the stream's own, or the only one served.
            version: its version, on which the stream then stays. Empty: its own, or the default one; it may move then, see `Stream.moved`.
            existence: "must_exist" or "must_be_new" to refuse the other case.
            sync: predictions come only when their timesteps are stored.
            owner: the token by which the server recognizes this client when the stream is opened again, at most 256 bytes of UTF-8. Empty:
                a random one, the same for all streams of this client. Give a fixed one so that a restarted program counts as the same client.
            inputs: the arrays that the model takes once for each stream, by name, such as the vector of a speaker. They are stored with the
                stream: give the same again, or none, to resume it.

        Raises:
            InvalidArgument: an argument is invalid.
            StreamRefused: the stream cannot be opened like this.
            StreamLost: the server was not reached within `timeout_s`; at the end of the block, see `Stream.close`.

        """
        name = arguments.name("stream_id", stream_id)
        options = self._open_request(model, version, existence, sync, owner)
        given = arguments.mapping("inputs", inputs)

        async def begin() -> Stream:
            converted = await self._stream_inputs(given, name, options, None)
            return Stream(self._session(name, sync=sync), name, options, converted)

        return Opening(self._views, begin)

    def block(
        self,
        streams: Sequence[str] | int,
        *,
        model: str = "",
        version: str = "",
        existence: Existence = "any",
        sync: bool = False,
        owner: str = "",
        inputs: BeginInputs | None = None,
    ) -> "Opening[Block]":
        """Opens many streams of one model on one call, with `async with`; for gateways. They are closed at the end of the block.

        A stream that cannot be opened is in `Block.refused`; the others are open. When the block ends with an exception or a cancellation,
        nothing is awaited: the server parks the streams, which can be opened again.

        Args:
            streams: their names; or their number, and the server issues the names.
            model: the model; empty for that of the first stream, or the only one served.
            version: its version; empty as in `open`.
            existence: "must_exist" or "must_be_new" to refuse the other case.
            sync: predictions come only when their timesteps are stored.
            owner: the token of all streams; see `open`.
            inputs: as in `open`: arrays (streams, *shape), or one value for all streams.

        Raises:
            InvalidArgument: an argument is invalid: no stream is named, or one is named twice.
            StreamRefused: no stream could be opened; the error of the first.
            StreamLost: the server was not reached within `timeout_s`; at the end of the block, see `Block.close`.

        """
        stream_ids = _stream_ids(streams)
        options = self._open_request(model, version, existence, sync, owner)
        given = arguments.mapping("inputs", inputs)

        async def begin() -> Block:
            converted = await self._stream_inputs(given, stream_ids[0], options, len(stream_ids))
            return Block(self._session("", sync=sync), stream_ids, options, converted)

        return Opening(self._views, begin)

    async def _stream_inputs(
        self, given: BeginInputs | None, stream_id: str, options: pb.OpenStreams, streams: int | None
    ) -> list[StreamInputs]:
        """Converts the inputs that streams begin with. Asks the server for their model, which the first stream names."""
        if given is None:
            return []
        model = await self._unary.stream_model(stream_id, options.model, options.version)
        return stream_inputs(given, model, streams)

    def _open_request(self, model: str, version: str, existence: Existence, sync: bool, owner: str) -> pb.OpenStreams:
        """The options of an open."""
        return pb.OpenStreams(
            model=arguments.text("model", model),
            version=arguments.text("version", version),
            existence=arguments.choice("existence", existence, EXISTENCE),
            durability=_durability(sync),
            owner=arguments.name("owner", owner) or self._owner,
            kept_max=self._limits.buffer_max,
            accept_move=not version,
        )

    def _session(self, stream_id: str, *, sync: bool) -> Session:
        """The session for a new stream: the one that has its name open, else the one with the fewest streams."""
        self._connection.check_open()
        sessions = self._sessions[sync]
        return next(
            (session for session in sessions if session.has_open(stream_id)),
            min(sessions, key=lambda session: session.window.usable_count),
        )


def _stream_ids(streams: Sequence[str] | int) -> list[str]:
    """The names of many streams; empty ones when only a number is given."""
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
    """The context manager that `Client.open` and `Client.block` return. Entering it gives the stream or the block.

    It is not a generator: an abandoned generator would close its stream at garbage collection.
    """

    def __init__(self, views: "set[Stream | Block]", begin: Callable[[], Awaitable[ViewT]]) -> None:
        self._views = views
        self._begin = begin
        self._view: ViewT | None = None
        self._entered = False

    async def __aenter__(self) -> ViewT:
        if self._entered:
            raise WrongOrder("open: was entered before; open it again to continue")
        self._entered = True
        view = self._view = await self._begin()
        self._views.add(view)
        try:
            await view.start()
        except BaseException:
            self._detach(view)
            raise
        return view

    async def __aexit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        assert self._view is not None
        try:
            if error is None:
                await self._view.close()
        finally:
            self._detach(self._view)

    def _detach(self, view: ViewT) -> None:
        self._views.discard(view)
        view.detach()
