"""Which streams of a session are to be closed, and what follows from what the server says of them. It decides and does nothing."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client.call import CallEnded
from serving.client.errors import (
    ClientError,
    ServerUnavailable,
    StreamLost,
    StreamNotFound,
    ending_of,
)
from serving.client.members import Member, Members
from serving.client.retry import Shortage, tried_for
from serving.client.window import Window
from serving.core.spec import Ints

# The number by which a stream is short of room to be closed; 0 is its open.
CLOSE = -2


class Closed(NamedTuple):
    """What follows from an answer: streams that are closed as was asked, lost, and to be closed once more after a while.

    `behind` counts those of which less is stored than was answered: they are to be opened again.
    """

    finished: list[int]
    lost: dict[int, ClientError]
    again: dict[Member, ClientError]
    behind: int


class Closing:
    """The streams to be closed, each as soon as everything of it is answered.

    Attributes:
        in_flight: of each message that is not answered, the streams; none of those that were left.

    """

    def __init__(self, window: Window, members: Members, shortage: Shortage, reconnect_s: float) -> None:
        self.in_flight: deque[list[Member]] = deque()
        self._window = window
        self._members = members
        self._shortage = shortage
        self._reconnect_s = reconnect_s
        self._streams: set[int] = set()
        self._left: list[int] = []

    @property
    def due(self) -> bool:
        """Whether there may be something to send."""
        return bool(self._streams or self._left)

    @property
    def waiting(self) -> bool:
        """Whether a stream waits to be closed."""
        return bool(self._streams)

    def add(self, members: Iterable[Member]) -> None:
        """These are to be closed, as far as they are in use; `Member.forget` says how."""
        self._streams |= {m.stream for m in members if self._members.is_ours(m) and self._window.usable[m.stream]}

    def discard(self, streams: Iterable[int]) -> None:
        """These are closed or lost."""
        self._streams -= set(streams)

    def leave(self, handles: Iterable[int]) -> None:
        """Nobody uses the streams any more that these handles stand for; they are closed, and nobody waits for the answer."""
        self._left += handles

    def end_call(self) -> None:
        """The call has ended, and all handles with it."""
        self.in_flight.clear()
        self._left.clear()

    def take(self) -> pb.CloseStreams | None:
        """What to send now, None when there is nothing."""
        if self._left:
            lot, self._left = self._left[: self._members.handles_max], self._left[self._members.handles_max :]
            return self._take([], lot, forget=False)
        if not self._streams:
            return None
        streams = np.array(sorted(self._streams), np.int64)
        streams = streams[self._window.open[streams] & self._window.idle(streams)]
        if not len(streams):
            return None
        forget = bool(self._members[int(streams[0])].forget)
        alike = [stream for stream in streams.tolist() if self._members[stream].forget == forget]
        alike = alike[: self._members.handles_max]
        self._streams -= set(alike)
        handles = self._members.handles(np.array(alike, np.int64)).tolist()
        return self._take([self._members[stream] for stream in alike], handles, forget=forget)

    def _take(self, members: list[Member], handles: Sequence[int], *, forget: bool) -> pb.CloseStreams:
        self.in_flight.append(members)
        return pb.CloseStreams(handles=handles, forget=forget, independent=True)

    def closed(self, message: pb.ClosedStreams) -> Closed:
        """A message was answered: everything of its streams is stored, or they were forgotten as was asked.

        Raises:
            CallEnded: nothing was asked.
            StreamLost: the answer does not fit what was asked.

        """
        if not self.in_flight:
            raise CallEnded(ServerUnavailable("the server closed streams without being asked", "OK"))
        members = self.in_flight.popleft()
        told = Closed([], {}, {}, 0)
        if not members:
            return told
        if len(message.durable_steps) != len(members):
            raise StreamLost(
                f"the server closed {len(message.durable_steps)} streams, asked were {len(members)}", "WRONG_ORDER"
            )
        errors = {row.row: ending_of(row.error, StreamLost) for row in message.errors}
        behind = 0
        for row, member in enumerate(members):
            if self._members.is_ours(member) and self._window.usable[member.stream]:
                self._window.durable(np.array([member.stream]), np.array([message.durable_steps[row]]))
                behind += not self._judge(member, errors.get(row), told)
        return told._replace(behind=behind)

    def _judge(self, member: Member, error: ClientError | None, told: Closed) -> bool:
        """Decides about one stream; False when it is to be opened again."""
        stream = member.stream
        if error is None:
            self._members.let_go(np.array([stream]))
            stored = bool(self._window.durable_steps[stream] >= self._window.answered[stream])
            if member.forget or stored:
                told.finished.append(stream)
            return bool(member.forget) or stored
        if member.forget and isinstance(error, StreamNotFound):
            told.finished.append(stream)
        elif error.action == pb.Error.ACTION_REOPEN:
            return False
        elif error.action != pb.Error.ACTION_RETRY:
            told.lost[stream] = error
        elif self._shortage.may_wait(stream, CLOSE, self._reconnect_s):
            told.again[member] = error
        else:
            told.lost[stream] = tried_for(error, self._reconnect_s)
        return True

    def begin_call(self, usable: Ints) -> None:
        """A call begins: those that were to be closed still are. Of those to be forgotten nothing is sent again."""
        self.end_call()
        members = [self._members[stream] for stream in usable.tolist()]
        forgetting = [member.stream for member in members if self._members.forgetting(member.stream)]
        self._window.begin_again(np.array(forgetting, np.int64))
        self.add(member for member in members if member.forget is not None)
