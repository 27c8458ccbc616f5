"""The calls that are open, whichever service they belong to: they count towards one quota and are drained together."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from tidegate.core.access import Caller
from tidegate.core.errors import Stopping, Unauthenticated
from tidegate.rpc.call import Call, Context
from tidegate.rpc.stream_quota import StreamQuota

log = logging.getLogger("tidegate.service")

# How many calls are asked to end in one turn of the event loop. Each then takes some hundred microseconds of the next
# turn.
ENDED_AT_ONCE_MAX = 16


class OpenCalls:
    """The open calls of a server. A connection holds at most `live_max` live streams of a model.

    Attributes:
        stopping: whether new calls are refused.

    """

    def __init__(self, live_max: int) -> None:
        self._live_max = live_max
        self._quotas: WeakValueDictionary[str, StreamQuota] = (
            WeakValueDictionary()
        )  # by peer, for as long as the peer has calls
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._left_unsaved = 0
        self.stopping = False

    def __len__(self) -> int:
        """The number of calls."""
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def __repr__(self) -> str:
        return f"<OpenCalls: {len(self)} calls>"

    def add(self, call: Call) -> None:
        """Adds a call, for which `drain` waits."""
        self._calls.add(call)
        self._idle.clear()

    def remove(self, call: Call) -> None:
        """Removes a call that has released its streams."""
        self._left_unsaved += call.left_unsaved
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    def check_accepting(self) -> None:
        """Raises Stopping when the server stops."""
        if self.stopping:
            raise Stopping

    def quota(self, context: Context) -> StreamQuota:
        """The quota of a connection, shared by its calls."""
        quota = self._quotas.get(context.peer())
        if quota is None:
            quota = self._quotas[context.peer()] = StreamQuota(self._live_max)
        return quota

    def end_withdrawn(self, is_valid: Callable[[Caller], bool]) -> None:
        """Ends the calls of callers whose token no longer gets in."""
        for call in list(self._calls):
            if not is_valid(call.caller):
                call.end(Unauthenticated("the token was withdrawn, or allows something else now"))

    async def drain(self) -> None:
        """Asks every call to end and waits until all have ended. Later calls are refused.

        A call answers its pending requests, waits until its streams are stored, and then tells its client to move: at
        the next server the client finds the streams as they were. A store that is too slow does not delay the call for
        longer than the backend allows.
        """
        self.stopping = True
        for count, call in enumerate(list(self._calls), 1):
            call.end(Stopping())
            if count % ENDED_AT_ONCE_MAX == 0:
                await asyncio.sleep(0)
        await self._idle.wait()
        if self._left_unsaved:
            log.warning("%d streams were not stored before their clients were told to move", self._left_unsaved)
            self._left_unsaved = 0
