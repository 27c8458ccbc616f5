"""How much of the live streams one connection may take, whatever calls it makes, so that the others find room."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from serving.core.errors import TooManyStreams
from serving.core.handles import Handles
from serving.core.spec import Spec
from serving.core.streams import Lease

# A live stream parks when it has been silent for a while, or is closed: a matter of seconds.
RETRY_AFTER_MS = 1000
# A hundred thousand streams are counted in some 5 ms. However often a client asks while there is no room, counting takes a tenth
# of the time at most: so many times as long as it took, it is not done again.
COUNT_REST = 9


class Share:
    """What the calls of one connection hold together: at most `live_max` live streams of a model.

    Attributes:
        handles: the streams of each call that has many.
        singles: those that have a call of their own.

    """

    def __init__(self, live_max: int) -> None:
        self._live_max = live_max
        self.handles: set[Handles] = set()
        self.singles: set[Lease] = set()
        self._coming = 0  # streams that are on their way to be live
        # By model: how many more may become live before they have to be counted again, and when they may be.
        self._room: dict[str, int] = {}
        self._count_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Share of {self._live_max}: {len(self.handles)} calls of many streams, {len(self.singles)} of one>"

    @contextmanager
    def room(self, spec: Spec | None = None) -> Iterator[None]:
        """Lets one more stream of a model become live; without one, of whichever has most.

        Raises:
            TooManyStreams: the connection has all that one may have.

        """
        title = spec.title if spec is not None else ""
        if self._room.get(title, 0) <= 0:
            self._count(spec, title)
        if self._room[title] <= 0:
            raise TooManyStreams("live", self._live_max, RETRY_AFTER_MS, holder="the connection")
        self._room[title] -= 1
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def _count(self, spec: Spec | None, title: str) -> None:
        """Finds out how much room there is, if that was not done just now."""
        begun = perf_counter()
        if begun < self._count_at.get(title, begun):
            return
        live = self._coming + sum(held.live(spec) for held in self.handles)
        live += sum(
            1 for lease in self.singles if lease.stream.slot >= 0 and (spec is None or lease.stream.slots.spec is spec)
        )
        self._room[title] = self._live_max - live
        now = perf_counter()
        self._count_at[title] = now + COUNT_REST * (now - begun)
