"""An asynchronous client. `serving.blocking` offers the same to programs without an event loop.

    async with Client("localhost:50051") as client:
        async with client.open("pump-7") as stream:
            prediction = await stream.step([21.5, 40.2, 3.0])
            print(prediction["forecast"])

What can go wrong:

    ClientError              the root; carries `reason`, the name of an Error.Reason of the protocol
    ├── TimestepRefused        one timestep; send it again corrected, the stream stays usable
    │   ├── InvalidTimestep      wrong width or an infinite value
    │   ├── StepGap              timesteps are missing before it: `next_step` says where to go on
    │   ├── Overloaded           the server's queue is full: wait `retry_after_s`
    │   └── ModelFailed          the model failed on it
    ├── StreamRefused          the stream could not be opened
    │   ├── ModelNotFound
    │   ├── ModelMismatch
    │   ├── StreamNotFound
    │   ├── StreamExists
    │   └── TooManyStreams
    └── StreamLost             the call has ended; open the stream again to go on
        ├── TakenOver            another client has opened it
        └── ServerUnavailable    the server is stopping or cannot be reached
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from protos.tidegate.v1 import tidegate_pb2 as pb
from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc
from serving.core.spec import Array, Feature, Output
from serving.rpc import wire

__all__ = [
    "Client",
    "ClientError",
    "InvalidTimestep",
    "Model",
    "ModelFailed",
    "ModelMismatch",
    "ModelNotFound",
    "Overloaded",
    "Prediction",
    "ServerUnavailable",
    "StepGap",
    "Stream",
    "StreamExists",
    "StreamLost",
    "StreamNotFound",
    "StreamRefused",
    "TakenOver",
    "TimestepRefused",
    "TooManyStreams",
    "Values",
]

Values = Sequence[float] | Array | Mapping[str, float]
Existence = Literal["any", "must_exist", "must_be_new"]

EXISTENCE: Mapping[Existence, pb.Open.Existence] = {
    "any": pb.Open.EXISTENCE_UNSPECIFIED,
    "must_exist": pb.Open.MUST_EXIST,
    "must_be_new": pb.Open.MUST_BE_NEW,
}


class ClientError(Exception):
    """The root. `reason` is the name of an Error.Reason of the protocol, or of a gRPC status code."""

    def __init__(self, message: str, reason: str = "") -> None:
        self.reason = reason
        super().__init__(message)


class TimestepRefused(ClientError):
    """One timestep was refused; the stream stays usable and its state is what it was."""

    def __init__(
        self, message: str, reason: str, *, field: str = "", next_step: int = 0, retry_after_s: float = 0.0
    ) -> None:
        self.field = field
        self.next_step = next_step
        self.retry_after_s = retry_after_s
        super().__init__(message, reason)


class InvalidTimestep(TimestepRefused):
    """Its values have the wrong width, or one is infinite."""


class StepGap(TimestepRefused):
    """Timesteps are missing before it."""


class Overloaded(TimestepRefused):
    """The server's queue is full."""


class ModelFailed(TimestepRefused):
    """The model failed on it."""


class StreamRefused(ClientError):
    """The stream could not be opened."""


class ModelNotFound(StreamRefused):
    """The model is not served."""


class ModelMismatch(StreamRefused):
    """The stream runs under another model or version."""


class StreamNotFound(StreamRefused):
    """The stream is not known."""


class StreamExists(StreamRefused):
    """The stream exists."""


class TooManyStreams(StreamRefused):
    """The server holds as many streams as it may."""


class StreamLost(ClientError):
    """The call has ended. Open the stream again to go on."""


class TakenOver(StreamLost):
    """Another client has opened the stream."""


class ServerUnavailable(StreamLost):
    """The server is stopping or cannot be reached."""


IN_BAND: Mapping[int, type[TimestepRefused]] = {
    pb.Error.WRONG_WIDTH: InvalidTimestep,
    pb.Error.NOT_FINITE: InvalidTimestep,
    pb.Error.INVALID_FIELD: InvalidTimestep,
    pb.Error.STEP_GAP: StepGap,
    pb.Error.OVERLOADED: Overloaded,
    pb.Error.MODEL_FAILED: ModelFailed,
}
AT_THE_END: Mapping[str, type[ClientError]] = {
    "INVALID_FIELD": StreamRefused,
    "WRONG_ORDER": StreamRefused,
    "MODEL_NOT_FOUND": ModelNotFound,
    "MODEL_MISMATCH": ModelMismatch,
    "STREAM_NOT_FOUND": StreamNotFound,
    "STREAM_EXISTS": StreamExists,
    "TOO_MANY_STREAMS": TooManyStreams,
    "TAKEN_OVER": TakenOver,
    "STOPPING": ServerUnavailable,
    "UNAVAILABLE": ServerUnavailable,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its server describes it."""

    name: str
    version: str
    fingerprint: str
    task: str
    period_s: float
    features: tuple[Feature, ...]
    outputs: tuple[Output, ...]
    batch_invariant: bool


@dataclass(frozen=True, slots=True)
class Prediction(Mapping[str, Array]):
    """The answer to one timestep: a mapping from output names to arrays.

    Empty when the timestep was a `duplicate` whose answer the server no longer remembers.
    """

    step: int
    outputs: Mapping[str, Array]
    durable_step: int
    duplicate: bool

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        """How many outputs there are."""
        return len(self.outputs)


class Client:
    """A connection to a server.

    Args:
        address: HOST:PORT.
        timeout_s: the longest time to wait for the server to be reached and to answer a question.

    """

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                # Find out within a minute that a server died without a word.
                ("grpc.keepalive_time_ms", 40_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                # Two clients of one process do not share a connection unless they are one client.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = pb_grpc.TidegateStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; streams that are open on it are parked by the server."""
        await self._channel.close()

    async def models(self) -> list[Model]:
        """The models being served, newest version of each name first."""
        try:
            answer = await self._stub.ListModels(pb.ListModelsRequest(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error.code(), error.details(), error.trailing_metadata()) from None
        return [_model_of(model) for model in answer.models]

    async def describe(self, model: str = "", version: str = "") -> tuple[Model, str]:
        """One model and its card as JSON, empty when it has none; empty names mean the only one and the newest.

        Raises:
            ModelNotFound: it is not served.

        """
        request = pb.DescribeModelRequest(name=model, version=version)
        try:
            answer = await self._stub.DescribeModel(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error.code(), error.details(), error.trailing_metadata()) from None
        return _model_of(answer.model), answer.card_json

    @asynccontextmanager
    async def open(
        self, stream_id: str = "", *, model: str = "", version: str = "", existence: Existence = "any"
    ) -> AsyncIterator["Stream"]:
        """Opens a stream: begins it, or goes on where it was. On leaving it is parked, and can be opened again.

        Args:
            stream_id: its name; empty for one that the server issues.
            model: the model to run it under; empty for the only one served, or the one it runs under.
            version: that model's version; empty for the newest, or the one it runs under.
            existence: "must_exist" or "must_be_new" to be refused otherwise.

        Raises:
            StreamRefused: it may not be opened so.
            ServerUnavailable: the server cannot be reached.

        """
        ask = pb.Open(stream_id=stream_id, model=model, version=version, existence=EXISTENCE[existence])
        stream = Stream(self._stub.Predict())
        try:
            await stream.start(ask, self._timeout_s)
            yield stream
        finally:
            await stream.close()


class Stream:
    """An open stream. Made by `Client.open`.

    Attributes:
        stream_id: its name.
        model: what runs it.
        kind: how it was opened: "new", "resumed" or "taken_over".
        epoch: rises with every open of the stream.
        next_step: the number that the next timestep will have.
        durable_step: the last timestep whose state is stored.

    """

    def __init__(self, call: Any) -> None:
        self.stream_id = ""
        self.model: Model
        self.kind = ""
        self.epoch = 0
        self.next_step = 0
        self.durable_step = 0
        self._call = call
        self._sending = asyncio.Lock()
        self._waiting: deque[asyncio.Future[pb.PredictResponse]] = deque()  # for answers, in the order of requests
        self._lost: ClientError | None = None
        self._reader = asyncio.create_task(self._read())

    def __repr__(self) -> str:
        return f"<Stream {self.stream_id} under {self.model.name}/{self.model.version}, next step {self.next_step}>"

    async def start(self, ask: pb.Open, timeout_s: float) -> None:
        """Opens the stream; called by `Client.open`."""
        try:
            async with asyncio.timeout(timeout_s):
                opened = (await self._exchange(pb.PredictRequest(open=ask))).opened
        except TimeoutError:
            raise ServerUnavailable(f"no answer to open within {timeout_s:g} s", "DEADLINE_EXCEEDED") from None
        self.stream_id = opened.stream_id
        self.model = _model_of(opened.model)
        self.kind = pb.Opened.Kind.Name(opened.kind).lower()
        self.epoch = opened.epoch
        self.next_step = opened.next_step
        self.durable_step = opened.durable_step

    async def step(self, values: Values, *, step: int | None = None) -> Prediction:
        """Sends one timestep and waits for its prediction. Several may be under way; they are answered in order.

        Args:
            values: one number a feature, in the model's order, or a mapping from feature names; NaN, or a name left
                out, means missing.
            step: its number, when it is not the next one.

        Raises:
            TimestepRefused: it was refused; the stream stays usable.
            StreamLost: the call has ended.

        """
        packed = self._pack(values)
        number = self.next_step if step is None else step
        self.next_step = max(self.next_step, number + 1)
        response = await self._exchange(pb.PredictRequest(timestep=pb.Timestep(step=number, values=packed)))
        if response.HasField("error"):
            self.next_step = response.error.next_step
            raise _refusal_of(response.error)
        answer = response.prediction
        self.durable_step = answer.durable_step
        arrays = wire.decode_arrays(self.model.outputs, answer.outputs)
        return Prediction(answer.step, arrays, answer.durable_step, answer.duplicate)

    async def close(self, *, forget: bool = False) -> None:
        """Ends the stream; with `forget` the server drops its state. Does nothing when it has ended already.

        Raises:
            StreamLost: with `forget` only, when the server could not be told.

        """
        try:
            if self._lost is None and self.stream_id:
                await self._exchange(pb.PredictRequest(close=pb.Close(forget=forget)))
                await self._reader  # the call ends after the answer
        except ClientError:
            if forget:
                raise
        finally:
            self._call.cancel()
            await asyncio.wait([self._reader])

    def _pack(self, values: Values) -> bytes:
        if isinstance(values, Mapping):
            names = [feature.name for feature in self.model.features]
            if unknown := values.keys() - set(names):
                raise InvalidTimestep(
                    f"values: no feature is called {', '.join(sorted(unknown))}; the model has {', '.join(names)}",
                    "WRONG_WIDTH",
                    field="values",
                    next_step=self.next_step,
                )
            values = [values.get(name, float("nan")) for name in names]
        return np.asarray(values, "<f4").tobytes()

    async def _exchange(self, request: pb.PredictRequest) -> pb.PredictResponse:
        """Sends a request and waits for its answer."""
        answer: asyncio.Future[pb.PredictResponse] = asyncio.get_running_loop().create_future()
        async with self._sending:
            if self._lost is not None:
                raise self._lost
            self._waiting.append(answer)
            try:
                await self._call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.wait([self._reader])  # it knows why the call has ended, and fails `answer`
        return await answer

    async def _read(self) -> None:
        """Hands answers to those who wait for them, until the call ends; then says why to all that are left."""
        lost: ClientError = StreamLost("the stream is closed; open it again to go on")
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                if response.HasField("move") or response.HasField("durable"):
                    continue  # answers nothing
                answer = self._waiting.popleft()
                if not answer.done():
                    answer.set_result(response)
            if await self._call.code() is not grpc.StatusCode.OK:
                lost = _error_of(
                    await self._call.code(), await self._call.details(), await self._call.trailing_metadata()
                )
        except grpc.aio.AioRpcError as error:
            lost = _error_of(error.code(), error.details(), error.trailing_metadata())
        except asyncio.CancelledError:
            pass  # `close` cancelled the call
        self._lost = lost
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(lost)


def _refusal_of(error: pb.Error) -> TimestepRefused:
    kind = IN_BAND.get(error.reason, TimestepRefused)
    name = pb.Error.Reason.Name(error.reason) if error.reason in pb.Error.Reason.values() else str(error.reason)
    return kind(
        error.message, name, field=error.field, next_step=error.next_step, retry_after_s=error.retry_after_ms / 1000
    )


def _error_of(code: grpc.StatusCode, details: str | None, trailers: Any) -> ClientError:
    """The typed error for how a call ended."""
    reason = code.name
    status = status_pb2.Status()
    for key, value in trailers or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason = info.reason
    return AT_THE_END.get(reason, StreamLost)(details or reason, reason)


def _model_of(model: pb.Model) -> Model:
    return Model(
        model.name,
        model.version,
        model.fingerprint,
        model.task,
        model.period_seconds,
        wire.decode_features(model),
        wire.decode_outputs(model),
        model.batch_invariant,
    )
