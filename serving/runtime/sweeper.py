"""Deletes streams after a long silence.

The store stamps streams with the wall clock, which somebody may set wrong and then right again. A deleted state cannot
be recovered, so the rules of this file are:
1. Only time that has certainly passed counts as silence. The sweeper has its own clock for that. It starts at the
   newest stamp in the store, because no client could come while no server ran, and continues with the monotonic clock.
2. When the wall clock is set back, the sweeper's clock follows at once: that only delays deletion. When the wall clock
   jumps ahead, the jump does not count until the clock has run evenly for as long as a stream may be silent. A stream
   that was not used since the jump has then been silent for that long by either clock.
3. So a wrong clock, for however long, deletes no stream that was used within the allowed time of silence. Two cases
   remain. A server that starts at a wrong time trusts streams that were stored at a wrong time before. And a clock that
   was set back and forth between two sweeps has left stamps that are too old.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from tidegate.core.errors import StoreUnavailable
from tidegate.store import Store

log = logging.getLogger("tidegate.sweeper")

# How often the sweeper runs, in seconds. Silence is measured in hours.
SWEEP_SECONDS = 60.0
# A tombstone is kept for this multiple of the time that the state was kept: long enough to tell a late client what
# happened.
TOMBSTONE_FACTOR = 10
# How long the tombstone of a deleted stream is kept, in seconds: long enough for its clients to learn why it is gone.
DELETED_KEPT_SECONDS = 3600.0
# How far the wall clock may drift from the monotonic clock between two reads: 30 ms a minute by NTP slewing, plus a
# process that was suspended between the two reads. It is at most a part of the allowed time of silence.
EVEN_SECONDS = 1.0
EVEN_PART = 0.1
NANOSECONDS = 1_000_000_000


class SilenceClock:
    """The time by which silence is measured, in nanoseconds since the UNIX epoch; see the rules of this file.

    Args:
        newest: the newest stamp in the store, 0 when there is none.
        forget_after: how long a stream may be silent.
        wall: the wall clock; all times are in nanoseconds.
        monotonic: a monotonic clock.

    """

    def __init__(self, newest: int, forget_after: int, wall: Callable[[], int], monotonic: Callable[[], int]) -> None:
        self._forget_after = forget_after
        self._drift_max = min(round(EVEN_SECONDS * NANOSECONDS), round(EVEN_PART * forget_after))
        self._wall = wall
        self._monotonic = monotonic
        self._read_at = self._jumped_at = monotonic()
        now = wall()
        self._now = min(now, newest) if newest else now
        self._ahead = now - self._now  # how far the wall clock is ahead of this clock

    def now(self) -> int:
        """The current time. The wall clock counts as even since the last read if it did not drift too far."""
        monotonic, wall = self._monotonic(), self._wall()
        self._now += monotonic - self._read_at
        self._read_at = monotonic
        ahead = wall - self._now
        if abs(ahead - self._ahead) > self._drift_max:
            self._jumped_at = monotonic
        elif not self._ahead or monotonic - self._jumped_at >= self._forget_after:
            ahead = 0
        self._ahead = max(ahead, 0)
        self._now = wall - self._ahead
        return self._now


class Sweeper:
    """Deletes old streams at intervals. `run` is its task.

    Args:
        store: where checkpoints are kept.
        forget_after_s: how long a stream may be silent before it is deleted, in seconds; 0 for ever.
        on_count: called after each sweep with the number of streams.
        wall: the wall clock, in nanoseconds since the UNIX epoch.
        monotonic: a monotonic clock, in nanoseconds.

    """

    def __init__(
        self,
        store: Store,
        forget_after_s: float,
        on_count: Callable[[int], None],
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._store = store
        self._forget_after_s = forget_after_s
        self._forget_after = round(forget_after_s * NANOSECONDS)
        self._deleted_kept = round(DELETED_KEPT_SECONDS * NANOSECONDS)
        self._on_count = on_count
        self._wall = wall
        self._monotonic = monotonic
        self._silence_clock: SilenceClock | None = None  # None until the store was asked for its newest stamp

    def __repr__(self) -> str:
        return f"<Sweeper: expires after {self._forget_after_s:g} s>"

    async def run(self) -> None:
        """Sweeps at intervals, until cancelled."""
        while True:
            try:
                await self.sweep()
            except StoreUnavailable as error:
                log.error("%s; streams are not swept", error)
            await asyncio.sleep(min(SWEEP_SECONDS, self._forget_after_s / 4 or SWEEP_SECONDS))

    async def sweep(self) -> None:
        """Deletes all streams that have been silent for too long, and counts the others. Raises StoreUnavailable."""
        if self._silence_clock is None:
            newest = await self._store.newest_unix_nano()
            kept = self._forget_after or self._deleted_kept
            self._silence_clock = SilenceClock(newest, kept, self._wall, self._monotonic)
        await self._forget(self._silence_clock.now())
        self._on_count(await self._store.count())

    async def _forget(self, now: int) -> None:
        age = self._forget_after or now  # nothing is older than that
        expired = 0
        while True:
            started = self._monotonic()
            count = await self._store.expire(now - age, now - TOMBSTONE_FACTOR * age, now - self._deleted_kept)
            if not count:
                break
            expired += count
            await asyncio.sleep((self._monotonic() - started) / NANOSECONDS)  # half of the time is left for predictions
        if expired:
            log.info("%d streams expired after %g s of silence", expired, self._forget_after_s)
