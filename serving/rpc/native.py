"""The service of `protos/tidegate/v1`: one coroutine a call, which reads, has a timestep answered, writes.

A call has one timestep under way at a time: it does not read the next before it wrote the answer. So a stream's order
needs no bookkeeping, and a client that reads slowly or floods is held back by the network, at nobody else's cost.
"""

import asyncio
import logging
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, Protocol, cast

import grpc
from google.protobuf.message import DecodeError

from protos.tidegate.v1 import tidegate_pb2 as pb
from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc
from serving.core.errors import InvalidField, Stopping, TidegateError, TimestepRefused, WrongOrder
from serving.core.spec import Key, Prediction, Spec, Timestep
from serving.core.streams import Existence, Lease, OpenKind
from serving.rpc import wire
from serving.rpc.status import abort

log = logging.getLogger("tidegate.rpc")

# The owner of a stream until callers are told apart by tokens.
DEFAULT_TENANT = "default"

# grpc ships no types: a grpc.aio.ServicerContext, for the reader's eye.
Context = Any


# Why a call let go of its stream.
CloseReason = Literal["closed", "disconnected", "taken_over", "forgotten", "stopping", "protocol"]


@dataclass(frozen=True, slots=True)
class Opening:
    """How an open went."""

    lease: Lease
    kind: OpenKind
    next_step: int
    answers_remembered: int


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as callers see it."""

    spec: Spec
    batch_invariant: bool
    card_json: str


class Desk(Protocol):
    """What the service needs of the server behind it."""

    async def open(self, key: Key, model: str, version: str, existence: Existence, acknowledged_step: int) -> Opening:
        """Opens a stream; an empty id in `key` is replaced by one that nobody can guess."""

    def submit(self, lease: Lease, timestep: Timestep) -> "asyncio.Future[Prediction]":
        """Queues a timestep."""

    def answered(self, lease: Lease, seconds: float) -> None:
        """Counts a timestep that was answered, from being read to its answer being handed to the network."""

    def park(self, lease: Lease, reason: CloseReason) -> None:
        """Lets go of a stream, which is kept. Takes effect soon, whether or not anybody waits."""

    async def forget(self, lease: Lease) -> None:
        """Lets go of a stream and drops it."""

    def models(self) -> list[ServedModel]:
        """The models being served, newest version of each name first."""

    def model(self, name: str, version: str) -> ServedModel:
        """One model; empty strings mean the only one and the newest."""


class Call:
    """One call of `Predict`, as others see it: they may ask it to end between two timesteps."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._reading = False
        self.ended: TidegateError | None = None

    def end(self, reason: TidegateError) -> None:
        """Ends the call with `reason` once the timestep under way is answered."""
        if self.ended is None:
            self.ended = reason
            if self._reading:
                self._task.cancel()

    async def read(self, context: Context) -> pb.PredictRequest | None:
        """The next request, None when the client has sent its last.

        Raises:
            TidegateError: the call was asked to end.
            InvalidField: what came is not a request.

        """
        if self.ended is not None:
            raise self.ended
        self._reading = True
        try:
            request = await context.read()
        except asyncio.CancelledError:
            if self.ended is None:
                raise  # the client went away
            self._task.uncancel()
            raise self.ended from None
        except DecodeError as error:
            raise InvalidField("request", "got bytes that are not a PredictRequest") from error
        finally:
            self._reading = False
        return None if request is grpc.aio.EOF else cast(pb.PredictRequest, request)


class Native(pb_grpc.TidegateServicer):
    """Speaks `tidegate.v1` for a desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False

    async def drain(self) -> None:
        """Tells every call to move and waits until all have ended; later calls are refused."""
        self._stopping = True
        for call in list(self._calls):
            call.end(Stopping())
        await self._idle.wait()

    async def Predict(self, _: object, context: Context) -> None:  # noqa: N802 - named by the protocol
        """Runs one stream; see the protocol."""
        call = Call()
        self._calls.add(call)
        self._idle.clear()
        lease: Lease | None = None
        reason: CloseReason = "disconnected"
        try:
            if self._stopping:
                raise Stopping  # noqa: TRY301 - one way out for all refusals
            lease = await self._open(call, context)
            reason = await self._serve(call, lease, context)
        except Stopping as error:
            reason = "stopping"
            if lease is not None:
                await context.write(pb.PredictResponse(move=pb.Move(message=str(error))))
            await abort(context, error)
        except TidegateError as error:
            reason = "taken_over" if call.ended is error else "protocol"
            await abort(context, error)
        finally:
            if lease is not None:
                self._desk.park(lease, reason)
            self._calls.discard(call)
            if not self._calls:
                self._idle.set()

    async def _open(self, call: Call, context: Context) -> Lease:
        """Reads the first message and opens the stream."""
        request = await call.read(context)
        if request is None:
            raise WrongOrder("the call ended before its first message, expected an open")
        if not request.HasField("open"):
            raise WrongOrder(f"the first message is {_kind(request)}, expected open")
        ask = request.open
        if ask.stream_id:
            wire.check_stream_id(ask.stream_id)
        existence = wire.decode_existence(ask.existence)
        opening = await self._desk.open(
            Key(DEFAULT_TENANT, ask.stream_id), ask.model, ask.version, existence, ask.acknowledged_step
        )
        opening.lease.on_end = call.end
        stream = opening.lease.stream
        model = self._desk.model(stream.slots.spec.name, stream.slots.spec.version)
        try:
            await context.write(
                pb.PredictResponse(
                    opened=pb.Opened(
                        stream_id=stream.key.stream_id,
                        kind=wire.OPEN_KINDS[opening.kind],
                        next_step=opening.next_step,
                        epoch=stream.epoch,
                        durable_step=stream.durable_step,
                        answers_remembered=opening.answers_remembered,
                        model=wire.encode_model(model.spec, batch_invariant=model.batch_invariant),
                    )
                )
            )
        except BaseException:
            self._desk.park(opening.lease, "disconnected")
            raise
        return opening.lease

    async def _serve(self, call: Call, lease: Lease, context: Context) -> CloseReason:
        """Answers timesteps until the stream is closed or the client has sent its last; gives the reason."""
        desk = self._desk
        while (request := await call.read(context)) is not None:
            begun = perf_counter()
            if request.HasField("timestep"):
                await context.write(await self._answer(lease, request.timestep))
                desk.answered(lease, perf_counter() - begun)
            elif request.HasField("close"):
                return await self._close(lease, request.close, context)
            elif request.HasField("open"):
                raise WrongOrder(
                    f"stream '{lease.stream.key.stream_id}' is open already, expected timesteps or a close"
                )
            else:
                raise InvalidField("kind", "got a request without one, expected timestep, open or close")
        return "closed"

    async def _answer(self, lease: Lease, message: pb.Timestep) -> pb.PredictResponse:
        """The answer to one timestep, or why it was refused."""
        stream = lease.stream
        try:
            prediction = await self._desk.submit(lease, wire.decode_timestep(message))
        except (TimestepRefused, InvalidField) as error:
            return wire.encode_refusal(error, message.step, stream.step + 1)
        return wire.encode_prediction(prediction, stream.durable_step)

    async def _close(self, lease: Lease, message: pb.Close, context: Context) -> CloseReason:
        """Ends the stream at its client's wish."""
        step = lease.stream.step
        if message.forget:
            await self._desk.forget(lease)
        closed = pb.Closed(step=step, durable_step=0 if message.forget else lease.stream.durable_step)
        await context.write(pb.PredictResponse(closed=closed))
        return "forgotten" if message.forget else "closed"

    async def ListModels(self, _: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802, ARG002
        """Lists the models; see the protocol."""
        models = [wire.encode_model(model.spec, batch_invariant=model.batch_invariant) for model in self._desk.models()]
        return pb.ListModelsResponse(models=models)

    async def DescribeModel(  # noqa: N802 - named by the protocol
        self,
        request: pb.DescribeModelRequest,
        context: Context,
    ) -> pb.DescribeModelResponse:
        """Describes one model; see the protocol."""
        try:
            model = self._desk.model(request.name, request.version)
        except TidegateError as error:
            await abort(context, error)
        return pb.DescribeModelResponse(
            model=wire.encode_model(model.spec, batch_invariant=model.batch_invariant), card_json=model.card_json
        )


def _kind(request: pb.PredictRequest) -> str:
    return request.WhichOneof("kind") or "without a kind"
