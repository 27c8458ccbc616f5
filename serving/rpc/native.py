"""The streaming calls of `protos/tidegate/v1`: one coroutine a call, which reads, has a timestep answered, writes.

A call has one timestep under way at a time: it does not read the next before it wrote the answer. So a stream's order
needs no bookkeeping, and a client that reads slowly or floods is held back by the network, at nobody else's cost.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any
from weakref import WeakValueDictionary

import grpc

from protos.tidegate.v1 import tidegate_pb2 as pb
from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc
from serving.core.errors import (
    InvalidField,
    Stopping,
    StoreBehind,
    StoreUnavailable,
    TidegateError,
    TimestepRefused,
    TooManyStreams,
    WrongOrder,
)
from serving.core.handles import KEPT_MAX
from serving.core.spec import Key, Timestep
from serving.core.stream_id import check_stream_id
from serving.core.streams import Lease
from serving.rpc import wire
from serving.rpc.admin import Admin
from serving.rpc.blocks import BlockCall
from serving.rpc.call import Call, Context
from serving.rpc.desk import DEFAULT_TENANT, Administration, CloseReason, Desk, Line
from serving.rpc.one import One
from serving.rpc.share import Share
from serving.rpc.status import abort

log = logging.getLogger("tidegate.native")

# Calls that are asked to end in one turn of the loop: each then takes some hundred microseconds of the next.
ENDED_AT_ONCE_MAX = 16
# A client that keeps to the protocol half-closes with its close, or a round trip later. Who does so after this is not looked at.
HALF_CLOSE_SECONDS = 1.0


class PredictCall(Call):
    """One call of `Predict`: others may ask it to end, or to tell its client what is durable."""

    def __init__(self, context: Context, share: Share) -> None:
        super().__init__(context)
        self.share = share
        self.write: Callable[[bytes], Awaitable[None]] = context.write
        self.lease: Lease | None = None
        self.kept_max = KEPT_MAX
        self.told_step = 0
        self.sync = False
        self.output_format: int = pb.OUTPUT_FORMAT_UNSPECIFIED

    def lost(self, lease: Lease) -> None:
        """Ends the call because its hold on the stream has ended."""
        assert lease.ended is not None
        self.end(lease.ended)

    def durable(self) -> None:
        """Tells the client what is durable, if no prediction is due that would, and it may be waiting for it."""
        if self.reading and self.telling is None and self.has_news:
            self.tell_beside(self.tell_durable())

    @property
    def has_news(self) -> bool:
        """Whether so much is stored that the client was not told of that it may be waiting for it."""
        assert self.lease is not None
        return 2 * (self.lease.durable_step - self.told_step) >= self.kept_max

    async def tell_durable(self) -> None:
        """Tells the client what is durable."""
        assert self.lease is not None
        self.told_step = self.lease.durable_step
        await self.tell(durable=pb.Durable(durable_step=self.told_step))

    async def tell(self, **kind: Any) -> None:
        """Writes a response of the kind that is named."""
        await self.write(pb.PredictResponse(**kind).SerializeToString())


class Native(Admin):
    """Speaks `tidegate.v1` for a desk.

    A connection holds at most `live_max` live streams of a model, and a request has at most `message_bytes_max` bytes.
    """

    def __init__(self, desk: Desk, administration: Administration, *, live_max: int, message_bytes_max: int) -> None:
        super().__init__(administration)
        self._desk = desk
        self._one = One(desk)
        self._live_max = live_max
        self._message_bytes_max = message_bytes_max
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()  # by peer, for as long as it has calls
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._left_unsaved = 0

    async def drain(self) -> None:
        """Tells every call to move and waits until all have ended; later calls are refused.

        A call answers what is under way, waits until its streams are stored, and then tells its client: who moves finds them
        at the other server as they were. A store that does not take them in time, as the desk judges it, holds no call up.
        """
        self._stopping = True
        for place, call in enumerate(list(self._calls), 1):
            call.end(Stopping())
            if place % ENDED_AT_ONCE_MAX == 0:
                await asyncio.sleep(0)
        await self._idle.wait()
        if self._left_unsaved:
            log.warning("%d streams were told to move before the store had taken them", self._left_unsaved)
            self._left_unsaved = 0

    async def Predict(self, _: object, context: Context) -> None:  # noqa: N802 - named by the protocol
        """Runs one stream; see the protocol."""
        call = PredictCall(context, self._share(context))
        self._calls.add(call)
        self._idle.clear()
        reason: CloseReason = "disconnected"
        try:
            if self._stopping:
                raise Stopping  # noqa: TRY301 - one way out for all refusals
            lease = await self._open(call)
            try:
                reason = await self._serve(call, lease)
            except Stopping as error:
                await self._move(call, lease, error)
                raise
        except Stopping as error:
            reason = "stopping"
            await abort(context, error)
        except TidegateError as error:
            reason = "taken_over" if call.lease is not None and call.lease.ended is error else "protocol"
            await abort(context, error)
        except grpc.aio.InternalError:
            pass  # a write met the end of its call: the client has gone
        finally:
            if call.lease is not None:
                self._desk.leave(call.lease, reason)
                call.share.singles.discard(call.lease)
                call.lease.on_end = call.lease.on_durable = (
                    None  # or the two would hold each other until they are collected
                )
            self._end(call)

    async def PredictOne(self, request: pb.PredictOneRequest, context: Context) -> pb.PredictOneResponse:  # noqa: N802 - as above
        """Runs one timestep of one stream; see the protocol."""
        call = Call(context)  # draining waits for it
        self._calls.add(call)
        self._idle.clear()
        try:
            if self._stopping:
                raise Stopping
            return await self._one.predict(request, self._share(context))
        except TidegateError as error:
            await abort(context, error)
        finally:
            self._end(call)

    async def PredictBlocks(self, _: object, context: Context) -> None:  # noqa: N802 - named by the protocol
        """Runs many streams; see the protocol."""
        call = BlockCall(self._desk, context, self._share(context), self._message_bytes_max)
        self._calls.add(call)
        self._idle.clear()
        try:
            if self._stopping:
                raise Stopping
            await call.serve()
        except TidegateError as error:
            await abort(context, error)
        except grpc.aio.InternalError:
            pass  # as above
        finally:
            self._end(call)

    def _end(self, call: Call) -> None:
        """A call has let go of what it held."""
        self._left_unsaved += call.left_unsaved
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    def _share(self, context: Context) -> Share:
        """What the calls of a connection share."""
        share = self._shares.get(context.peer())
        if share is None:
            share = self._shares[context.peer()] = Share(self._live_max)
        return share

    async def _open(self, call: PredictCall) -> Lease:
        """Reads the first message and opens the stream."""
        message = await call.read()
        if message is None:
            raise WrongOrder("the call ended before its first message, expected an open")
        request = wire.decode_request(message)
        kind = request.WhichOneof("kind")
        if kind is None:
            raise _unknown_kind()
        if kind != "open":
            raise WrongOrder(f"the first message is {kind}, expected open")
        ask = request.open
        if ask.stream_id:
            check_stream_id(ask.stream_id)
        call.sync = wire.decode_sync(ask.durability)
        call.kept_max = ask.kept_max or KEPT_MAX
        call.output_format = wire.decode_output_format(ask.output_format)
        key = Key(DEFAULT_TENANT, ask.stream_id)
        with call.share.room():
            opening = await self._desk.open(key, ask.model, ask.version, wire.decode_ask(ask))
        # Nothing may come between: from here on the call lets go of what it holds.
        lease = call.lease = opening.lease
        call.share.singles.add(lease)
        lease.on_end = call.lost
        lease.on_durable = call.durable
        call.told_step = lease.durable_step
        stream = lease.stream
        model = self._desk.model(stream.slots.spec.name, stream.slots.spec.version)
        await call.tell(
            opened=pb.Opened(
                stream_id=stream.key.stream_id,
                kind=wire.OPEN_KINDS[opening.kind],
                next_step=opening.next_step,
                epoch=stream.epoch,
                durable_step=lease.durable_step,
                answers_remembered=opening.answers_remembered,
                owner_changed=opening.owner_changed,
                message_bytes_max=self._message_bytes_max,
                model=wire.encode_model(model.spec, batch_invariant=model.batch_invariant),
            )
        )
        return lease

    async def _serve(self, call: PredictCall, lease: Lease) -> CloseReason:
        """Answers timesteps until the stream is closed or the client has sent its last; gives the reason."""
        line = self._desk.line(lease)
        reader = wire.timestep_reader(len(lease.stream.slots.spec.features))
        while (message := await call.read()) is not None:
            begun = perf_counter()
            timestep = reader.read(message)
            request = wire.decode_request(message) if timestep is None else None
            if request is None or request.HasField("timestep"):
                await call.write(await self._answer(call, lease, line, timestep, request))
                line.answered(perf_counter() - begun)
                if call.has_news:  # it was stored while the answer was on its way
                    await call.tell_durable()
            elif request.HasField("close"):
                reason = await self._close(call, lease, request.close)
                await self._end_of(call)
                return reason
            elif request.HasField("open"):
                raise WrongOrder(
                    f"stream '{lease.stream.key.stream_id}' is open already, expected timesteps or a close"
                )
            else:
                raise _unknown_kind()
        # Half-closed; a call that was cancelled looks the same from here, and is not held up. What the client is told has ended
        # well it may open anywhere, also at a server that knows only what is stored.
        if lease.stream.slot >= 0:
            await self._desk.durable(lease, lease.stream.step)
        return "disconnected"

    async def _move(self, call: PredictCall, lease: Lease, stopping: Stopping) -> None:
        """Tells a client to move, once its stream is stored; raises why the stream has ended meanwhile."""
        if lease.stream.slot >= 0:
            try:
                await self._desk.durable(lease, lease.stream.step)
            except StoreBehind:
                call.left_unsaved += 1
        await call.tell(move=pb.Move(message=str(stopping)))

    async def _answer(
        self, call: PredictCall, lease: Lease, line: Line, timestep: Timestep | None, request: pb.PredictRequest | None
    ) -> bytes:
        """The answer to one timestep, or why it was refused; one that only protobuf could read is in the request."""
        stream = lease.stream
        step = timestep.step if timestep is not None else request.timestep.step if request is not None else 0
        try:
            if timestep is None:
                assert request is not None
                timestep = wire.decode_timestep(request.timestep)
            if stream.slot < 0:
                with call.share.room(stream.slots.spec):
                    await self._desk.wake(lease)
            prediction = await line.submit(lease, timestep)
            if call.sync:
                await self._desk.durable(lease, prediction.step)
        except (TimestepRefused, InvalidField, StoreUnavailable, TooManyStreams) as error:
            if lease.ended is not None:
                raise lease.ended from error
            # A stream that could not be woken has no number at hand; the client knows it.
            next_step = stream.step + 1 if stream.slot >= 0 else step
            return wire.encode_refusal(error, step, next_step).SerializeToString()
        durable_step = call.told_step = lease.durable_step
        if 2 * (prediction.step - durable_step) >= call.kept_max:
            self._desk.store_soon(lease)  # or the client has to wait for the next round once it keeps all that it may
        if wire.as_numbers(call.output_format, request is not None and bool(request.timestep.numbers)):
            message = wire.make_prediction(prediction, durable_step, stream.slots.spec, numbers=True)
            return pb.PredictResponse(prediction=message).SerializeToString()
        return wire.encode_prediction(prediction, durable_step)

    async def _end_of(self, call: PredictCall) -> None:
        """Waits a little until the client has half-closed; WrongOrder when it sends more, which would get lost in silence."""
        try:
            async with asyncio.timeout(HALF_CLOSE_SECONDS):
                message = await call.read()
        except TimeoutError:
            return
        if message is not None:
            raise WrongOrder("got a request after close, expected none: open the stream again to go on")

    async def _close(self, call: PredictCall, lease: Lease, message: pb.Close) -> CloseReason:
        """Ends the stream at its client's wish, once everything is stored."""
        stream = lease.stream
        if message.forget:
            step = stream.step if stream.slot >= 0 else lease.durable_step
            lease.on_end = None  # what ends it is the call's own doing
            await self._desk.forget(lease)
            await call.tell(closed=pb.Closed(step=step))
            return "forgotten"
        if stream.slot >= 0:
            await self._desk.durable(lease, stream.step)
        await call.tell(closed=pb.Closed(step=lease.durable_step, durable_step=lease.durable_step))
        return "closed"


def add_to_server(native: Native, server: Any) -> None:
    """Lets a grpc.aio server answer calls by `native`."""
    pb_grpc.add_TidegateServiceServicer_to_server(native, server)
    # The messages of these come and go as bytes: `wire` reads and writes most of them without protobuf.
    server.add_registered_method_handlers(
        pb.DESCRIPTOR.services_by_name["TidegateService"].full_name,
        {
            "Predict": grpc.stream_stream_rpc_method_handler(native.Predict),
            "PredictBlocks": grpc.stream_stream_rpc_method_handler(native.PredictBlocks),
        },
    )


def _unknown_kind() -> InvalidField:
    return InvalidField("kind", "got a request without one, expected timestep, open or close")
