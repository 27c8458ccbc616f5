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
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import grpc

from tidegate import client as asynchronous
from tidegate.client import (
    Backoff,
    InvalidTimestep,
    Model,
    Prediction,
    Predictions,
    Some,
    StreamInfo,
    Timesteps,
    Values,
    WrongOrder,
    WrongProcess,
)
from tidegate.client.client import BUFFER_MAX, RECONNECT_S, ViewT
from tidegate.client.client import Opening as AsynchronousOpening
from tidegate.client.inputs import rows_in_order, split_block
from tidegate.client.results import Group
from tidegate.client.tensors import block_rows
from tidegate.client.view import iterate
from tidegate.core.spec import Ints

P = ParamSpec("P")
T = TypeVar("T")
Row = TypeVar("Row")
BlockingViewT = TypeVar("BlockingViewT")


def _blocking(
    method: Callable[Concatenate[asynchronous.Client, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """A method of the asynchronous client as one that returns its result."""

    @wraps(method)
    def call(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._call(method(client._client, *args, **kwargs))  # noqa: SLF001 - two halves of one class

    return call


def _opening(
    method: Callable[Concatenate[asynchronous.Client, P], AsynchronousOpening[ViewT]],
    view: Callable[["Client", ViewT], BlockingViewT],
) -> Callable[Concatenate["Client", P], "Opening[ViewT, BlockingViewT]"]:
    """A method of the asynchronous client that opens streams as one to use with `with`."""

    @wraps(method)
    def open_(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> "Opening[ViewT, BlockingViewT]":
        return Opening(client, method(client._client, *args, **kwargs), view)  # noqa: SLF001 - two halves of one class

    open_.__doc__ = (method.__doc__ or "").replace("`async with`", "`with`")
    return open_


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

    models = _blocking(asynchronous.Client.models)
    describe = _blocking(asynchronous.Client.describe)
    change_models = _blocking(asynchronous.Client.change_models)
    versions = _blocking(asynchronous.Client.versions)
    promote = _blocking(asynchronous.Client.promote)
    rollback = _blocking(asynchronous.Client.rollback)
    describe_stream = _blocking(asynchronous.Client.describe_stream)
    delete_stream = _blocking(asynchronous.Client.delete_stream)
    export_stream = _blocking(asynchronous.Client.export_stream)
    import_stream = _blocking(asynchronous.Client.import_stream)
    fork_stream = _blocking(asynchronous.Client.fork_stream)
    predict_one = _blocking(asynchronous.Client.predict_one)

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

    open = _opening(asynchronous.Client.open, lambda client, view: Stream(client, view))  # noqa: PLW0108 - defined below
    block = _opening(asynchronous.Client.block, lambda client, view: Block(client, view))  # noqa: PLW0108 - as above

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


class Opening(Generic[ViewT, BlockingViewT]):
    """The context manager that `Client.open` and `Client.block` return. Entering it gives the stream or the block.

    It runs on the client's thread. A closed client has already given its streams up.
    """

    def __init__(
        self, client: Client, opening: AsynchronousOpening[ViewT], view: Callable[[Client, ViewT], BlockingViewT]
    ) -> None:
        self._client = client
        self._opening = opening
        self._view = view

    def __enter__(self) -> BlockingViewT:
        return self._view(self._client, self._client._call(self._opening.__aenter__()))  # noqa: SLF001 - two halves of one class

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._client._loop.is_closed():  # noqa: SLF001 - as above
            self._client._call(self._opening.__aexit__(kind, error, traceback))  # noqa: SLF001 - as above


class _View(Generic[ViewT]):
    """What `Stream` and `Block` share."""

    def __init__(self, client: Client, view: ViewT) -> None:
        self._call, self._begin = client._call, client._begin  # noqa: SLF001 - two halves of one class
        self._view = view
        self.owner = view.owner

    def __repr__(self) -> str:
        return repr(self._view)

    @property
    def reconnects(self) -> int:
        """How often it was opened again after a disconnect."""
        return self._view.reconnects

    def close(self, *, forget: bool = False) -> None:
        """Closes the stream, or the streams, once everything is stored; see `tidegate.client.Stream.close`."""
        self._call(self._view.close(forget=forget))


class Stream(_View[asynchronous.Stream]):
    """An open stream. Made by `Client.open`; its attributes are those of `tidegate.client.Stream`."""

    def __init__(self, client: Client, stream: asynchronous.Stream) -> None:
        super().__init__(client, stream)
        self.stream_id = stream.stream_id
        self.kind = stream.kind

    @property
    def model(self) -> Model:
        """The model of the stream. Another version of it after a move."""
        return self._view.model

    @property
    def version(self) -> str:
        """The version that runs the stream now."""
        return self._view.version

    @property
    def moved(self) -> str:
        """How the stream came to its state when it moved to another version last; empty when it has not moved."""
        return self._view.moved

    @property
    def epoch(self) -> int:
        """A number that rises with every open of the stream, also after a disconnect; for logs."""
        return self._view.epoch

    @property
    def next_step(self) -> int:
        """The number of the next timestep."""
        return self._view.next_step

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored, as far as the server has reported."""
        return self._view.durable_step

    def step(self, values: Values, *, step: int | None = None) -> Prediction:
        """Sends one timestep and waits for its prediction; see `tidegate.client.Stream.step`."""
        return self._call(self._view.step(values, step=step))

    def predict(self, rows: Iterable[Values]) -> Iterator[Prediction]:
        """Sends row after row, as many ahead as the server allows, and yields the predictions in order.

        This is the fast way to replay history. For slow rows use `step`, as a prediction is yielded only when the next row has been
        read. See `tidegate.client.Stream.predict`.
        """
        group = Group()
        return _pipeline(
            iterate("rows", self._rows_in_order(rows)),
            lambda row: self._begin(self._view.step(row, group=group)),
            lambda: self._view.window,
        )

    def _rows_in_order(self, rows: Iterable[Values]) -> Iterable[Values]:
        model = self._view.model
        return rows_in_order(rows, model.features) if model.layout.plain else rows


class Block(_View[asynchronous.Block]):
    """Many open streams. Made by `Client.block`; its attributes are those of `tidegate.client.Block`."""

    def __init__(self, client: Client, block: asynchronous.Block) -> None:
        super().__init__(client, block)
        self.stream_ids = block.stream_ids
        self.kinds = block.kinds
        self.model = block.model
        self.refused = block.refused
        self.lost = block.lost

    @property
    def next_steps(self) -> Ints:
        """The number of the next timestep of each stream."""
        return self._view.next_steps

    @property
    def durable_steps(self) -> Ints:
        """The last timestep of each stream whose state is stored, as far as the server has reported."""
        return self._view.durable_steps

    def step(self, x: Timesteps, rows: Sequence[int] | Ints | None = None) -> Predictions:
        """Sends timesteps of many streams and waits for their predictions; see `tidegate.client.Block.step`."""
        return self._call(self._view.step(x, rows))

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
            lambda block: self._begin(self._view.step(*self._check(block))),
            lambda: self._view.window,
        )


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
