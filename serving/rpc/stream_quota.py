"""Limits how many live streams one connection may hold, over all its calls, so that other clients find room."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter

from tidegate.core.errors import TooManyStreams
from tidegate.core.handle_table import HandleTable
from tidegate.core.spec import Spec
from tidegate.core.streams import Lease

# A live stream is parked when it is closed or has been silent for a while: a matter of seconds.
RETRY_AFTER_MS = 1000
# To count a hundred thousand streams takes about 5 ms. A full quota is recounted only after this multiple of that time:
# however often a client asks, counting takes at most a tenth of the processor.
RECOUNT_FACTOR = 9


class StreamQuota:
    """The live streams of one connection: at most `live_max` of a model.

    Attributes:
        tables: the streams of each `PredictBlocks` call.
        leases: the streams of `Predict` and `PredictOne` calls.

    """

    def __init__(self, live_max: int) -> None:
        self._live_max = live_max
        self.tables: set[HandleTable] = set()
        self.leases: set[Lease] = set()
        self._reserved = 0  # streams that are about to become live
        # By model: how many more streams may become live before the next count, and the earliest time of that count.
        self._remaining: dict[str, int] = {}
        self._recount_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<StreamQuota of {self._live_max}: {len(self.tables)} block calls, {len(self.leases)} single streams>"

    def reserve_wake(self, lease: Lease) -> AbstractContextManager[None]:
        """Reserves room for the stream of a lease to be woken. One that is live already and is to move needs none."""
        return self.reserve(lease.stream.slots.spec) if lease.stream.slot < 0 else nullcontext()

    @contextmanager
    def reserve(self, spec: Spec | None = None) -> Iterator[None]:
        """Reserves room for one more live stream of a model; without a model, of the one with the most streams.

        Raises:
            TooManyStreams: the connection holds as many as it may.

        """
        title = spec.title if spec is not None else ""
        if self._remaining.get(title, 0) <= 0:
            self._count(spec, title)
        if self._remaining[title] <= 0:
            raise TooManyStreams("live", self._live_max, RETRY_AFTER_MS, holder="the connection")
        self._remaining[title] -= 1
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    def _count(self, spec: Spec | None, title: str) -> None:
        """Counts how much room there is, unless that was done just now."""
        started = perf_counter()
        if started < self._recount_at.get(title, started):
            return
        live = self._reserved + sum(table.live_count(spec) for table in self.tables)
        live += sum(
            1 for lease in self.leases if lease.stream.slot >= 0 and (spec is None or lease.stream.slots.spec is spec)
        )
        self._remaining[title] = self._live_max - live
        now = perf_counter()
        self._recount_at[title] = now + RECOUNT_FACTOR * (now - started)
