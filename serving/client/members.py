"""The streams of a session: their names, their handles on this call, and which are to be opened.

It makes the messages that open streams and reads their answers; what follows for timesteps, the window decides.

Laws:
1. One open is in flight at a time: what the first says of the model is asked for by the rest of its block.
2. A handle stands for its stream on its call only.
3. Streams are opened in the order in which they joined: of two under one name the later one has it in the end.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client.buffer import Buffer
from serving.client.errors import ClientError, StreamLost
from serving.client.types import Model
from serving.client.window import Window
from serving.client.wire import KINDS
from serving.core.spec import Ints

# The protocol allows 65,536 names a message; fewer are opened by a slow store within `timeout_s`, and it tells of each lot.
NAMES_MAX = 8192
# A message may have 4 MB; the answer repeats the names and adds columns.
NAMES_BYTES_MAX = 1_000_000
# What a name has beside its bytes: its length, and the first step that is kept.
NAME_BYTES = 12
# What a message has beside its columns: their lengths.
FRAME_BYTES = 64
# As many as the protocol allows names a message, and what one takes at most.
HANDLES_MAX = 65_536
HANDLE_BYTES = 5
HANDLES_FIRST = 64
# What stands for a handle that was never given, and for that of a stream that nobody uses any more.
NEVER = -1
NOBODYS = -2
NO_STREAMS: Ints = np.empty(0, np.int64)
# What a server reads that does not say.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


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
        forget: whether it is to be forgotten when it is closed; None while it is not being closed.

    """

    __slots__ = ("ask", "epoch", "forget", "kind", "place", "stream", "stream_id", "until", "view")

    def __init__(self, stream: int, stream_id: str, ask: pb.OpenStreams, view: View, place: int, until: float) -> None:
        self.stream = stream
        self.stream_id = stream_id
        self.ask = ask
        self.view = view
        self.place = place
        self.until = until
        self.kind = ""
        self.epoch = 0
        self.forget: bool | None = None


class Opened(NamedTuple):
    """What an answer to an open says, in columns: of the streams that are open, and of those that were refused.

    `left` are handles of streams that nobody uses any more.
    """

    streams: Ints
    next_steps: Ints
    durable_steps: Ints
    refused: dict[int, pb.Error]
    left: list[int]


class Members:
    """The streams of a session, by index.

    Attributes:
        all: those that somebody uses, in the order in which they joined.
        by_name: the latest stream under each name that was opened.
        opening: those of the open that is in flight; empty when none is.
        handles_given: the highest handle on this call.

    """

    def __init__(self, window: Window) -> None:
        self.all: dict[int, Member] = {}
        self.opening: list[Member] = []
        self._window = window
        self.by_name: dict[str, int] = {}
        self.handles_given = 0
        self._to_open: deque[int] = deque()
        self._streams: Ints = np.zeros(0, np.int64)  # by handle
        self._handles: Ints = np.zeros(1, np.int64)  # by stream
        self._message_bytes_max = MESSAGE_BYTES_MAX

    def __len__(self) -> int:
        """How many there are."""
        return len(self.all)

    def __getitem__(self, stream: int) -> Member:
        return self.all[stream]

    def is_ours(self, member: Member) -> bool:
        """Whether somebody still uses a stream."""
        return self.all.get(member.stream) is member

    def begin(self) -> None:
        """A call begins: every stream that can be used is to be opened."""
        self.end_call()
        self._streams = np.full(HANDLES_FIRST, NEVER, np.int64)
        self.handles_given = 0
        self._to_open = deque(self.all)

    def end_call(self) -> None:
        """The call has ended: no stream has a handle, and nothing is being opened."""
        self.opening = []
        self._handles[:] = 0

    def open(self, streams: Sequence[int]) -> None:
        """These streams are to be opened."""
        self._to_open.extend(streams)

    @property
    def to_open(self) -> bool:
        """Whether streams are being opened, or are to be."""
        return bool(self.opening or self._to_open)

    def take(self) -> pb.OpenStreams | None:
        """The open to send now; None when there is none, or one is in flight."""
        if self.opening or not (lot := self._next_lot()):
            return None
        self.opening = [self.all[stream] for stream in lot]
        ask = pb.OpenStreams()
        ask.CopyFrom(self.opening[0].ask)
        ask.existence = self._existence(lot[0])
        ask.independent = True  # the answers to blocks of others do not wait for it
        ask.stream_ids.extend([member.stream_id for member in self.opening])
        streams = np.array(lot, np.int64)
        resume_from = np.where(self._window.begun[streams], self._window.first_steps(streams), 0)
        if self.forgetting(lot[0]):
            resume_from[:] = 1
        if resume_from.any():
            ask.resume_from.extend(resume_from.tolist())
        return ask

    def _next_lot(self) -> list[int]:
        """Streams, in their order, that fit one message: those of which the same is asked, and no name twice.

        A server may open those of one message in any order.
        """
        lot: list[int] = []
        names: set[str] = set()
        alike, size = b"", 0
        while self._to_open and len(lot) < NAMES_MAX:
            stream = self._to_open[0]
            member = self.all.get(stream)
            if member is None or not self._window.usable[stream] or self._window.open[stream]:
                self._to_open.popleft()
                continue
            this = bytes([self._existence(stream), bool(member.forget)]) + member.ask.SerializeToString()
            size += len(member.stream_id.encode()) + NAME_BYTES
            if lot and (
                this != alike
                or member.stream_id in names
                or size > min(NAMES_BYTES_MAX, self._message_bytes_max - len(this) - FRAME_BYTES)
            ):
                break
            alike = this
            names.update([member.stream_id] if member.stream_id else ())
            lot.append(self._to_open.popleft())
        return lot

    def _existence(self, stream: int) -> pb.Existence:
        if self.forgetting(stream):
            return pb.EXISTENCE_MUST_EXIST  # that it is not there means that it was forgotten
        return pb.EXISTENCE_UNSPECIFIED if self._window.begun[stream] else self.all[stream].ask.existence

    def forgetting(self, stream: int) -> bool:
        """Whether only the drop of an open stream is left to do: then it matters no more what the server still has."""
        member = self.all[stream]
        return bool(member.forget and member.kind) and not self._window.waited_for(np.array([stream])).any()

    def opened(self, message: pb.OpenedStreams) -> Opened:
        """An open was answered.

        Raises:
            StreamLost: the answer does not fit what was asked.

        """
        asked, self.opening = self.opening, []
        if message.HasField("refused"):
            refusals = {member.stream: message.refused for member in asked if self.is_ours(member)}
            return Opened(NO_STREAMS, NO_STREAMS, NO_STREAMS, refusals, [])
        columns = (message.handles, message.kinds, message.next_steps, message.epochs, message.durable_steps)
        if not asked or {len(column) for column in (message.stream_ids, *columns)} != {len(asked)}:
            raise StreamLost(
                f"the server opened {len(message.stream_ids)} streams, which were not asked for", "WRONG_ORDER"
            )
        self._message_bytes_max = message.message_bytes_max or self._message_bytes_max
        refused = {row.row: row.error for row in message.errors}
        handles, rows, left = list(message.handles), [], []
        for row, member in enumerate(asked):
            if row in refused:
                continue
            if not handles[row]:
                raise StreamLost("the server opened a stream without a handle", "WRONG_ORDER")
            ours = self.is_ours(member) and bool(self._window.usable[member.stream])
            self._give_handle(member.stream if ours else NOBODYS, handles[row])
            if not ours:
                left.append(handles[row])
                continue
            rows.append(row)
            member.epoch = message.epochs[row]
            member.stream_id = message.stream_ids[row]
            member.kind = member.kind or KINDS.get(message.kinds[row], str(message.kinds[row]))
        next_steps, durable_steps = (np.array(column, np.int64)[rows] for column in (columns[2], columns[4]))
        streams = np.array([asked[row].stream for row in rows], np.int64)
        errors = {asked[row].stream: error for row, error in refused.items() if self.is_ours(asked[row])}
        return Opened(streams, next_steps, durable_steps, errors, left)

    def _give_handle(self, stream: int, handle: int) -> None:
        if handle >= len(self._streams):
            self._streams = np.concatenate([self._streams, np.full(handle, NEVER, np.int64)])
        self._streams[handle] = stream
        self.handles_given = max(self.handles_given, handle)
        if stream == NOBODYS:
            return
        if stream >= len(self._handles):
            self._handles = np.concatenate([self._handles, np.zeros(stream + 1, np.int64)])
        self._handles[stream] = handle

    @property
    def handles_max(self) -> int:
        """How many handles a message may have."""
        return max(1, min(HANDLES_MAX, (self._message_bytes_max - FRAME_BYTES) // HANDLE_BYTES))

    def handles(self, streams: Ints) -> Ints:
        """The handles of streams that are open."""
        if len(streams) and streams.max() >= len(self._handles):
            self._handles = np.concatenate([self._handles, np.zeros(streams.max() + 1, np.int64)])
        return self._handles[streams]

    def handle(self, stream: int) -> int:
        """The handle of a stream that is open."""
        return int(self._handles.item(stream))

    def let_go(self, streams: Ints) -> None:
        """The server does not have these streams open any more."""
        self._handles[streams] = 0

    def streams(self, handles: Ints) -> tuple[Ints, Ints]:
        """Which of these handles stand for streams that are still ours, and for which.

        Raises:
            StreamLost: one was never given out.

        """
        known = len(handles) == 0 or handles.max() < len(self._streams)
        streams = self._streams[handles] if known else handles
        if not known or (streams == NEVER).any():
            raise StreamLost("the server tells of a handle that it never gave out on this call", "WRONG_ORDER")
        ours = np.flatnonzero((streams != NOBODYS) & (self._handles[np.maximum(streams, 0)] == handles))
        return ours, streams[ours]

    def drop(self, streams: Sequence[int]) -> None:
        """These streams are nobody's any more."""
        for stream in streams:
            member = self.all.pop(stream)
            if self.by_name.get(member.stream_id) == stream:
                del self.by_name[member.stream_id]
            if stream < len(self._handles):
                self._handles[stream] = 0
