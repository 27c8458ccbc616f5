"""A client for programs without an event loop. The same as `tidegate.client`, one call after the other.

    with Client("localhost:50051") as client, client.open("pump-7") as stream:
        prediction = stream.step([21.5, 40.2, 3.0])

A gateway has many streams on one call:

    with Client("localhost:50051") as client, client.block(1000) as block:
        answer = block.step(x)  # (1000, features)

It runs the asynchronous client on a thread of its own, so that there is one implementation of the protocol. Any thread may call it;
errors are those of `tidegate.client`. A client belongs to the process that made it: in a forked process every call raises
WrongProcess, so make another client there.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from tidegate import client as asynchronous
from tidegate.client import (
    Backoff,
    DefaultChange,
    Existence,
    InvalidTimestep,
    Model,
    ModelChange,
    Prediction,
    Predictions,
    Some,
    StreamInfo,
    Timesteps,
    Values,
    Version,
    WrongOrder,
    WrongProcess,
)
from tidegate.client.client import BUFFER_MAX, RECONNECT_S, ViewT
from tidegate.client.client import Opening as AsynchronousOpening
from tidegate.client.inputs import rows_in_order, split_block
from tidegate.client.results import Group
from tidegate.client.tensors import BeginInputs, block_rows
from tidegate.client.view import iterate
from tidegate.core.spec import Ints

T = TypeVar("T")
Row = TypeVar("Row")
View = TypeVar("View")


class Client:
    """A connection to a server. Arguments and errors are those of `tidegate.client.Client`, without `channel`.

    A channel belongs to an event loop, and this client has a loop of its own.
    """

    def __init__(
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
    ) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"tidegate-client-{address}", daemon=True)
        self._thread.start()

        async def make() -> asynchronous.Client:
            """Makes the client on its loop, because grpc binds a channel to the running loop."""
            return asynchronous.Client(
                address,
                timeout_s=timeout_s,
                reconnect_s=reconnect_s,
                buffer_max=buffer_max,
                backoff=backoff,
                calls=calls,
                credentials=credentials,
                metadata=metadata,
            )

        try:
            self._client = self._call(make())
        except BaseException:
            self._stop()
            raise
        self.address = self._client.address

    def __enter__(self) -> Self:
        self._call(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. The server parks the open streams. Does nothing when called again.

        Does nothing in a forked process either, as the connection belongs to its parent.
        """
        if os.getpid() == self._pid and not self._loop.is_closed():
            self._call(self._client.close())
            self._stop()

    def models(self) -> list[Model]:
        """The served models, newest version of each name first."""
        return self._call(self._client.models())

    def versions(self, model: str = "") -> list[Version]:
        """The versions of a model, or of all, with the streams on each."""
        return self._call(self._client.versions(model))

    def promote(self, model: str, version: str) -> DefaultChange:
        """Makes a version the default of its model; see `tidegate.client.Client.promote`."""
        return self._call(self._client.promote(model, version))

    def rollback(self, model: str) -> DefaultChange:
        """Undoes the last promotion; see `tidegate.client.Client.rollback`."""
        return self._call(self._client.rollback(model))

    def change_models(self, action: str, model: str = "", version: str = "") -> list[ModelChange]:
        """Has all workers "load", "unload" or "reload" versions of a model; see `Client.change_models`."""
        return self._call(self._client.change_models(action, model, version))

    def describe(self, model: str = "", version: str = "") -> tuple[Model, str]:
        """One model and its card as JSON; see `tidegate.client.Client.describe`."""
        return self._call(self._client.describe(model, version))

    def streams(
        self, prefix: str = "", state: str = "", *, model: str = "", version: str = "", page_size: int = 1000
    ) -> Iterator[StreamInfo]:
        """The streams in the order of their ids; see `tidegate.client.Client.streams`."""
        token = ""
        while True:
            page, token = self._call(
                self._client.streams_page(prefix, state, page_size, token, model=model, version=version)
            )
            yield from page
            if not token:
                return

    def describe_stream(self, stream_id: str) -> StreamInfo:
        """One stream. Raises StreamNotFound."""
        return self._call(self._client.describe_stream(stream_id))

    def delete_stream(self, stream_id: str) -> StreamInfo:
        """Deletes a stream and its state; see `tidegate.client.Client.delete_stream`."""
        return self._call(self._client.delete_stream(stream_id))

    def export_stream(self, stream_id: str) -> bytes:
        """A stream's state, for `import_stream`; the stream continues. Raises StreamNotFound."""
        return self._call(self._client.export_stream(stream_id))

    def import_stream(self, checkpoint: bytes, stream_id: str = "") -> StreamInfo:
        """Makes a stream from an exported state; see `tidegate.client.Client.import_stream`."""
        return self._call(self._client.import_stream(checkpoint, stream_id))

    def fork_stream(self, source: str, new_id: str = "") -> StreamInfo:
        """Makes a stream that starts with another one's state; see `tidegate.client.Client.fork_stream`."""
        return self._call(self._client.fork_stream(source, new_id))

    def predict_one(
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
        """Runs one timestep of one stream in a unary call; see `tidegate.client.Client.predict_one`."""
        return self._call(
            self._client.predict_one(
                stream_id, values, step=step, model=model, version=version, sync=sync, inputs=inputs
            )
        )

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
    ) -> "Opening[asynchronous.Stream, Stream]":
        """Opens a stream, with `with`: begins or resumes it; see `tidegate.client.Client.open`."""
        opening = self._client.open(
            stream_id, model=model, version=version, existence=existence, sync=sync, owner=owner, inputs=inputs
        )
        return Opening(self, opening, Stream)

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
    ) -> "Opening[asynchronous.Block, Block]":
        """Opens many streams of one model on one call, with `with`; see `tidegate.client.Client.block`."""
        opening = self._client.block(
            streams, model=model, version=version, existence=existence, sync=sync, owner=owner, inputs=inputs
        )
        return Opening(self, opening, Block)

    def _begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Starts a coroutine on the thread."""
        if os.getpid() != self._pid:
            work.close()
            raise WrongProcess(self._pid, os.getpid())  # the thread and the connection are in the parent
        if self._loop.is_closed():
            work.close()
            raise WrongOrder("client: is closed; make another one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the thread and waits for it."""
        future = self._begin(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C reaches the caller, not the thread
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Opening(Generic[ViewT, View]):
    """The context manager that `Client.open` and `Client.block` return. Entering it gives the stream or the block.

    It runs on the client's thread. A closed client has already given its streams up.
    """

    def __init__(
        self, client: Client, opening: AsynchronousOpening[ViewT], view: Callable[[Client, ViewT], View]
    ) -> None:
        self._client = client
        self._opening = opening
        self._view = view

    def __enter__(self) -> View:
        return self._view(self._client, self._client._call(self._opening.__aenter__()))  # noqa: SLF001 - two halves of one class

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._client._loop.is_closed():  # noqa: SLF001 - as above
            self._client._call(self._opening.__aexit__(kind, error, traceback))  # noqa: SLF001 - as above


class Stream:
    """An open stream. Made by `Client.open`; its attributes are those of `tidegate.client.Stream`."""

    def __init__(self, client: Client, stream: asynchronous.Stream) -> None:
        self._client = client
        self._stream = stream
        self.stream_id = stream.stream_id
        self.owner = stream.owner
        self.kind = stream.kind

    def __repr__(self) -> str:
        return repr(self._stream)

    @property
    def model(self) -> Model:
        """The model of the stream. Another version of it after a move."""
        return self._stream.model

    @property
    def version(self) -> str:
        """The version that runs the stream now."""
        return self._stream.version

    @property
    def moved(self) -> str:
        """How the stream came to its state when it moved to another version last; empty when it has not moved."""
        return self._stream.moved

    @property
    def epoch(self) -> int:
        """A number that rises with every open of the stream, also after a disconnect; for logs."""
        return self._stream.epoch

    @property
    def reconnects(self) -> int:
        """How often it was opened again after a disconnect."""
        return self._stream.reconnects

    @property
    def next_step(self) -> int:
        """The number of the next timestep."""
        return self._stream.next_step

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored, as far as the server has reported."""
        return self._stream.durable_step

    def step(self, values: Values, *, step: int | None = None) -> Prediction:
        """Sends one timestep and waits for its prediction; see `tidegate.client.Stream.step`."""
        return self._client._call(self._stream.step(values, step=step))  # noqa: SLF001 - two halves of one class

    def predict(self, rows: Iterable[Values]) -> Iterator[Prediction]:
        """Sends row after row, as many ahead as the server allows, and yields the predictions in order.

        This is the fast way to replay history. For slow rows use `step`, as a prediction is yielded only when the next row has been
        read. See `tidegate.client.Stream.predict`.
        """
        group = Group()
        return _pipeline(
            iterate("rows", self._rows_in_order(rows)),
            lambda row: self._client._begin(self._stream.step(row, group=group)),  # noqa: SLF001 - two halves of one class
            lambda: self._stream.window,
        )

    def _rows_in_order(self, rows: Iterable[Values]) -> Iterable[Values]:
        model = self._stream.model
        return rows_in_order(rows, model.features) if model.layout.plain else rows

    def close(self, *, forget: bool = False) -> None:
        """Closes the stream once everything is stored; see `tidegate.client.Stream.close`."""
        self._client._call(self._stream.close(forget=forget))  # noqa: SLF001 - two halves of one class


class Block:
    """Many open streams. Made by `Client.block`; its attributes are those of `tidegate.client.Block`."""

    def __init__(self, client: Client, block: asynchronous.Block) -> None:
        self._client = client
        self._block = block
        self.stream_ids = block.stream_ids
        self.owner = block.owner
        self.kinds = block.kinds
        self.model = block.model
        self.refused = block.refused
        self.lost = block.lost

    def __repr__(self) -> str:
        return repr(self._block)

    @property
    def reconnects(self) -> int:
        """How often the streams were opened again after a disconnect."""
        return self._block.reconnects

    @property
    def next_steps(self) -> Ints:
        """The number of the next timestep of each stream."""
        return self._block.next_steps

    @property
    def durable_steps(self) -> Ints:
        """The last timestep of each stream whose state is stored, as far as the server has reported."""
        return self._block.durable_steps

    def step(self, x: Timesteps, rows: Sequence[int] | Ints | None = None) -> Predictions:
        """Sends timesteps of many streams and waits for their predictions; see `tidegate.client.Block.step`."""
        return self._client._call(self._block.step(x, rows))  # noqa: SLF001 - two halves of one class

    def _check(self, block: Timesteps | Some) -> tuple[Timesteps, Sequence[int] | Ints | None]:
        """Raises InvalidTimestep when it is no block, so that no block is read after it."""
        x, rows = split_block(block)
        values, indices = block_rows(x, rows, len(self.stream_ids), self.model)
        return (values, indices) if self.model.layout.plain else (x, rows)

    def predict(self, blocks: Iterable[Timesteps | Some]) -> Iterator[Predictions]:
        """Sends block after block, as many ahead as the server allows, and yields the answers in order.

        This is the fast way to replay history. For slow blocks use `step`, as an answer is yielded only when the next block has been
        read. See `tidegate.client.Block.predict`.
        """
        return _pipeline(
            iterate("blocks", blocks),
            lambda block: self._client._begin(self._block.step(*self._check(block))),  # noqa: SLF001 - as above
            lambda: self._block.window,
        )

    def close(self, *, forget: bool = False) -> None:
        """Closes the streams once everything is stored; see `tidegate.client.Block.close`."""
        self._client._call(self._block.close(forget=forget))  # noqa: SLF001 - two halves of one class


def _pipeline(rows: Iterator[Row], begin: Callable[[Row], "Future[T]"], window: Callable[[], int]) -> Iterator[T]:
    """Starts work for row after row, up to `window` at once, and yields the results in order."""
    in_flight: deque[Future[T]] = deque()
    try:
        for row in rows:
            try:
                in_flight.append(begin(row))
            except InvalidTimestep as error:
                in_flight.append(Future())  # raised after the earlier answers
                in_flight[-1].set_exception(error)
                break
            while in_flight and (in_flight[0].done() or len(in_flight) >= window()):
                yield in_flight[0].result()
                in_flight.popleft()
        while in_flight:
            yield in_flight[0].result()
            in_flight.popleft()
    finally:
        for future in in_flight:
            future.cancel()
