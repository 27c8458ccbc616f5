"""The streams of a session: how they are opened, and how they end.

`tidegate.client.session.Session`, which makes the calls, is derived from the class here. `tidegate.client.window` keeps the timesteps.

Laws:
1. One open is in flight at a time: the rest of a block asks for the model that the first answer names.
2. A handle identifies its stream on one call only.
3. Streams are opened in the order in which they joined: of two with the same name, the later one keeps it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tidegate.client.call import Call, CallEnded
from tidegate.client.connection import Connection
from tidegate.client.errors import (
    ClientError,
    ModelMismatch,
    ServerUnavailable,
    StreamLost,
    StreamNotFound,
    StreamRefused,
    TakenOver,
    stream_error,
)
from tidegate.client.moves import MOVED, NEW_STATES, models_by_row, same_layout, states_by_row
from tidegate.client.results import Deliver
from tidegate.client.retry import Limits, PoisonDetector, Retry, RetryDeadlines
from tidegate.client.session_stream import SessionStream
from tidegate.client.types import decode_model, model_changed
from tidegate.client.window import Window
from tidegate.client.wire import OPEN_KINDS, encode_named, rows_max
from tidegate.core.spec import Ints
from tidegate.v1 import tidegate_pb2 as pb

log = logging.getLogger("tidegate.client")

# The protocol allows 65,536 names a message. With fewer, a slow store answers each message within `timeout_s`.
NAMES_MAX = 8192
# A request may have 4 MB, and the answer repeats the names and adds columns.
NAMES_BYTES_MAX = 1_000_000
# The bytes of a name without its text: its length, and its `resume_from`.
NAME_OVERHEAD_BYTES = 12
# The bytes of a message without its columns: their lengths.
MESSAGE_OVERHEAD_BYTES = 64
INITIAL_HANDLES = 64
# A call has 2 ** 20 handles and never reuses one. A call that has given out this many is replaced.
CALL_HANDLES_MAX = 1_000_000
# Marks a handle that was never given out.
UNASSIGNED = -1
# The limit of a server that does not report one.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# The step number of an open in `RetryDeadlines`.
OPEN_STEP = 0


class SessionStreams:
    """The streams of a session, and the `window` of their timesteps."""

    def __init__(self, connection: Connection, limits: Limits, deliver: Deliver) -> None:
        self.window = Window(limits.buffer_max, deliver)
        self.limits = limits
        self._connection = connection
        self._backoff = limits.backoff
        self._retry = Retry(limits, connection.may_be_reachable)
        self._deadlines = RetryDeadlines(limits.backoff)
        self._poison = PoisonDetector(self.window)
        self._call: Call | None = None
        self._calls = 0
        self._members: dict[int, SessionStream] = {}  # in the order in which they joined
        self._by_name: dict[str, int] = {}  # the latest opened stream of each name
        self._to_open: deque[int] = deque()
        self._opening: list[SessionStream] = []  # the streams of the open in flight
        self._to_close: set[int] = set()
        self._closing: deque[list[SessionStream]] = deque()  # the streams of each close in flight
        self._detached: list[int] = []  # handles of detached streams that are still open
        self._stream_by_handle: Ints = np.zeros(0, np.int64)
        self._message_bytes_max = MESSAGE_BYTES_MAX
        self._tasks: set[asyncio.Task[None]] = set()
        self._room: asyncio.Event | None = None  # while callers wait for room

    def has_open(self, stream_id: str) -> bool:
        """Whether a stream of that name is open."""
        return stream_id in self._by_name

    def wake(self) -> None:
        """Tells the call that there may be something to send."""
        if self._call is not None:
            self._call.wake()

    async def wait_for_room(self) -> None:
        """Waits until a resend buffer may have room, or streams have ended."""
        if self._room is None:
            self._room = asyncio.Event()
        await self._room.wait()

    def _notify_room(self) -> None:
        """Wakes the callers that wait for room."""
        if self._room is not None:
            self._room.set()
            self._room = None

    def _usable_members(self) -> list[SessionStream]:
        return [member for member in self._members.values() if self.window.usable[member.stream]]

    def _in_use(self, member: SessionStream) -> bool:
        return self._members.get(member.stream) is member and bool(self.window.usable[member.stream])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Starts a task that is cancelled with the call."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _schedule(self, seconds: float, then: Callable[[], None]) -> None:
        """Calls `then` after a delay, unless the call ends before."""

        async def wait() -> None:
            await self._backoff.sleep(seconds)
            then()
            self.wake()

        self._spawn(wait())

    # A call ------------------------------------------------------------------------------------------------------------

    def _begin_call(self) -> None:
        """Schedules all usable streams to be opened, and those that were being closed to be closed again."""
        self._calls += 1
        usable = self._usable_members()
        self.window.reset([member.stream for member in usable if self._only_forget_remains(member)])
        self.window.end_call()
        self._stream_by_handle = np.full(INITIAL_HANDLES, UNASSIGNED, np.int64)
        self._to_open = deque(self._members)
        self._to_close = {member.stream for member in usable if member.forget is not None}

    def _end_call(self) -> None:
        """Cancels the call, and clears what belongs to it."""
        if self._call is not None:
            self._call.cancel(StreamLost("the call has ended"))
            self._call = None
        for task in self._tasks:
            task.cancel()
        self._opening = []
        self._closing.clear()
        self._detached.clear()
        self.window.handles[:] = 0

    def _attached(self, handles: Ints) -> tuple[Ints, Ints]:
        """Returns the positions of the handles whose streams are still in use, and the streams.

        Raises:
            StreamLost: the server never gave out one of the handles.

        """
        known = len(handles) == 0 or handles.max() < len(self._stream_by_handle)
        streams = self._stream_by_handle[handles] if known else handles
        if not known or (streams == UNASSIGNED).any():
            raise StreamLost("the server sent a handle that it never gave out on this call", "WRONG_ORDER")
        ours = np.flatnonzero(self.window.handles[streams] == handles)
        return ours, streams[ours]

    # Opening -----------------------------------------------------------------------------------------------------------

    def _next_open(self) -> pb.OpenStreams | None:
        """The open to send now; None when there is none, or when one is in flight."""
        if self._opening or not (batch := self._next_open_batch()):
            return None
        self._opening = batch
        options = pb.OpenStreams()
        options.CopyFrom(batch[0].options)
        options.existence = self._existence(batch[0])
        options.independent = True  # blocks of other streams need not wait for it
        options.stream_ids.extend([member.stream_id for member in batch])
        options.inputs.extend(_input_columns(batch))
        streams = np.array([member.stream for member in batch], np.int64)
        resume_from = np.where(self.window.ever_opened[streams], self.window.first_kept(streams), 0)
        if options.accept_move and self.window.ever_opened[streams].any():
            options.answered.extend(
                np.where(self.window.ever_opened[streams], self.window.answered[streams], 0).tolist()
            )
        if self._only_forget_remains(batch[0]):
            resume_from[:] = 1
        if resume_from.any():
            options.resume_from.extend(resume_from.tolist())
        return options

    def _next_open_batch(self) -> list[SessionStream]:
        """The next streams that fit one message, in their order: with the same options, and each name once.

        A server may open the streams of one message in any order.
        """
        batch: list[SessionStream] = []
        names: set[str] = set()
        alike, size = b"", 0
        while self._to_open and len(batch) < NAMES_MAX:
            stream = self._to_open[0]
            member = self._members.get(stream)
            if member is None or not self.window.usable[stream] or self.window.open[stream]:
                self._to_open.popleft()
                continue
            this = bytes([self._existence(member), bool(member.forget)]) + member.options.SerializeToString()
            size += len(member.stream_id.encode()) + NAME_OVERHEAD_BYTES
            if member.inputs:
                this += repr([name for name, _ in member.inputs]).encode()
                size += sum(len(packed) for _, packed in member.inputs)
            size_max = min(NAMES_BYTES_MAX, self._message_bytes_max - len(this) - MESSAGE_OVERHEAD_BYTES)
            if batch and (this != alike or member.stream_id in names or size > size_max):
                break
            alike = this
            names.update([member.stream_id] if member.stream_id else ())
            batch.append(member)
            self._to_open.popleft()
        return batch

    def _existence(self, member: SessionStream) -> pb.Existence:
        if self._only_forget_remains(member):
            return pb.EXISTENCE_MUST_EXIST  # a stream that is missing was already forgotten
        return pb.EXISTENCE_UNSPECIFIED if self.window.ever_opened[member.stream] else member.options.existence

    def _only_forget_remains(self, member: SessionStream) -> bool:
        """Whether the stream only needs to be deleted: then it does not matter which timesteps the server still has."""
        return bool(member.forget and member.kind) and not self.window.has_waiters(np.array([member.stream])).any()

    def _on_opened(self, message: pb.OpenedStreams) -> None:
        requested, self._opening = self._opening, []
        if message.HasField("refused"):
            self._on_open_refused([(member, message.refused) for member in requested])
        else:
            opened = self._assign_handles(requested, message)
            if opened:
                self._activate(message, opened)
            self._on_open_refused([(requested[row.row], row.error) for row in message.errors])
        if not self._to_open:
            self._retry.on_opened()
            if self.window.drained and not self._to_close:
                self._retry.reset_deadline()
        if max(message.handles, default=0) > CALL_HANDLES_MAX:
            raise CallEnded(ServerUnavailable("the call has given out all its handles", "OK"))

    def _assign_handles(self, requested: list[SessionStream], message: pb.OpenedStreams) -> dict[int, SessionStream]:
        """Notes the answer for each stream. Returns the opened streams by row.

        Raises:
            StreamLost: the answer does not fit the request.

        """
        columns = (message.handles, message.kinds, message.next_steps, message.epochs, message.durable_steps)
        if not requested or {len(column) for column in (message.stream_ids, *columns)} != {len(requested)}:
            raise StreamLost(
                f"the server opened {len(message.stream_ids)} streams, which were not requested", "WRONG_ORDER"
            )
        self._message_bytes_max = message.message_bytes_max or self._message_bytes_max
        refused = {row.row for row in message.errors}
        opened: dict[int, SessionStream] = {}
        for row, (member, handle) in enumerate(zip(requested, message.handles, strict=True)):
            if row in refused:
                continue
            if not handle:
                raise StreamLost("the server opened a stream without a handle", "WRONG_ORDER")
            if handle >= len(self._stream_by_handle):
                self._stream_by_handle = np.concatenate([self._stream_by_handle, np.full(handle, UNASSIGNED, np.int64)])
            self._stream_by_handle[handle] = member.stream  # valid while `window.handles` agrees
            if not self._in_use(member):
                self._detached.append(handle)
                continue
            self.window.handles[member.stream] = handle
            opened[row] = member
            member.epoch = message.epochs[row]
            member.stream_id = message.stream_ids[row]
            member.kind = member.kind or OPEN_KINDS.get(message.kinds[row], str(message.kinds[row]))
        return opened

    def _activate(self, message: pb.OpenedStreams, opened: Mapping[int, SessionStream]) -> None:
        """Marks streams as open, and notifies their listeners."""
        models, states = models_by_row(message), states_by_row(message)
        wrong: dict[int, ClientError] = {}
        for row, member in opened.items():
            if member.model is not None and not (message.may_move and same_layout(member.model, models[row])):
                error = model_changed(f"stream '{member.stream_id}'", member.model, models[row])
                wrong.update({member.stream: error} if error is not None else {})
        rows = list(opened)
        streams = np.array([member.stream for member in opened.values()], np.int64)
        next_steps, durable_steps = (np.array(c, np.int64)[rows] for c in (message.next_steps, message.durable_steps))
        self.window.mark_opened(streams, next_steps, durable_steps, message.answers_remembered)
        if held := self._poison.streams_to_hold(streams.tolist()):
            self.window.hold(held)
            self._schedule(self._backoff.longest_s, lambda: self.window.release(held))
        self._lose(wrong, shared=True)
        if len(wrong) == len(streams):
            return
        model = models[rows[0]]
        buffer = self.window.buffer_of(model, rows_max(model, message.message_bytes_max), may_move=message.may_move)
        for row, member in opened.items():
            if member.stream not in wrong:
                self._deadlines.clear(member.stream, OPEN_STEP)
                member.options.model = model.name
                member.options.accept_move = message.may_move
                member.options.version = "" if message.may_move else model.version
                member.set_model(models[row], states.get(row, ""))
                member.listener.on_opened(member.place, buffer, self._calls)
                self._replace_older(member)

    def _on_moved(self, message: pb.MovedStreams) -> None:
        """Notes that the server has moved streams to another version."""
        model, moved = decode_model(message.model), NEW_STATES.get(message.new_state, MOVED)
        _, streams = self._attached(np.array(message.handles, np.int64))
        for stream in streams.tolist():
            self._members[stream].set_model(model, moved)

    def _replace_older(self, member: SessionStream) -> None:
        """Ends an older stream of the same name in this session."""
        older = self._by_name.get(member.stream_id, member.stream)
        self._by_name[member.stream_id] = member.stream
        if older != member.stream:
            self._lose({older: TakenOver(f"stream '{member.stream_id}' was opened again by this client", "TAKEN_OVER")})

    def _on_open_refused(self, refused: Iterable[tuple[SessionStream, pb.Error]]) -> None:
        """Decides whether streams whose open was refused are opened again later, or have failed."""
        waiting: list[SessionStream] = []
        wait_s = 0.0
        lost: dict[int, ClientError] = {}
        for member, reason in refused:
            if not self._in_use(member):
                continue
            error = stream_error(reason, StreamRefused)
            if error.action == pb.Error.ACTION_REOPEN:
                raise CallEnded(error)
            limit_s = self.limits.reconnect_s if member.kind else self.limits.open_s
            if error.action == pb.Error.ACTION_RETRY and self._deadlines.may_retry(member.stream, OPEN_STEP, limit_s):
                waiting.append(member)
                wait_s = max(wait_s, error.retry_after_s)
            elif isinstance(error, StreamNotFound) and self._only_forget_remains(member):
                self._mark_closed([member])
            elif isinstance(error, ModelMismatch) and member.listener.single_stream and not member.options.version:
                self._spawn(self._find_version(member, error))
            else:
                lost[member.stream] = error
        if waiting:
            self._schedule(
                self._backoff.jittered_s(wait_s),
                lambda: self._to_open.extend(member.stream for member in waiting if self._in_use(member)),
            )
        self._lose(lost)

    async def _find_version(self, member: SessionStream, error: ClientError) -> None:
        """Opens a stream again under the version that it runs under, when no version was requested."""
        request = pb.DescribeStreamRequest(stream_id=member.stream_id)
        try:
            found = (await self._connection.call_unary("DescribeStream", request)).stream
        except ClientError:
            found = pb.Stream()
        if not self._in_use(member):
            return
        if found.version and member.options.model in ("", found.model):
            member.options.model, member.options.version = found.model, found.version
            self._to_open.append(member.stream)
            self.wake()
        else:
            self._lose({member.stream: error})

    # The end -----------------------------------------------------------------------------------------------------------

    def _mark_closed(self, members: Sequence[SessionStream]) -> None:
        """Marks streams as closed on request."""
        streams = [member.stream for member in members]
        self.window.mark_closed(streams)
        self._to_close.difference_update(streams)
        for member in members:
            member.listener.on_closed(member.place)

    def _lose(self, errors: Mapping[int, ClientError], *, shared: bool = False) -> None:
        """Marks streams as lost; the others continue. With `shared` they end together."""
        errors = {stream: error for stream, error in errors.items() if self.window.usable[stream]}
        if not errors:
            return
        notified = self.window.mark_lost(errors, shared=shared)
        stream, error = next(iter(errors.items()))
        log.warning("%r: %d streams are lost; %s: %s", self, len(errors), self._members[stream].stream_id, error)
        for stream, error in errors.items():
            self._to_close.discard(stream)
            member = self._members[stream]
            member.listener.on_lost(member.place, error, notified=stream in notified, shared=shared)
        self._notify_room()

    def _fail(self, error: ClientError, streams: Iterable[int]) -> None:
        """Marks streams as lost because the call has failed."""
        self._lose(dict.fromkeys(streams, error), shared=True)


def _input_columns(members: Sequence[SessionStream]) -> list[pb.InputValues]:
    """The inputs that streams begin with, one after the other. All have the same names."""
    columns = zip(*(member.inputs for member in members), strict=True)
    return encode_named((column[0][0], b"".join(packed for _, packed in column)) for column in columns)
