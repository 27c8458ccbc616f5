"""The servicer of `protos/tidegate/v1`.

Each call is one coroutine that reads a request, has it answered, and writes the answer.

A `Predict` call has one timestep in flight: it reads the next one after it has written the answer. So a stream's order
needs no bookkeeping. A client that reads slowly or floods is throttled by flow control, and harms nobody else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

import grpc

from tidegate.core.access import Caller
from tidegate.core.errors import (
    InvalidField,
    Stopping,
    StoreBehind,
    StoreUnavailable,
    TidegateError,
    TimestepRefused,
    TooManyStreams,
    WrongOrder,
)
from tidegate.core.handle_table import CLIENT_BUFFER_DEFAULT
from tidegate.core.spec import Key, Timestep
from tidegate.core.stream_id import check_stream_id
from tidegate.core.streams import Lease
from tidegate.core.swap_policy import Moved
from tidegate.rpc import wire
from tidegate.rpc.admin import AdminServicer
from tidegate.rpc.backend import Access, AdminBackend, CloseReason, StepQueue, StreamBackend, VersionBackend
from tidegate.rpc.call import OPEN_SECONDS, Call, Context
from tidegate.rpc.identify import identify_or_abort
from tidegate.rpc.open_calls import OpenCalls
from tidegate.rpc.predict_blocks import PredictBlocksCall
from tidegate.rpc.predict_one import PredictOneHandler
from tidegate.rpc.status import abort
from tidegate.rpc.stream_quota import StreamQuota
from tidegate.rpc.timestep_reader import read_with
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

# A client half-closes with its close, or a round trip later. After this time the call ends without waiting for it.
HALF_CLOSE_SECONDS = 1.0


class PredictCall(Call):
    """One call of `Predict`. Others may ask it to end, or to tell its client which timestep is durable."""

    def __init__(self, context: Context, caller: Caller, quota: StreamQuota) -> None:
        super().__init__(context, caller)
        self.quota = quota
        self.write: Callable[[bytes], Awaitable[None]] = context.write
        self.lease: Lease | None = None
        self.queue: StepQueue
        self.client_buffer_max = CLIENT_BUFFER_DEFAULT
        self.reported_step = 0
        self.durable_rose = False  # while an answer was pending, so that nothing was sent
        self.sync = False
        self.output_format: int = pb.OUTPUT_FORMAT_UNSPECIFIED

    def on_lease_end(self, lease: Lease) -> None:
        """Ends the call because its lease has ended."""
        assert lease.ended is not None
        self.end(lease.ended)

    def on_durable(self) -> None:
        """Sends the durable step, if no answer that carries it is pending and the client may be waiting for it."""
        if not self.reading or self.notification is not None:
            self.durable_rose = True
        elif self.durable_is_due:
            self.start_notification(self.send_durable())

    @property
    def durable_is_due(self) -> bool:
        """Whether so many timesteps have become durable since the last report that the client may be waiting for it."""
        assert self.lease is not None
        return 2 * (self.lease.durable_step - self.reported_step) >= self.client_buffer_max

    async def send_durable(self) -> None:
        """Sends the durable step."""
        assert self.lease is not None
        self.reported_step = self.lease.durable_step
        await self.respond(durable=pb.Durable(durable_step=self.reported_step))

    async def respond(self, **kind: Any) -> None:
        """Writes a response of the given kind."""
        await self.write(pb.PredictResponse(**kind).SerializeToString())


class TidegateServicer(AdminServicer):
    """Serves `tidegate.v1`. A request has at most `message_bytes_max` bytes."""

    def __init__(
        self,
        backend: StreamBackend,
        admin: AdminBackend,
        access: Access,
        versions: VersionBackend,
        calls: OpenCalls,
        *,
        message_bytes_max: int,
    ) -> None:
        super().__init__(admin, access, versions)
        self._backend = backend
        self._predict_one = PredictOneHandler(backend, access)
        self._message_bytes_max = message_bytes_max
        self._calls = calls

    async def Predict(self, _: object, context: Context) -> None:  # noqa: N802 - named by the protocol
        """Runs one stream; see the proto file."""
        caller = await identify_or_abort(self.access, context)
        call = PredictCall(context, caller, self._calls.quota(context))
        self._calls.add(call)
        reason: CloseReason = "disconnected"
        try:
            self._calls.check_accepting()
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
            pass  # a write failed because the call has ended: the client has disconnected
        finally:
            if call.lease is not None:
                self._backend.release(call.lease, reason)
                call.quota.leases.discard(call.lease)
                call.lease.on_end = call.lease.on_durable = (
                    None  # break the reference cycle, so that no collection is needed
                )
            self._calls.remove(call)

    async def PredictOne(self, request: pb.PredictOneRequest, context: Context) -> pb.PredictOneResponse:  # noqa: N802 - as above
        """Runs one timestep of one stream; see the proto file."""
        caller = await identify_or_abort(self.access, context)
        call = Call(context, caller)  # so that `drain` waits for it
        self._calls.add(call)
        try:
            self._calls.check_accepting()
            return await self._predict_one.predict(request, caller, self._calls.quota(context))
        except TidegateError as error:
            await abort(context, error)
        finally:
            self._calls.remove(call)

    async def PredictBlocks(self, _: object, context: Context) -> None:  # noqa: N802 - named by the protocol
        """Runs many streams; see the proto file."""
        caller = await identify_or_abort(self.access, context)
        quota = self._calls.quota(context)
        call = PredictBlocksCall(self._backend, self.access, context, caller, quota, self._message_bytes_max)
        self._calls.add(call)
        try:
            self._calls.check_accepting()
            await call.serve()
        except TidegateError as error:
            await abort(context, error)
        except grpc.aio.InternalError:
            pass  # as above
        finally:
            self._calls.remove(call)

    async def _open(self, call: PredictCall) -> Lease:
        """Reads the first message and opens the stream."""
        message = await call.read_within(OPEN_SECONDS, "open")
        if message is None:
            raise WrongOrder("the call ended before its first message, expected an open")
        request = wire.decode_request(message)
        kind = request.WhichOneof("kind")
        if kind is None:
            raise _unknown_kind()
        if kind != "open":
            raise WrongOrder(f"the first message is {kind}, expected open")
        open_message = request.open
        if open_message.stream_id:
            check_stream_id(open_message.stream_id)
        call.sync = wire.decode_sync(open_message.durability)
        call.client_buffer_max = open_message.kept_max or CLIENT_BUFFER_DEFAULT
        call.output_format = wire.decode_output_format(open_message.output_format)
        key = Key(call.caller.tenant.name, open_message.stream_id)
        self.access.take_open(call.caller)
        with call.quota.reserve():
            result = await self._backend.open(
                key, open_message.model, open_message.version, wire.decode_open_options(open_message)
            )
        # No await may come between the open and this: from here on the call releases the lease when it ends.
        lease = call.lease = result.lease
        call.quota.leases.add(lease)
        lease.on_end = call.on_lease_end
        lease.on_durable = call.on_durable
        call.reported_step = lease.durable_step
        call.queue = self._backend.queue(lease)
        stream = lease.stream
        model = await self._backend.model(stream.slots.spec.name, stream.slots.spec.version)
        await call.respond(
            opened=pb.Opened(
                stream_id=stream.key.stream_id,
                kind=wire.OPEN_KINDS[result.kind],
                next_step=result.next_step,
                epoch=stream.epoch,
                durable_step=lease.durable_step,
                answers_remembered=result.answers_remembered,
                owner_changed=result.owner_changed,
                message_bytes_max=self._message_bytes_max,
                model=wire.encode_model(model.spec, batch_invariant=model.batch_invariant),
                new_state=wire.NEW_STATES[result.moved],
            )
        )
        return lease

    async def _serve(self, call: PredictCall, lease: Lease) -> CloseReason:
        """Answers timesteps until the stream is closed or the client half-closes. Returns the reason."""
        read_timestep = read_with(lease.stream.slots.layout)
        while (message := await call.read()) is not None:
            started = perf_counter()
            timestep = read_timestep(message)
            request = wire.decode_request(message) if timestep is None else None
            if request is None or request.HasField("timestep"):
                await call.write(await self._answer(call, lease, timestep, request))
                call.queue.observe_step(perf_counter() - started)
                if call.durable_rose:  # perhaps while the answer was being sent
                    call.durable_rose = False
                    if call.durable_is_due:
                        await call.send_durable()
            elif request.HasField("close"):
                reason = await self._close(call, lease, request.close)
                await self._wait_for_half_close(call)
                return reason
            elif request.HasField("open"):
                raise WrongOrder(
                    f"stream '{lease.stream.key.stream_id}' is open already, expected timesteps or a close"
                )
            else:
                raise _unknown_kind()
        # The client has half-closed. A cancelled call looks the same here, and is not delayed. After an OK the client
        # may open the stream at any server, which knows only what is stored.
        if lease.stream.slot >= 0:
            await self._backend.wait_durable(lease, lease.stream.step)
        return "disconnected"

    async def _move(self, call: PredictCall, lease: Lease, stopping: Stopping) -> None:
        """Sends `move` once the stream is stored. Raises what ended the lease meanwhile."""
        if lease.stream.slot >= 0:
            try:
                await self._backend.wait_durable(lease, lease.stream.step)
            except StoreBehind:
                call.left_unsaved += 1
        await call.respond(move=pb.Move(message=str(stopping)))

    async def _answer(
        self,
        call: PredictCall,
        lease: Lease,
        timestep: Timestep | None,
        request: pb.PredictRequest | None,
    ) -> bytes:
        """The answer to one timestep, or its refusal.

        `timestep` is None when only protobuf could decode it; then `request` has it.
        """
        stream = lease.stream
        try:
            if timestep is None:
                assert request is not None
                timestep = wire.decode_timestep(request.timestep, stream.slots.layout)
            if call.caller.tenant.limits_steps:
                self.access.take_steps(call.caller, 1)
            if stream.needs_wake:
                await self._wake(call, lease)
            prediction = await call.queue.submit(lease, timestep)
            if call.sync:
                await self._backend.wait_durable(lease, prediction.step)
        except (TimestepRefused, InvalidField, StoreUnavailable, TooManyStreams) as error:
            if lease.ended is not None:
                raise lease.ended from error
            step = timestep.step if timestep is not None else request.timestep.step if request is not None else 0
            # A stream that could not be woken has no step at hand. The client knows it.
            next_step = stream.step + 1 if stream.slot >= 0 else step
            return wire.encode_refusal(error, step, next_step).SerializeToString()
        durable_step = call.reported_step = lease.durable_step
        if 2 * (prediction.step - durable_step) >= call.client_buffer_max:
            self._backend.request_save(
                lease
            )  # else the client would have to wait for the next checkpoint when its buffer is full
        if wire.as_numbers(call.output_format, request is not None and bool(request.timestep.numbers)):
            message = wire.make_prediction(prediction, durable_step, stream.slots.spec, numbers=True)
            return pb.PredictResponse(prediction=message).SerializeToString()
        return wire.encode_prediction(prediction, durable_step)

    async def _wake(self, call: PredictCall, lease: Lease) -> None:
        """Makes the stream ready for a timestep. Tells the client when it has moved to another version."""
        with call.quota.reserve_wake(lease):
            moved = await self._backend.wake(lease)
        if moved is not Moved.NOT:
            call.queue = self._backend.queue(lease)
            spec = lease.stream.slots.spec
            model = await self._backend.model(spec.name, spec.version)
            await call.write(wire.encode_moved(spec, moved, batch_invariant=model.batch_invariant))

    async def _wait_for_half_close(self, call: PredictCall) -> None:
        """Waits briefly until the client half-closes.

        Raises WrongOrder when the client sends more, which would otherwise get lost without an error.
        """
        try:
            async with asyncio.timeout(HALF_CLOSE_SECONDS):
                message = await call.read()
        except TimeoutError:
            return
        if message is not None:
            raise WrongOrder("got a request after close, expected none: open the stream again to continue")

    async def _close(self, call: PredictCall, lease: Lease, message: pb.Close) -> CloseReason:
        """Closes the stream for the client, once it is stored."""
        stream = lease.stream
        if message.forget:
            step = stream.step if stream.slot >= 0 else lease.durable_step
            lease.on_end = None  # the call ends the lease itself
            await self._backend.delete(lease)
            await call.respond(closed=pb.Closed(step=step))
            return "forgotten"
        if stream.slot >= 0:
            await self._backend.wait_durable(lease, stream.step)
        await call.respond(closed=pb.Closed(step=lease.durable_step, durable_step=lease.durable_step))
        return "closed"


def add_to_server(servicer: TidegateServicer, server: Any) -> None:
    """Registers the servicer with a grpc.aio server."""
    pb_grpc.add_TidegateServiceServicer_to_server(servicer, _ByteStreams(servicer, server))


class _ByteStreams:
    """Stands between the generated code and the server. The streaming methods exchange bytes: `wire` needs protobuf for few.

    It replaces the handlers before the server gets them. Of two handlers for one method, an older grpcio takes the first. It
    also knows generic handlers only, and a newer one asks those last.
    """

    def __init__(self, servicer: TidegateServicer, server: Any) -> None:
        self._server = server
        self._streaming = {
            "Predict": grpc.stream_stream_rpc_method_handler(servicer.Predict),
            "PredictBlocks": grpc.stream_stream_rpc_method_handler(servicer.PredictBlocks),
        }

    def add_generic_rpc_handlers(self, _: Any) -> None:
        """Ignores them: `add_registered_method_handlers` gets the same handlers and registers both kinds."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Registers the handlers of a service."""
        handlers = {**handlers, **self._streaming}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        self._server.add_registered_method_handlers(service, handlers)


def _unknown_kind() -> InvalidField:
    return InvalidField("kind", "got a request without one, expected timestep, open or close")
