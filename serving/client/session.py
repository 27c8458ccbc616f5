"""All streams of a client on one call. A session reopens a broken call, and delivers each prediction once and in order.

`tidegate.client.window` decides what to send and which timestep an answer belongs to, `tidegate.client.session_streams` opens
streams, `tidegate.client.call` reads and writes. This file keeps the call open and closes streams. Streams come and go at any time.

Laws:
1. One task a session reads, reopens and decides. Cancelling a caller does not affect the call.
2. What happens to one stream (it is refused, held or lost) does not affect the others.
3. What happens to the call (it breaks, or the server violates the protocol) affects all streams.
4. The task never ends silently: whatever ends it is raised to all callers, to the next `step`, or by `close`.
5. What callers submit in one turn of the event loop leaves in one message. While it is written, the next one is collected. No timer.
6. Everything is bounded: a first open by `timeout_s`, breaks and refusals by `reconnect_s` (a try that has begun may finish), and
   the resend buffer by `buffer_max`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tidegate.client.call import Call, CallEnded
from tidegate.client.connection import Connection
from tidegate.client.errors import (
    RETRY_ACTIONS,
    ClientError,
    ServerUnavailable,
    StreamLost,
    StreamNotFound,
    bug_error,
    stream_error,
)
from tidegate.client.message import SingleRowMessage
from tidegate.client.refusals import Decision, RefusalHandler
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.results import Delivery, Group, Waiter, deliver
from tidegate.client.retry import Limits, retries_exhausted
from tidegate.client.session_stream import SessionStream, StreamListener
from tidegate.client.session_streams import MESSAGE_OVERHEAD_BYTES, SessionStreams
from tidegate.client.tensors import StreamInputs
from tidegate.client.wire import decode_answers, decode_durable, encode_block, encode_single_row
from tidegate.v1 import tidegate_pb2 as pb

log = logging.getLogger("tidegate.client")

# A message costs both sides as much as some tens of rows. With a server on another core, splitting makes 128 streams 1.35 times as
# fast, and 1,000 streams 1.7 times.
SPLIT_ROWS_MIN = 32
# The limit of the protocol for one message, and the largest size of one handle.
HANDLES_MAX = 65_536
HANDLE_BYTES = 5
# The step number of a close in `RetryDeadlines`.
CLOSE_STEP = -2


class Session(SessionStreams):
    """The streams of a client that share a call."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        super().__init__(connection, limits, self._deliver)
        self._refusals = RefusalHandler(self.window, self._deadlines, limits.reconnect_s)
        self.check_process = connection.check_process
        # Looked up once: finding the running loop costs more than making a future.
        self._loop = asyncio.get_running_loop()
        self.future: Callable[[], asyncio.Future[Any]] = self._loop.create_future
        self._task: asyncio.Task[None] | None = None
        self._handlers: dict[str, Callable[[Any], None]] = {
            "opened": self._on_opened, "moved": self._on_moved, "ended": self._on_ended, "closed": self._on_closed,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<Session of {len(self._members)} streams, {self._calls} calls, {self.window!r}>"

    # Called by views --------------------------------------------------------------------------------------------------

    def open(
        self,
        options: pb.OpenStreams,
        stream_ids: Sequence[str],
        listener: StreamListener,
        inputs: Sequence[StreamInputs] = (),
    ) -> list[SessionStream]:
        """Opens streams. `listener` is notified of what happens to each. `inputs` has those that each stream begins with."""
        streams = self.window.add_streams(len(stream_ids))
        until = self._backoff.clock() + self.limits.open_s
        members = [
            SessionStream(stream, stream_id, options, listener, place, until, inputs[place] if inputs else ())
            for place, (stream, stream_id) in enumerate(zip(streams.tolist(), stream_ids, strict=True))
        ]
        self._members.update(zip(streams.tolist(), members, strict=True))
        self._to_open.extend(streams.tolist())
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self.wake()
        return members

    def submit(
        self, buffer: ResendBuffer, stream: int, values: bytes, waiter: Waiter, group: Group | None = None
    ) -> None:
        """Sends a timestep of a usable stream for which there is room."""
        self.window.add_single(buffer, stream, values, waiter, group)
        if self._call is not None:
            self._call.wake()

    def close(self, members: Sequence[SessionStream], *, forget: bool) -> None:
        """Closes streams once their timesteps are answered, and notifies their listeners. Ignores streams that were detached."""
        for member in members:
            member.forget = forget
            self._to_close.update([member.stream] if self._in_use(member) else [])
        self.wake()

    def detach(self, members: Sequence[SessionStream]) -> None:
        """Gives streams up. Open ones are closed in the background, and the server parks them."""
        streams = [member.stream for member in members if self._members.get(member.stream) is member]
        handles = [handle for handle in self.window.handles[streams].tolist() if handle]
        self._detached += handles
        left = StreamLost("the stream was left; open it again to continue")
        self.window.mark_lost({stream: left for stream in streams if self.window.usable[stream]}, shared=True)
        for stream in streams:
            self._to_close.discard(stream)
            self._deadlines.clear(stream)  # another stream may get this index
            self._poison.forget(stream)
            name = self._members.pop(stream).stream_id
            if self._by_name.get(name) == stream:
                del self._by_name[name]
        self.window.release_indices(np.array(streams, np.int64))
        self._notify_room()
        if (handles or self._opening) and not self.window.usable_count and self._call is not None:
            # The server parks all streams of a call that ends. Streams that join before its end are opened on the next call.
            self._call.cancel(ServerUnavailable("all streams of the call were left", "CANCELLED"))
        self.wake()

    async def stop(self) -> None:
        """Ends the call and the task. The server parks open streams."""
        if self._call is not None:
            self._call.cancel(StreamLost("the streams were left"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail(StreamLost("the client was closed; make another one to continue"), self._members)

    # The task ----------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keeps a call open while there are streams."""
        while self.window.usable_count:
            try:
                await self._run_call()
            except CallEnded as ended:
                if self.window.usable_count:
                    await self._wait_for_retry(ended.error)
            except asyncio.CancelledError:
                self._fail(
                    StreamLost("the client's task was cancelled; open the stream again to continue"), self._members
                )
                raise
            except ClientError as error:
                self._fail(error, self._members)
            except Exception as bug:  # noqa: BLE001 - whatever it is, no caller may wait for ever
                self._fail(bug_error(bug), self._members)
            finally:
                self._end_call()
        self._task = None

    async def _run_call(self) -> None:
        """Runs one call from its open to its end.

        Raises:
            CallEnded: it ended, and streams are left that can still be used.

        """
        self._begin_call()
        reopens = any(member.kind for member in self._members.values())
        call = self._call = Call(self._connection.stub.PredictBlocks, self._next_request, reopens=reopens)
        try:
            while self.window.usable_count or self._closing:
                self._on_response(call, await call.read())
        except CallEnded as ended:
            call.cancel(ended.error)  # this side may have ended it
            raise
        await call.finish(self.limits.timeout_s)

    async def _wait_for_retry(self, error: ClientError) -> None:
        """Waits before the next call. Fails the streams for which the error is final."""
        reopens = error.action in RETRY_ACTIONS
        late = self._poison.record_disconnect(self._backoff.clock(), self._retry.tries, self.limits.reconnect_s)
        self._fail(retries_exhausted(error, self.limits.reconnect_s), late)
        self.window.end_call()
        requested = {id(member.options) for member in self._opening if not member.kind}
        if requested and not reopens:
            # The server ended the call because of this open request. The other streams are opened again at once.
            self._fail(error, [m.stream for m in self._members.values() if id(m.options) in requested and not m.kind])
            return
        self._end_call()
        try:
            await self._retry.wait(error, repr(self), self._expire_opens)
        except ClientError as final:
            now = self._backoff.clock()
            self._fail(final, [m.stream for m in self._members.values() if not reopens or m.kind or m.until <= now])
            self._retry.reset_deadline()

    def _expire_opens(self, error: ClientError, now: float) -> float:
        """Fails the first opens whose time is over. Returns the next deadline, `now` when no stream is left."""
        waiting = {member.stream: member.until for member in self._usable_members() if not member.kind}
        late = [stream for stream, until in waiting.items() if until <= now]
        if late:
            self._fail(retries_exhausted(error, self.limits.open_s), late)
        if not self.window.usable_count:
            return now
        return min((until for until in waiting.values() if until > now), default=float("inf"))

    def _on_progress(self) -> None:
        """Notes that a caller got an answer."""
        self._retry.on_progress()
        self._poison.on_progress()

    def _deliver(self, delivery: Delivery) -> None:
        """Completes callers with their predictions.

        With many callers and nothing else in flight, half of them come first. What they submit reaches the server while the others
        run; otherwise the server would be idle.
        """
        if len(delivery) >= SPLIT_ROWS_MIN and not self.window.in_flight:
            half = len(delivery) // 2
            deliver(delivery[:half])
            self._loop.call_soon(deliver, delivery[half:])
        else:
            deliver(delivery)

    # Requests and responses --------------------------------------------------------------------------------------------

    def _next_request(self) -> pb.PredictBlocksRequest | None:
        """The request to send now; None when there is none."""
        assert self._call is not None
        if self._to_open and (options := self._next_open()) is not None:
            self._call.set_timeout(self.limits.timeout_s, "answer to open")
            return pb.PredictBlocksRequest(open=options)
        if self.window.has_unsent and (message := self.window.next_message()) is not None:
            if isinstance(message, SingleRowMessage):
                return encode_single_row(message, self.window.handles.item(message.stream))
            return encode_block(message, self.window.handles[message.streams])
        if (self._to_close or self._detached) and (close := self._next_close()) is not None:
            self._call.set_timeout(self.limits.timeout_s, "answer to close")
            return pb.PredictBlocksRequest(close=close)
        return None

    def _on_response(self, call: Call, response: pb.PredictBlocksResponse) -> None:
        """Handles a response. Kinds that this client does not know are ignored."""
        kind = response.WhichOneof("kind")
        if kind == "block":
            self._on_block(response.block)
        elif kind == "durable":
            handles, durable_steps = decode_durable(response.durable)
            ours, streams = self._attached(handles)
            self.window.mark_durable(streams, durable_steps[ours])
        elif kind in self._handlers:
            self._handlers[kind](getattr(response, kind))
        elif kind == "move":
            log.info("%r is asked to move: %s", self, response.move.message)
            call.half_close()
            call.set_timeout(self.limits.timeout_s, "end of the call after move")
        if kind in ("opened", "closed") and not (self._opening or self._closing or call.half_closed):
            call.clear_timeout()
        if self._room is not None:
            self._notify_room()
        if self.window.has_unsent or self._to_close or self._detached or self._to_open:
            call.wake()  # an answer makes room for what is next

    def _on_block(self, block: pb.PredictedBlock) -> None:
        message = self.window.match_answer(block.block)
        if block.HasField("refused"):
            self._apply(self._refusals.handle_message(message, block.refused))
            return
        if isinstance(message, SingleRowMessage) and not (block.errors or block.forgotten_rows or block.duplicate_rows):
            durable_step = int.from_bytes(block.durable_steps, "little")
            if self.window.settle_single_row(message, block.steps, block.outputs, durable_step):
                self._deadlines.clear(message.stream, message.step)
                self._on_progress()
                return
        answers = decode_answers(message, message.buffer.model.outputs, block)
        errors = {row.row: row.error for row in block.errors}
        if message.repeats:
            self._apply(self._refusals.handle_repeats(message, answers, errors))
            return
        outcome = self.window.settle(message, answers)
        self._lose(outcome.diverged)
        if self._deadlines.active:
            applied = (message.at >= 0) & ~answers.refused
            for stream, step in zip(message.streams[applied].tolist(), message.steps[applied].tolist(), strict=True):
                self._deadlines.clear(stream, step)
        if len(rows := outcome.refused[self.window.usable[message.streams[outcome.refused]]]):
            self._apply(self._refusals.handle_rows(message, rows, [errors[row] for row in rows.tolist()]))
        if outcome.delivered or self.window.drained:
            self._on_progress()

    def _apply(self, decision: Decision) -> None:
        """Carries out a decision about refused timesteps."""
        self._lose(decision.lost, shared=decision.shared)
        if len(decision.held):
            wait_s = self._backoff.jittered_s(decision.retry_after_s)
            self._schedule(wait_s, lambda: self.window.release(decision.held))
        if decision.notified:
            self._on_progress()

    def _on_ended(self, message: pb.EndedStreams) -> None:
        """Handles streams that no longer belong to this call."""
        error = stream_error(message.error, StreamLost)
        if error.action in RETRY_ACTIONS:
            raise CallEnded(error)
        _, streams = self._attached(np.array(message.handles, np.int64))
        self.window.handles[streams] = 0
        self._lose(dict.fromkeys(streams.tolist(), error))

    # Closing -----------------------------------------------------------------------------------------------------------

    def _next_close(self) -> pb.CloseStreams | None:
        """The close to send now: of streams without pending timesteps, or of detached ones."""
        handles_max = max(1, min(HANDLES_MAX, (self._message_bytes_max - MESSAGE_OVERHEAD_BYTES) // HANDLE_BYTES))
        if self._detached:
            handles, self._detached = self._detached[:handles_max], self._detached[handles_max:]
            self._closing.append([])
            return pb.CloseStreams(handles=handles, independent=True)
        streams = np.array(sorted(self._to_close), np.int64)
        idle = [self._members[s] for s in streams[self.window.open[streams] & self.window.idle(streams)].tolist()]
        if not idle:
            return None
        batch = [member for member in idle if member.forget == idle[0].forget][:handles_max]
        streams = np.array([member.stream for member in batch], np.int64)
        self._to_close.difference_update(streams.tolist())
        self._closing.append(batch)
        return pb.CloseStreams(
            handles=self.window.handles[streams].tolist(), forget=bool(batch[0].forget), independent=True
        )

    def _on_closed(self, message: pb.ClosedStreams) -> None:
        """Handles the answer to a close.

        Raises:
            CallEnded: no close was sent, or some streams must be opened again, as less is stored than was answered.
            StreamLost: the answer does not fit the request.

        """
        if not self._closing:
            raise CallEnded(ServerUnavailable("the server closed streams without a request", "OK"))
        members = self._closing.popleft()
        if not members:
            return
        if len(message.durable_steps) != len(members):
            count = len(message.durable_steps)
            raise StreamLost(f"the server closed {count} streams, requested were {len(members)}", "WRONG_ORDER")
        errors = {row.row: stream_error(row.error, StreamLost) for row in message.errors}
        behind = 0
        finished: list[SessionStream] = []
        for row, member in enumerate(members):
            if self._in_use(member):
                self.window.mark_durable(np.array([member.stream]), np.array([message.durable_steps[row]]))
                behind += not self._finish_close(member, errors.get(row), finished)
        self._mark_closed(finished)
        if behind:
            text = f"the server closed the streams, and {behind} of them are not stored up to their last answer"
            raise CallEnded(ServerUnavailable(text, "STORE_UNAVAILABLE"))

    def _finish_close(self, member: SessionStream, error: ClientError | None, finished: list[SessionStream]) -> bool:
        """Handles the close of one stream; a finished one is added to `finished`. Returns False when it must be opened again."""
        stream, reconnect_s = member.stream, self.limits.reconnect_s
        if error is None:
            self.window.handles[stream] = 0
            if not member.forget and self.window.durable_steps[stream] < self.window.answered[stream]:
                return False
            finished.append(member)
        elif member.forget and isinstance(error, StreamNotFound):
            finished.append(member)
        elif error.action == pb.Error.ACTION_REOPEN:
            return False
        elif error.action != pb.Error.ACTION_RETRY:
            self._lose({stream: error})
        elif self._deadlines.may_retry(stream, CLOSE_STEP, reconnect_s):
            wait_s = self._backoff.jittered_s(error.retry_after_s)
            self._schedule(wait_s, partial(self.close, [member], forget=bool(member.forget)))
        else:
            self._lose({stream: retries_exhausted(error, reconnect_s)})
        return True
