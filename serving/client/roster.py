"""Which streams a block has: their names, their handles on this call, and which are to be opened how.

It makes the messages that open and close streams and reads their answers; what follows for timesteps, the ledger decides.

Laws:
1. One open is under way at a time: what the first says of the model is asked for by all others.
2. A handle stands for its stream on its call only.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client.errors import StreamLost
from serving.client.ledger import Ledger
from serving.core.spec import Ints

# The protocol allows 65,536 names a message; fewer are opened by a slow store within `timeout_s`, and it tells of each lot.
NAMES_MAX = 8192
# A message may have 4 MB; the answer repeats the names and adds columns.
NAMES_BYTES_MAX = 1_000_000
# What a name has beside its bytes: its length, and the first step that is kept.
NAME_BYTES = 12
# What an open has beside its names: a model, an owner, and what is asked of all.
ASK_BYTES = 1024
# What a close has beside its handles.
CLOSE_BYTES = 64
# As many as the protocol allows names a message, and what one takes at most.
HANDLES_MAX = 65_536
HANDLE_BYTES = 5
# What a server reads that does not say.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024

KINDS = {pb.Opened.KIND_NEW: "new", pb.Opened.KIND_RESUMED: "resumed", pb.Opened.KIND_TAKEN_OVER: "taken_over"}


class Opened(NamedTuple):
    """What an answer to an open says, in columns: of the streams that are open, and of those that were refused."""

    streams: Ints
    next_steps: Ints
    durable_steps: Ints
    refused: dict[int, pb.Error]


class Roster:
    """The streams of a block, by index.

    Attributes:
        stream_ids: their names.
        kinds: how each was found: "new", "resumed" or "taken_over"; empty while it was never open.
        ask: what is asked of all, but for the names.

    """

    def __init__(self, stream_ids: Sequence[str], ask: pb.OpenStreams, ledger: Ledger) -> None:
        self.stream_ids = list(stream_ids)
        self.kinds = [""] * len(stream_ids)
        self.ask = ask
        self._ledger = ledger
        self._handles: Ints = np.zeros(len(stream_ids), np.int64)
        self._by_handle: Ints | None = None  # the streams in the order of their handles
        self._to_open: deque[tuple[Ints, pb.Existence]] = deque()
        self._asked: Ints | None = None
        self._forgetting = False  # on this call
        self._message_bytes_max = MESSAGE_BYTES_MAX

    def begin(self, *, forgetting: bool) -> None:
        """A call begins: every stream that can be used is to be opened; when only to be forgotten, it must be there."""
        self._handles[:] = 0
        self._by_handle = None
        self._to_open.clear()
        self._asked = None
        self._forgetting = forgetting
        self.open_again(np.flatnonzero(self._ledger.usable))

    def open_again(self, streams: Ints) -> None:
        """These streams are to be opened."""
        ways = np.where(self._ledger.begun[streams], pb.EXISTENCE_UNSPECIFIED, self.ask.existence)
        if self._forgetting:
            ways[:] = pb.EXISTENCE_MUST_EXIST
        for existence in np.unique(ways).tolist():
            self._to_open.extend((lot, existence) for lot in self._lots(streams[ways == existence]))

    @property
    def opening(self) -> bool:
        """Whether streams are being opened, or are to be."""
        return self._asked is not None or bool(self._to_open)

    def take(self) -> pb.OpenStreams | None:
        """The open to send now; None when there is none, or one is under way."""
        if self._asked is not None or not self._to_open:
            return None
        self._asked, existence = self._to_open.popleft()
        ask = pb.OpenStreams()
        ask.CopyFrom(self.ask)
        ask.existence = existence
        ask.stream_ids.extend(self.stream_ids[stream] for stream in self._asked.tolist())
        resume_from = np.where(self._ledger.begun[self._asked], self._ledger.first_steps[self._asked], 0)
        if self._forgetting:
            resume_from[:] = 1
        if resume_from.any():
            ask.resume_from.extend(resume_from.tolist())
        return ask

    def opened(self, message: pb.OpenedStreams) -> Opened:
        """An open was answered.

        Raises:
            StreamLost: the answer does not fit what was asked.

        """
        streams, self._asked = self._asked, None
        columns = (message.handles, message.kinds, message.next_steps, message.epochs, message.durable_steps)
        if streams is None or {len(column) for column in (message.stream_ids, *columns)} != {len(streams)}:
            raise StreamLost(
                f"the server opened {len(message.stream_ids)} streams, which were not asked for", "WRONG_ORDER"
            )
        handles, _, next_steps, _, durable_steps = (np.array(column, np.int64) for column in columns)
        refused = {int(streams[row.row]): row.error for row in message.errors}
        good = ~np.isin(streams, list(refused))
        opened = Opened(streams[good], next_steps[good], durable_steps[good], refused)
        self._message_bytes_max = message.message_bytes_max or self._message_bytes_max
        if not handles[good].all():
            raise StreamLost("the server opened a stream without a handle", "WRONG_ORDER")
        self._handles[opened.streams] = handles[good]
        self._by_handle = None
        for row in np.flatnonzero(good & ~self._ledger.begun[streams]).tolist():
            stream = int(streams[row])
            self.stream_ids[stream] = message.stream_ids[row]
            self.kinds[stream] = self.kinds[stream] or KINDS.get(message.kinds[row], str(message.kinds[row]))
        return opened

    @property
    def handles_max(self) -> int:
        """How many handles a message may have."""
        return max(1, min(HANDLES_MAX, (self._message_bytes_max - CLOSE_BYTES) // HANDLE_BYTES))

    def handles(self, streams: Ints) -> Ints:
        """The handles of streams that are open."""
        return self._handles[streams]

    def streams(self, handles: Ints) -> Ints:
        """The streams that handles stand for.

        Raises:
            StreamLost: one was never given out.

        """
        if self._by_handle is None:
            self._by_handle = np.argsort(self._handles)
        places = np.searchsorted(self._handles, handles, sorter=self._by_handle)
        streams = self._by_handle[np.minimum(places, len(self._by_handle) - 1)]
        if np.any((handles == 0) | (self._handles[streams] != handles)):
            raise StreamLost("the server tells of a handle that it never gave out on this call", "WRONG_ORDER")
        return streams

    def _lots(self, streams: Ints) -> Iterator[Ints]:
        """Streams in lots that fit a message."""
        sizes = np.array([len(self.stream_ids[stream].encode()) + NAME_BYTES for stream in streams.tolist()], np.int64)
        bytes_max = min(NAMES_BYTES_MAX, self._message_bytes_max - ASK_BYTES)
        while len(streams):
            count = min(NAMES_MAX, max(1, int(np.searchsorted(np.cumsum(sizes), bytes_max, side="right"))))
            yield streams[:count]
            streams, sizes = streams[count:], sizes[count:]
