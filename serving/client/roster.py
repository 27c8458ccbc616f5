"""Which streams a block has: their names, their handles on this call, and which are to be opened how.

It makes the messages that open and close streams and reads their answers; what follows for timesteps, the ledger decides.

Laws:
1. One open is under way at a time: what the first says of the model is asked for by all others.
2. An open that may have reached the server has raised the epoch, though its answer was lost; it is counted until the next answer.
3. A handle stands for its stream on its call only.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client.errors import StreamLost, TakenOver
from serving.client.ledger import Ledger
from serving.client.parcel import Bools
from serving.core.spec import Ints

# The protocol allows 65,536 names a message; fewer are opened by a slow store within `timeout_s`, and it tells of each lot.
NAMES_MAX = 8192
# A message may have 4 MB; the answer repeats the names and adds columns.
NAMES_BYTES_MAX = 1_000_000
# As many as the protocol allows names a message.
HANDLES_MAX = 65_536

KINDS = {pb.Opened.KIND_NEW: "new", pb.Opened.KIND_RESUMED: "resumed", pb.Opened.KIND_TAKEN_OVER: "taken_over"}


class Opened(NamedTuple):
    """What an answer to an open says, in columns: of the streams that are open, and of those that were refused."""

    streams: Ints
    next_steps: Ints
    durable_steps: Ints
    taken_over: dict[int, TakenOver]
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
        self._epochs: Ints = np.zeros(len(stream_ids), np.int64)
        self._opens: Ints = np.zeros(
            len(stream_ids), np.int64
        )  # since the last answer, those that may have reached the server
        self._to_open: deque[tuple[Ints, pb.Existence]] = deque()
        self._asked: Ints | None = None

    def begin(self, *, forgetting: bool) -> None:
        """A call begins: every stream that can be used is to be opened."""
        self._handles[:] = 0
        self._by_handle = None
        self._to_open.clear()
        self._asked = None
        self.open_again(np.flatnonzero(self._ledger.usable), forgetting=forgetting)

    def open_again(self, streams: Ints, *, forgetting: bool) -> None:
        """These streams are to be opened.

        One that a crash took before it was stored may begin again when everything since its first timestep is here. One that was
        stored must be there: the server compares. Else what was before us must still exist.
        """
        known, complete = self._ledger.begun[streams], self._ledger.complete[streams]
        ways = np.where(
            known, np.where(complete, pb.EXISTENCE_UNSPECIFIED, pb.EXISTENCE_MUST_EXIST), self.ask.existence
        )
        if forgetting:
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
        ask.acknowledged_steps.extend(self._ledger.durable_steps[self._asked].tolist())
        return ask

    def unanswered(self) -> None:
        """The call has ended, and the open that was under way may have reached the server."""
        if self._asked is not None:
            self._opens[self._asked] += 1

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
        handles, _, next_steps, epochs, durable_steps = (np.array(column, np.int64) for column in columns)
        refused = {int(streams[row.row]): row.error for row in message.errors}
        good = ~np.isin(streams, list(refused))
        opened = Opened(
            streams[good],
            next_steps[good],
            durable_steps[good],
            self._taken_over(streams[good], epochs[good], next_steps[good]),
            refused,
        )
        self._epochs[opened.streams] = epochs[good]
        self._opens[opened.streams] = 0
        if not handles[good].all():
            raise StreamLost("the server opened a stream without a handle", "WRONG_ORDER")
        self._handles[opened.streams] = handles[good]
        self._by_handle = None
        for row in np.flatnonzero(good & ~self._ledger.begun[streams]).tolist():
            stream = int(streams[row])
            self.stream_ids[stream] = message.stream_ids[row]
            self.kinds[stream] = self.kinds[stream] or KINDS.get(message.kinds[row], str(message.kinds[row]))
        return opened

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
        sizes = np.array([len(self.stream_ids[stream].encode()) + 8 for stream in streams.tolist()], np.int64)
        while len(streams):
            count = min(NAMES_MAX, max(1, int(np.searchsorted(np.cumsum(sizes), NAMES_BYTES_MAX, side="right"))))
            yield streams[:count]
            streams, sizes = streams[count:], sizes[count:]

    def _taken_over(self, streams: Ints, epochs: Ints, next_steps: Ints) -> dict[int, TakenOver]:
        """Those that others had in between, and may have advanced: their answers are not ours."""
        others = epochs - self._epochs[streams] - 1 - self._opens[streams]
        advanced = next_steps > self._ledger.answered[streams] + 1
        theirs: Bools = self._ledger.begun[streams] & (others > 0) & advanced
        return {
            int(streams[row]): TakenOver(
                f"stream '{self.stream_ids[streams[row]]}' was opened {others[row]} times by another client and is at "
                f"timestep {next_steps[row] - 1} now; find out which before you open it again",
                "TAKEN_OVER",
                next_step=int(next_steps[row]),
            )
            for row in np.flatnonzero(theirs).tolist()
        }
