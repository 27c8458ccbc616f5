"""A client for programs without an event loop. The same as `serving.client`, one call after the other.

    with Client("localhost:50051") as client, client.open("pump-7") as stream:
        prediction = stream.step([21.5, 40.2, 3.0])

It runs the asynchronous client on a thread of its own, so that there is one implementation of the protocol. A call may be
made from any thread; errors are those of `serving.client`.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from serving import client as asynchronous
from serving.client import Existence, Model, Prediction, Values

T = TypeVar("T")


class Client:
    """A connection to a server. Arguments and errors are those of `serving.client.Client`."""

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        self.address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"tidegate-client-{address}", daemon=True)
        self._thread.start()
        self._client = self._call(_make(address, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; streams that are open on it are parked by the server. Does nothing the second time."""
        if self._loop.is_closed():
            return
        self._call(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def models(self) -> list[Model]:
        """The models being served, newest version of each name first."""
        return self._call(self._client.models())

    def describe(self, model: str = "", version: str = "") -> tuple[Model, str]:
        """One model and its card as JSON; see `serving.client.Client.describe`."""
        return self._call(self._client.describe(model, version))

    @contextmanager
    def open(
        self, stream_id: str = "", *, model: str = "", version: str = "", existence: Existence = "any"
    ) -> Iterator["Stream"]:
        """Opens a stream: begins it, or goes on where it was; see `serving.client.Client.open`."""
        opening = self._client.open(stream_id, model=model, version=version, existence=existence)
        stream = Stream(self, self._call(opening.__aenter__()))
        try:
            yield stream
        finally:
            self._call(opening.__aexit__(None, None, None))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work on the thread and waits for it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C reaches the caller, not the thread
            raise


class Stream:
    """An open stream. Made by `Client.open`; its attributes are those of `serving.client.Stream`."""

    def __init__(self, client: Client, stream: asynchronous.Stream) -> None:
        self._client = client
        self._stream = stream
        self.stream_id = stream.stream_id
        self.kind = stream.kind
        self.epoch = stream.epoch
        self.model = stream.model

    def __repr__(self) -> str:
        return repr(self._stream)

    @property
    def next_step(self) -> int:
        """The number that the next timestep will have."""
        return self._stream.next_step

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored."""
        return self._stream.durable_step

    def step(self, values: Values, *, step: int | None = None) -> Prediction:
        """Sends one timestep and waits for its prediction; see `serving.client.Stream.step`."""
        return self._client._call(self._stream.step(values, step=step))  # noqa: SLF001 - two halves of one class

    def close(self, *, forget: bool = False) -> None:
        """Ends the stream; see `serving.client.Stream.close`."""
        self._client._call(self._stream.close(forget=forget))  # noqa: SLF001 - two halves of one class


async def _make(address: str, timeout_s: float) -> asynchronous.Client:
    """Grpc binds a channel to the event loop that it is made on."""
    return asynchronous.Client(address, timeout_s=timeout_s)
