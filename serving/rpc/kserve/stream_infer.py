"""`ModelStreamInfer`: timesteps of many sequences over one call.

The rules of this file:
1. Each request is answered once, in the order of the requests. An error is an answer; the call goes on.
2. Requests of one sequence are applied in their order. Those of different sequences run together, in one batch.
3. What only needs a batch is queued at once, without a task. To begin, resume, wake or end a sequence takes longer and
   has a task, which waits for the request before it in its sequence.
4. Requests that arrive while earlier ones are stored or answered wait for the next batch. Their answers could not be
   written earlier, and one call brings one request at a time: each would be a batch of its own.
5. At most `PENDING_MAX` requests and `PENDING_BYTES_MAX` bytes are pending. Then the call stops reading, and flow control
   throttles the client.
6. An answer to a timestep without a number waits until it is durable: its sender cannot know whether to send it again.
"""

import asyncio
from collections import deque
from time import perf_counter

from tidegate.core.access import Caller
from tidegate.core.errors import StepGap, Stopping, StoreBehind, StreamNotFound, TakenOver, TidegateError
from tidegate.core.spec import Key, Prediction, Timestep
from tidegate.core.streams import Lease
from tidegate.core.swap_policy import Moved
from tidegate.rpc.backend import CloseReason
from tidegate.rpc.background_queue import wait_for_end
from tidegate.rpc.call import Call, Context
from tidegate.rpc.kserve.codec import MOVED, RESUMED, ModelCodec, Selection, encode_parameter
from tidegate.rpc.kserve.decode import Request, SequenceFlags, decode_message, read_flags
from tidegate.rpc.kserve.errors import NotStored
from tidegate.rpc.kserve.messages import ModelStreamInferResponse
from tidegate.rpc.kserve.sequences import Sequences, check_stream_inputs, open_options, sequence_key
from tidegate.rpc.names import reason_name
from tidegate.rpc.status import error_message, wire_status
from tidegate.rpc.stream_quota import StreamQuota
from tidegate.rpc.time_slice import TimeSlice
from tidegate.rpc.varint import field

# A quarter of the queue of a model: four full batches. A client with more in flight would only wait longer.
PENDING_MAX = 1024
# As much as the longest message may have.
PENDING_BYTES_MAX = 4 << 20
# How many sequences a call holds. Beyond it the oldest one is released: its next request opens it again.
SEQUENCES_MAX = 1 << 14
INFER_RESPONSE = 2  # the field of a ModelStreamInferResponse


class Held:
    """A stream that the call has open. `over` tells that the call has ended it by request."""

    __slots__ = ("codec", "lease", "over", "queue", "stream")

    def __init__(self, lease: Lease, sequences: Sequences) -> None:
        self.lease = lease
        self.codec: ModelCodec = sequences.codec(lease.stream.slots.spec)
        self.queue = sequences.backend.queue(lease)
        self.stream = encode_parameter("stream_id", string_param=lease.stream.key.stream_id)
        self.over = False


class Sequence:
    """A sequence of the call. `last` is its last request; `task` the last of those that have a task."""

    __slots__ = ("held", "key", "last", "task")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.held: Held | None = None
        self.last: asyncio.Future[Prediction] | None = None
        self.task: asyncio.Task[Prediction] | None = None

    @property
    def idle(self) -> bool:
        """Whether every request was applied or refused."""
        return self.last is None or self.last.done()


class Pending:
    """A request that is not answered.

    It is refused when `error` is set. Else `future` returns its prediction; it is None until the request was started.
    """

    __slots__ = ("error", "future", "held", "notes", "request_id", "selection", "size", "started", "sync")

    def __init__(self, request_id: str, size: int, started: float) -> None:
        self.request_id = request_id
        self.size = size
        self.started = started
        self.error: TidegateError | None = None
        self.future: asyncio.Future[Prediction] | None = None
        self.held: Held
        self.selection: Selection
        self.sync = False
        self.notes = b""  # further parameters of its answer

    @property
    def settled(self) -> bool:
        """Whether it was refused or has run."""
        return self.error is not None or (self.future is not None and self.future.done())


class StreamInferCall(Call):
    """One call of `ModelStreamInfer`.

    With `status_errors` the first error ends the call with its gRPC status.
    """

    def __init__(
        self, sequences: Sequences, context: Context, caller: Caller, quota: StreamQuota, *, status_errors: bool
    ) -> None:
        super().__init__(context, caller)
        self._sequences = sequences
        self._backend = sequences.backend
        self._quota = quota
        self._status_errors = status_errors
        self._by_id: dict[str, Sequence] = {}
        self._tasks: set[asyncio.Task[Prediction]] = set()
        self._pending: deque[Pending] = deque()
        self._pending_bytes = 0
        self._waiting: list[tuple[Request, Pending]] = []  # those of the pending requests that were not started
        self._answering = False  # whether a prediction is being stored or written
        self._writing = False  # whether an answer is being written
        self._ending = False
        self._arrived = asyncio.Event()
        self._answered = asyncio.Event()  # an answer was written since the call waits for that
        self._writer: asyncio.Task[None]

    async def serve(self) -> None:
        """Answers until the client half-closes. Releases every stream, whatever happens.

        Raises:
            TidegateError: the call was asked to end, or got bytes that are not a request.

        """
        self._writer = asyncio.create_task(self._write_answers())
        self._writer.add_done_callback(self._on_writer_end)
        reason: CloseReason = "disconnected"
        try:
            while (message := await self.read()) is not None:
                self._accept(message, perf_counter())
                while len(self._pending) >= PENDING_MAX or self._pending_bytes >= PENDING_BYTES_MAX:
                    await self._wait_for_answer()
            while self._pending:
                await self._wait_for_answer()
            if errors := await self._wait_all_durable():
                raise errors[0]
        except Stopping:
            reason = "stopping"
            while self._pending and not self._writer.done():
                self._answered.clear()
                await self._answered.wait()
            self.left_unsaved = len(await self._wait_all_durable())
            raise
        except TidegateError:
            reason = "protocol"
            raise
        finally:
            await self._end_all(reason)

    async def _wait_for_answer(self) -> None:
        """Waits until an answer was written. Raises why the call was asked to end."""
        self._answered.clear()
        await self.wait_interruptibly(self._answered.wait)

    # Requests ---------------------------------------------------------------------------------------------------------

    def _accept(self, message: bytes, started: float) -> None:
        """Takes a request, and starts it unless it is to wait for others."""
        request = decode_message(message)
        pending = Pending(request.id, len(message), started)
        self._pending.append(pending)
        self._pending_bytes += pending.size
        self._arrived.set()
        if self._answering:
            self._waiting.append((request, pending))
        else:
            self._start(request, pending)

    def _start_waiting(self) -> None:
        """Starts the requests that have waited, in their order: nothing can be answered before others have run."""
        waiting, self._waiting = self._waiting, []
        for request, pending in waiting:
            self._start(request, pending)

    def _start(self, request: Request, pending: Pending) -> None:
        """Starts a request, or refuses it."""
        try:
            self._queue(request, read_flags(request), pending)
        except TidegateError as error:
            pending.error = error

    def _queue(self, request: Request, flags: SequenceFlags, pending: Pending) -> None:
        """Queues a timestep, at once or in a task. Raises the error with which it is refused at once."""
        sequence = self._by_id.get(flags.stream_id)
        if self.caller.tenant.limits_steps:
            self._sequences.access.take_steps(self.caller, 1)
        pending.sync = flags.step == 0 if flags.sync is None else flags.sync
        if sequence is not None and (sequence.task is None or sequence.task.done()):
            held = sequence.held
            if (
                held is not None
                and not (flags.start or flags.end)
                and held.lease.ended is None
                and not held.lease.stream.needs_wake
            ):
                sequence.last = pending.future = self._submit(held, request, flags, pending)
                return
        if sequence is None:
            sequence = self._add(flags.stream_id, request)
        task = asyncio.create_task(self._run(sequence, sequence.last, request, flags, pending))
        sequence.last = sequence.task = pending.future = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _submit(
        self, held: Held, request: Request, flags: SequenceFlags, pending: Pending
    ) -> "asyncio.Future[Prediction]":
        """Queues a timestep of a live stream. Raises TidegateError."""
        codec = held.codec
        codec.check_model(request, held.lease.stream.key.stream_id)
        pending.held = held
        pending.selection = codec.select(request)
        if codec.stream_inputs:
            check_stream_inputs(held.lease, codec.decode_stream_inputs(request, start=False))
        return held.queue.submit(held.lease, Timestep(flags.step, codec.decode_row(request)))

    async def _run(
        self,
        sequence: Sequence,
        previous: "asyncio.Future[Prediction] | None",
        request: Request,
        flags: SequenceFlags,
        pending: Pending,
    ) -> Prediction:
        """Applies a timestep whose sequence must be begun, resumed, woken or ended."""
        try:
            if previous is not None and not previous.done():
                await asyncio.wait([previous])
            held = await self._hold(sequence, request, flags, pending)
            if held.lease.stream.needs_wake:
                with self._quota.reserve_wake(held.lease):
                    moved = await self._backend.wake(held.lease)
                if moved is not Moved.NOT:
                    pending.notes += MOVED[moved]
                    held = sequence.held = Held(held.lease, self._sequences)
            prediction = await self._submit(held, request, flags, pending)
            if flags.end:
                await self._end(sequence, held)
            return prediction
        finally:
            if sequence.held is None and sequence.last is asyncio.current_task():
                del self._by_id[sequence.key.stream_id]

    def _add(self, stream_id: str, request: Request) -> Sequence:
        """Adds a sequence. Raises TidegateError when there can be none."""
        key = sequence_key(stream_id, request.model_name, self.caller)
        if len(self._by_id) >= SEQUENCES_MAX:
            oldest = next((sequence for sequence in self._by_id.values() if sequence.idle), None)
            if oldest is not None:
                self._release(oldest, "closed")
                del self._by_id[oldest.key.stream_id]
        sequence = self._by_id[stream_id] = Sequence(key)
        return sequence

    async def _hold(self, sequence: Sequence, request: Request, flags: SequenceFlags, pending: Pending) -> Held:
        """The stream of a sequence, open on this call. Raises TidegateError."""
        held = sequence.held
        if held is not None and (why := held.lease.ended) is not None:
            self._release(sequence, "taken_over")
            # Another connection may step or restart a sequence. Whatever else ended it, the client must learn of it.
            if not flags.start and not isinstance(why, TakenOver | StreamNotFound):
                raise why
            held = None
        if held is not None and not flags.start:
            return held
        served = await self._sequences.codec_of(request.model_name, request.model_version)
        inputs = served.decode_stream_inputs(request, start=flags.start)
        options = open_options(request.model_version, flags, inputs, sync=pending.sync)
        if flags.start:
            served.check_timestep(request)  # the old stream is deleted, so check everything first
            if held is not None:
                await self._end(sequence, held)
            opened = await self._sequences.begin(sequence.key, served.spec, self.caller, self._quota, options)
        else:
            model, version = request.model_name, request.model_version
            opened = await self._sequences.resume(sequence.key, model, version, self.caller, self._quota, options)
            pending.notes += RESUMED + MOVED[opened.moved]
        # No await may come between the open and this: from here on the call releases the lease when it ends.
        self._quota.leases.add(opened.lease)
        sequence.held = Held(opened.lease, self._sequences)
        return sequence.held

    async def _end(self, sequence: Sequence, held: Held) -> None:
        """Deletes the stream of a sequence that is over. Raises what ended the lease before."""
        held.over = True  # what was answered stays true, and waits no longer for the store
        try:
            await self._backend.delete(held.lease)
        except TidegateError:
            held.over = False
            raise
        self._release(sequence, "forgotten")

    def _release(self, sequence: Sequence, reason: CloseReason) -> None:
        held, sequence.held = sequence.held, None
        if held is not None:
            self._quota.leases.discard(held.lease)
            ended = held.lease.ended is not None and reason != "forgotten"
            self._backend.release(held.lease, "taken_over" if ended else reason)

    # Answers ----------------------------------------------------------------------------------------------------------

    async def _write_answers(self) -> None:
        """Writes the answers in order, until cancelled or, with `status_errors`, until the first error."""
        pending = self._pending
        while True:
            while pending:
                head = pending[0]
                if not head.settled:
                    self._start_waiting()
                answer = await self._answer(head)
                self._answering = self._writing = True
                await self.context.write(answer)
                self._answering = self._writing = False
                if self._ending:
                    return
                self._pending_bytes -= pending.popleft().size
                self._answered.set()
            self._arrived.clear()
            await self._arrived.wait()

    async def _answer(self, pending: Pending) -> bytes:
        """The answer to a request, or its error."""
        try:
            if pending.error is not None:
                raise pending.error
            assert pending.future is not None
            prediction = await pending.future
            self._answering = True
            held = pending.held
            if pending.sync and held.lease.durable_step < prediction.step:
                await self._wait_durable(held, prediction.step)
        except TidegateError as error:
            if self._status_errors:
                raise
            return encode_error(pending.request_id, error)
        response = held.codec.encode(
            pending.request_id,
            prediction,
            pending.selection,
            stream=held.stream,
            durable_step=held.lease.durable_step,
            notes=pending.notes,
        )
        held.queue.observe_step(perf_counter() - pending.started)
        return field(INFER_RESPONSE, response)

    async def _wait_durable(self, held: Held, step: int) -> None:
        """Waits until a timestep is stored, unless its sequence is over; others that will wait are stored with it."""
        if held.over:
            return
        for other in self._pending:
            if other.sync and other.future is not None and other.future.done():
                self._request_save(other, other.future)
        try:
            await self._backend.wait_durable(held.lease, step)
        except StoreBehind as error:
            raise NotStored(step, error) from error
        except TidegateError:
            if not held.over:
                raise

    def _request_save(self, pending: Pending, future: "asyncio.Future[Prediction]") -> None:
        if not future.cancelled() and future.exception() is None and pending.held.lease.ended is None:
            self._backend.request_save(pending.held.lease)

    def _on_writer_end(self, writer: "asyncio.Task[None]") -> None:
        """Ends the call when answers can no longer be written."""
        error = None if writer.cancelled() else writer.exception()
        if isinstance(error, Exception):
            self.end(error)
        self._answered.set()

    # The end ----------------------------------------------------------------------------------------------------------

    async def _wait_all_durable(self) -> list[StoreBehind]:
        """Waits until all streams of the call are stored. Returns an error for each that was not stored in time."""
        errors = []
        leases = [sequence.held.lease for sequence in self._by_id.values() if sequence.held is not None]
        time_slice = TimeSlice()
        for lease in leases:
            self._backend.request_save(lease)
            await time_slice.maybe_yield()
        for lease in leases:
            try:
                if lease.ended is None and lease.stream.slot >= 0:
                    await self._backend.wait_durable(lease, lease.stream.step)
            except StoreBehind as error:
                errors.append(error)
            except TidegateError:
                if lease.ended is None:
                    raise
                # Else the next request of the sequence would have told its client.
            await time_slice.maybe_yield()
        return errors

    async def _end_all(self, reason: CloseReason) -> None:
        """Stops all tasks and releases all streams, even when the call is cancelled again."""
        for pending in self._pending:
            if pending.future is not None:
                pending.future.add_done_callback(_ignore_error)
                pending.future.cancel()
        self._ending = True
        for task in self._tasks if self._writing else (self._writer, *self._tasks):
            task.cancel()
        try:
            # A write that has begun is completed: gRPC sends no status beside one that was cancelled, and the call hangs.
            await wait_for_end(asyncio.gather(self._writer, *self._tasks, return_exceptions=True))
        finally:
            for sequence in self._by_id.values():
                self._release(sequence, reason)


def _ignore_error(future: "asyncio.Future[Prediction]") -> None:
    """Marks the error of a request as seen: its client has disconnected."""
    if not future.cancelled():
        future.exception()


def encode_error(request_id: str, error: TidegateError) -> bytes:
    """The message of an error, with the id of its request."""
    response = ModelStreamInferResponse(error_message=error_message(error) or type(error).__name__)
    response.infer_response.id = request_id
    reason = wire_status(error, of_timestep=True).reason
    response.infer_response.parameters["reason"].string_param = reason_name(reason)
    if isinstance(error, StepGap):
        response.infer_response.parameters["next_step"].int64_param = error.expected
    return bytes(response.SerializeToString())
