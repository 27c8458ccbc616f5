"""How much of the live streams one connection may take, whatever calls it makes, so that the others find room."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.core.errors import TooManyStreams
from serving.core.handles import Handles
from serving.core.spec import Spec

# A live stream parks when it has been silent for a while, or is closed: a matter of seconds.
RETRY_AFTER_MS = 1000


class Share:
    """What the calls of one connection hold together: at most `live_max` live streams of a model.

    Attributes:
        handles: the streams of each call that has many.
        singles: calls with a stream each. They count whether it is live or parked: it may wake at any time.

    """

    def __init__(self, live_max: int) -> None:
        self._live_max = live_max
        self._coming = 0  # streams that are on their way to be live
        self.handles: set[Handles] = set()
        self.singles = 0

    def __repr__(self) -> str:
        return f"<Share of {self._live_max}: {len(self.handles)} calls with many streams, {self.singles} with one>"

    @contextmanager
    def room(self, spec: Spec | None = None) -> Iterator[None]:
        """Lets one more stream of a model become live; without one, of whichever has most.

        Raises:
            TooManyStreams: the connection has all that one may have.

        """
        # To count those that are live costs some microseconds; mostly all that are held are no more than they may be.
        if (
            sum(held.count for held in self.handles) + self.singles + self._coming >= self._live_max
            and sum(held.live(spec) for held in self.handles) + self.singles + self._coming >= self._live_max
        ):
            raise TooManyStreams("live", self._live_max, RETRY_AFTER_MS, holder="the connection")
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
