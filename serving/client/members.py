"""The streams of a session: opens, closes and ends them.

It is the base of `tidegate.client.session.Session`, which makes the calls. `tidegate.client.window` keeps the timesteps.

Laws:
1. One open is in flight at a time: what the first says of the model is asked for by the rest of its block.
2. A handle stands for its stream on its call only.
3. Streams are opened in the order in which they joined: of two under one name the later one has it in the end.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tidegate.client.buffer import Buffer
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
    ending_of,
)
from tidegate.client.results import Deliver
from tidegate.client.retry import Breaks, Limits, Retry, Shortage
from tidegate.client.types import Model, difference, model_of
from tidegate.client.window import Window
from tidegate.client.wire import KINDS, rows_max
from tidegate.core.spec import Ints
from tidegate.v1 import tidegate_pb2 as pb

log = logging.getLogger("tidegate.client")

# The protocol allows 65,536 names a message; fewer are opened by a slow store within `timeout_s`, and it tells of each lot.
NAMES_MAX = 8192
# A message may have 4 MB; the answer repeats the names and adds columns.
NAMES_BYTES_MAX = 1_000_000
# What a name has beside its bytes: its length, and the first step that is kept.
NAME_BYTES = 12
# What a message has beside its columns: their lengths.
FRAME_BYTES = 64
HANDLES_FIRST = 64
# A call never gives a handle twice, and has 2 ** 20 of them; one that has given so many is replaced.
HANDLES_A_CALL_MAX = 1_000_000
# What stands for a handle that was never given.
NEVER = -1
# What a server reads that does not say.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# The number by which `Shortage` knows a stream that could not be opened; others are of timesteps.
OPEN = 0


class View(Protocol):
    """Whoever has streams in a session; `place` says which of them. `alone` says that there is one only."""

    model: Model
    alone: bool

    def on_opened(self, place: int, buffer: Buffer, call: int) -> None:
        """A stream was opened on the call of that number; its timesteps go into that buffer."""

    def on_lost(self, place: int, error: ClientError, *, told: bool, whole: bool) -> None:
        """A stream can no longer be used; `told` says whether a caller knows, `whole` that it ended with all of the session."""

    def on_closed(self, place: int) -> None:
        """A stream was closed, as was asked."""


@dataclass(slots=True, eq=False)
class Member:
    """A stream of a session.

    Attributes:
        stream: its index, which another has once nobody uses this one any more.
        stream_id: its name; empty until the server has issued one.
        ask: what is asked when it is opened; one for all of a block.
        view: whose it is.
        place: which of that view's it is.
        until: when to give up on its first open.
        kind: how it was found: "new", "resumed" or "taken_over"; empty while it was never open.
        epoch: rises with every open.
        forget: whether the server drops it when it is closed; None while it is not being closed.

    """

    stream: int
    stream_id: str
    ask: pb.OpenStreams
    view: View
    place: int
    until: float
    kind: str = ""
    epoch: int = 0
    forget: bool | None = None


class Members:
    """The streams of a session, and the `window` of their timesteps."""

    def __init__(self, connection: Connection, limits: Limits, deliver: Deliver) -> None:
        self.window = Window(limits.buffer_max, deliver)
        self.limits = limits
        self._connection = connection
        self._backoff = limits.backoff
        self._retry = Retry(limits, connection.may_be_up)
        self._shortage = Shortage(limits.backoff)
        self._breaks = Breaks(self.window)
        self._call: Call | None = None
        self._calls = 0
        self._members: dict[int, Member] = {}  # those that somebody uses, in the order in which they joined
        self._by_name: dict[str, int] = {}  # the latest stream under each name that was opened
        self._to_open: deque[int] = deque()
        self._opening: list[Member] = []  # of the open in flight
        self._to_close: set[int] = set()
        self._closing: deque[list[Member]] = deque()  # of each close in flight
        self._left: list[int] = []  # handles of open streams that nobody uses any more
        self._streams: Ints = np.zeros(0, np.int64)  # by handle
        self._message_bytes_max = MESSAGE_BYTES_MAX
        self._waits: set[asyncio.Task[None]] = set()
        self._freed: set[asyncio.Future[None]] = set()  # who waits for room

    def has(self, stream_id: str) -> bool:
        """Whether a stream of that name is open."""
        return stream_id in self._by_name

    def wake(self) -> None:
        """There may be something to send."""
        if self._call is not None:
            self._call.wake()

    async def room(self) -> None:
        """Waits until there may be room for more, or something has ended."""
        freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._freed.add(freed)
        try:
            await freed
        finally:
            self._freed.discard(freed)

    def _free(self) -> None:
        """Has those look again who wait for room."""
        for freed in self._freed:
            if not freed.done():
                freed.set_result(None)

    def _usable(self) -> list[Member]:
        return [member for member in self._members.values() if self.window.usable[member.stream]]

    def _in_use(self, member: Member) -> bool:
        return self._members.get(member.stream) is member and bool(self.window.usable[member.stream])

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something beside the call, unless that ends first."""
        task = asyncio.create_task(work)
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        """Does something after a while, unless the call ends first."""

        async def wait() -> None:
            await self._backoff.sleep(seconds)
            then()
            self.wake()

        self._start(wait())

    # A call ------------------------------------------------------------------------------------------------------------

    def _begin_call(self) -> None:
        """Every stream that can be used is to be opened, and closed if it was to be. Of one to be forgotten nothing is sent again."""
        self._calls += 1
        usable = self._usable()
        self.window.begin_again([member.stream for member in usable if self._forgetting(member)])
        self.window.cut()
        self._streams = np.full(HANDLES_FIRST, NEVER, np.int64)
        self._to_open = deque(self._members)
        self._to_close = {member.stream for member in usable if member.forget is not None}

    def _end_call(self) -> None:
        """No stream has a handle, and nothing is in flight."""
        if self._call is not None:
            self._call.cut(StreamLost("the call has ended"))
            self._call = None
        for task in self._waits:
            task.cancel()
        self._opening = []
        self._closing.clear()
        self._left.clear()
        self.window.handles[:] = 0

    def _streams_of(self, handles: Ints) -> tuple[Ints, Ints]:
        """Which of these handles stand for streams that are still ours, and for which.

        Raises:
            StreamLost: one was never given out.

        """
        known = len(handles) == 0 or handles.max() < len(self._streams)
        streams = self._streams[handles] if known else handles
        if not known or (streams == NEVER).any():
            raise StreamLost("the server tells of a handle that it never gave out on this call", "WRONG_ORDER")
        ours = np.flatnonzero(self.window.handles[streams] == handles)
        return ours, streams[ours]

    # Opening -----------------------------------------------------------------------------------------------------------

    def take(self) -> pb.OpenStreams | None:
        """The open to send now; None when there is none, or one is in flight."""
        if self._opening or not (lot := self._next_lot()):
            return None
        self._opening = lot
        ask = pb.OpenStreams()
        ask.CopyFrom(lot[0].ask)
        ask.existence = self._existence(lot[0])
        ask.independent = True  # the answers to blocks of others do not wait for it
        ask.stream_ids.extend([member.stream_id for member in lot])
        streams = np.array([member.stream for member in lot], np.int64)
        resume_from = np.where(self.window.begun[streams], self.window.first_steps(streams), 0)
        if self._forgetting(lot[0]):
            resume_from[:] = 1
        if resume_from.any():
            ask.resume_from.extend(resume_from.tolist())
        return ask

    def _next_lot(self) -> list[Member]:
        """Streams, in their order, that fit one message: those of which the same is asked, and no name twice.

        A server may open those of one message in any order.
        """
        lot: list[Member] = []
        names: set[str] = set()
        alike, size = b"", 0
        while self._to_open and len(lot) < NAMES_MAX:
            stream = self._to_open[0]
            member = self._members.get(stream)
            if member is None or not self.window.usable[stream] or self.window.open[stream]:
                self._to_open.popleft()
                continue
            this = bytes([self._existence(member), bool(member.forget)]) + member.ask.SerializeToString()
            size += len(member.stream_id.encode()) + NAME_BYTES
            size_max = min(NAMES_BYTES_MAX, self._message_bytes_max - len(this) - FRAME_BYTES)
            if lot and (this != alike or member.stream_id in names or size > size_max):
                break
            alike = this
            names.update([member.stream_id] if member.stream_id else ())
            lot.append(member)
            self._to_open.popleft()
        return lot

    def _existence(self, member: Member) -> pb.Existence:
        if self._forgetting(member):
            return pb.EXISTENCE_MUST_EXIST  # that it is not there means that it was forgotten
        return pb.EXISTENCE_UNSPECIFIED if self.window.begun[member.stream] else member.ask.existence

    def _forgetting(self, member: Member) -> bool:
        """Whether only the drop of an open stream is left to do: then it matters no more what the server still has."""
        return bool(member.forget and member.kind) and not self.window.waited_for(np.array([member.stream])).any()

    def _opened(self, message: pb.OpenedStreams) -> None:
        asked, self._opening = self._opening, []
        if message.HasField("refused"):
            self._not_opened([(member, message.refused) for member in asked])
        else:
            opened = self._take_handles(asked, message)
            if opened:
                self._begin(message, opened)
            self._not_opened([(asked[row.row], row.error) for row in message.errors])
        if not self._to_open:
            self._retry.opened()
            if self.window.quiet and not self._to_close:
                self._retry.rest()
        if max(message.handles, default=0) > HANDLES_A_CALL_MAX:
            raise CallEnded(ServerUnavailable("the call has given out all its handles", "OK"))

    def _take_handles(self, asked: list[Member], message: pb.OpenedStreams) -> dict[int, Member]:
        """Notes what the server says of each stream; gives those that are open, by their row.

        Raises:
            StreamLost: the answer does not fit what was asked.

        """
        columns = (message.handles, message.kinds, message.next_steps, message.epochs, message.durable_steps)
        if not asked or {len(column) for column in (message.stream_ids, *columns)} != {len(asked)}:
            raise StreamLost(
                f"the server opened {len(message.stream_ids)} streams, which were not asked for", "WRONG_ORDER"
            )
        self._message_bytes_max = message.message_bytes_max or self._message_bytes_max
        refused = {row.row for row in message.errors}
        opened: dict[int, Member] = {}
        for row, (member, handle) in enumerate(zip(asked, message.handles, strict=True)):
            if row in refused:
                continue
            if not handle:
                raise StreamLost("the server opened a stream without a handle", "WRONG_ORDER")
            if handle >= len(self._streams):
                self._streams = np.concatenate([self._streams, np.full(handle, NEVER, np.int64)])
            self._streams[handle] = member.stream  # which has that handle only when it is in use
            if not self._in_use(member):
                self._left.append(handle)
                continue
            self.window.handles[member.stream] = handle
            opened[row] = member
            member.epoch = message.epochs[row]
            member.stream_id = message.stream_ids[row]
            member.kind = member.kind or KINDS.get(message.kinds[row], str(message.kinds[row]))
        return opened

    def _begin(self, message: pb.OpenedStreams, opened: Mapping[int, Member]) -> None:
        """Streams are open."""
        model = model_of(message.model)
        wrong: dict[int, ClientError] = {}
        for member in opened.values():
            if self.window.begun[member.stream]:
                error = difference(f"stream '{member.stream_id}'", member.view.model, model)
                wrong.update({member.stream: error} if error is not None else {})
        rows = list(opened)
        streams = np.array([member.stream for member in opened.values()], np.int64)
        next_steps, durable_steps = (np.array(c, np.int64)[rows] for c in (message.next_steps, message.durable_steps))
        self.window.opened(streams, next_steps, durable_steps, message.answers_remembered)
        if held := self._breaks.to_hold(streams.tolist()):
            self.window.hold(held)
            self._later(self._backoff.longest_s, lambda: self.window.release(held))
        self._lose(wrong, whole=True)
        if len(wrong) == len(streams):
            return
        buffer = self.window.buffer_of(model, rows_max(model, message.message_bytes_max))
        for stream, member in zip(streams.tolist(), opened.values(), strict=True):
            if stream not in wrong:
                self._shortage.over(stream, OPEN)
                member.ask.model, member.ask.version = model.name, model.version
                member.view.on_opened(member.place, buffer, self._calls)
                self._end_older(member)

    def _end_older(self, member: Member) -> None:
        """Another stream of this session under the same name has lost it to this one."""
        older = self._by_name.get(member.stream_id, member.stream)
        self._by_name[member.stream_id] = member.stream
        if older != member.stream:
            self._lose({older: TakenOver(f"stream '{member.stream_id}' was opened again by this client", "TAKEN_OVER")})

    def _not_opened(self, refused: Iterable[tuple[Member, pb.Error]]) -> None:
        """Decides about streams whose open was refused: to wait, or to do without."""
        waiting: list[Member] = []
        wait_s = 0.0
        lost: dict[int, ClientError] = {}
        for member, told in refused:
            if not self._in_use(member):
                continue
            error = ending_of(told, StreamRefused)
            if error.action == pb.Error.ACTION_REOPEN:
                raise CallEnded(error)
            limit_s = self.limits.reconnect_s if member.kind else self.limits.open_s
            if error.action == pb.Error.ACTION_RETRY and self._shortage.may_wait(member.stream, OPEN, limit_s):
                waiting.append(member)
                wait_s = max(wait_s, error.retry_after_s)
            elif isinstance(error, StreamNotFound) and self._forgetting(member):
                self._finish([member])
            elif isinstance(error, ModelMismatch) and member.view.alone and not member.ask.version:
                self._start(self._find_version(member, error))
            else:
                lost[member.stream] = error
        if waiting:
            self._later(
                self._backoff.not_before_s(wait_s),
                lambda: self._to_open.extend(member.stream for member in waiting if self._in_use(member)),
            )
        self._lose(lost)

    async def _find_version(self, member: Member, error: ClientError) -> None:
        """Opens a stream under the version that it runs under, since none was asked for."""
        request = pb.DescribeStreamRequest(stream_id=member.stream_id)
        try:
            found = (await self._connection.ask("DescribeStream", request)).stream
        except ClientError:
            found = pb.Stream()
        if not self._in_use(member):
            return
        if found.version and member.ask.model in ("", found.model):
            member.ask.model, member.ask.version = found.model, found.version
            self._to_open.append(member.stream)
            self.wake()
        else:
            self._lose({member.stream: error})

    # The end -----------------------------------------------------------------------------------------------------------

    def _finish(self, members: Sequence[Member]) -> None:
        """Streams are closed as was asked."""
        streams = [member.stream for member in members]
        self.window.closed(streams)
        self._to_close.difference_update(streams)
        for member in members:
            member.view.on_closed(member.place)

    def _lose(self, errors: Mapping[int, ClientError], *, whole: bool = False) -> None:
        """These streams can no longer be used; the others go on. `whole` says that they end together."""
        errors = {stream: error for stream, error in errors.items() if self.window.usable[stream]}
        if not errors:
            return
        told = self.window.lose(errors, whole=whole)
        stream, error = next(iter(errors.items()))
        log.warning("%r: %d streams are lost; %s: %s", self, len(errors), self._members[stream].stream_id, error)
        for stream, error in errors.items():
            self._to_close.discard(stream)
            member = self._members[stream]
            member.view.on_lost(member.place, error, told=stream in told, whole=whole)
        self._free()

    def _fail(self, error: ClientError, streams: Iterable[int]) -> None:
        """These streams can no longer be used, because the call cannot."""
        self._lose(dict.fromkeys(streams, error), whole=True)
