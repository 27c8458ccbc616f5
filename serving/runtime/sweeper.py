"""Forgets streams after long silence.

The store stamps streams with the wall clock, which somebody may set wrong, and right again. What is forgotten is gone, so the
laws of this file are:
1. Only time that has surely passed counts as silence. The sweeper keeps its own account of it: it begins at the newest stamp in
   the store, for nobody could come while no server ran, and goes on with the monotonic clock.
2. A wall clock that is put back is followed at once: that delays. One that jumps ahead is not: what it has outrun the monotonic
   clock by does not count until it has run evenly for as long as a stream may be silent. What has not been used since the jump
   has then been silent for that long, whichever clock is right.
3. So a clock that is set wrong, for however long, forgets nothing that was used within the time that a stream may be silent. Two
   holes are left: a server that starts in the wrong time beside streams that were stored in the wrong time already believes it,
   and a clock that was put back and forth between two sweeps has left stamps that are too old.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from serving.core.errors import StoreUnavailable
from serving.store import Store

log = logging.getLogger("tidegate.sweeper")

# How often old streams are looked for, in seconds: expiry is counted in hours.
SWEEP_SECONDS = 60.0
# A tombstone is kept so many times as long as the state was: long enough to tell a late client what happened.
TOMBSTONE_FACTOR = 10
# That of a deleted stream, in seconds: long enough for whoever had it open to learn why it is gone.
DELETED_KEPT_SECONDS = 3600.0
# What a wall clock may outrun the monotonic one by between two looks and still run evenly: NTP's slewing, 30 ms a minute, and a
# process that was not given the processor between the two readings. No more than a part of what a stream may be silent.
EVEN_SECONDS = 1.0
EVEN_PART = 0.1
NANOSECONDS = 1_000_000_000


class Account:
    """The time by which silence is judged, in nanoseconds since the UNIX epoch; see the laws of this file.

    Args:
        newest: the newest stamp in the store, 0 when there is none.
        forget_after: how long a stream may be silent.
        wall: the wall clock; all in nanoseconds.
        steady: a monotonic clock.

    """

    def __init__(self, newest: int, forget_after: int, wall: Callable[[], int], steady: Callable[[], int]) -> None:
        self._forget_after = forget_after
        self._even = min(round(EVEN_SECONDS * NANOSECONDS), round(EVEN_PART * forget_after))
        self._wall = wall
        self._steady = steady
        self._looked_at = self._uneven_at = steady()
        now = wall()
        self._now = min(now, newest) if newest else now
        self._ahead = now - self._now  # what the wall clock has outrun the account by

    def now(self) -> int:
        """The time by the account. The wall clock is taken to have run evenly since the last look, if it may have."""
        steady, wall = self._steady(), self._wall()
        self._now += steady - self._looked_at
        self._looked_at = steady
        ahead = wall - self._now
        if abs(ahead - self._ahead) > self._even:
            self._uneven_at = steady
        elif not self._ahead or steady - self._uneven_at >= self._forget_after:
            ahead = 0
        self._ahead = max(ahead, 0)
        self._now = wall - self._ahead
        return self._now


class Sweeper:
    """Looks for old streams every so often; `run` is its task.

    Args:
        store: where streams rest.
        forget_after_s: how long a stream may be silent before it is forgotten, in seconds; 0 for ever.
        on_count: is told, after each sweep, how many streams there are.
        wall: nanoseconds since the UNIX epoch.
        steady: nanoseconds of a monotonic clock.

    """

    def __init__(
        self,
        store: Store,
        forget_after_s: float,
        on_count: Callable[[int], None],
        wall: Callable[[], int] = time.time_ns,
        steady: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._store = store
        self._forget_after_s = forget_after_s
        self._forget_after = round(forget_after_s * NANOSECONDS)
        self._deleted_kept = round(DELETED_KEPT_SECONDS * NANOSECONDS)
        self._on_count = on_count
        self._wall = wall
        self._steady = steady
        self._account: Account | None = None  # none before the store has been asked for its newest stamp

    def __repr__(self) -> str:
        return f"<Sweeper: forgets after {self._forget_after_s:g} s>"

    async def run(self) -> None:
        """Sweeps every so often, until cancelled."""
        while True:
            try:
                await self.sweep()
            except StoreUnavailable as error:
                log.error("%s; streams are not swept", error)
            await asyncio.sleep(min(SWEEP_SECONDS, self._forget_after_s / 4 or SWEEP_SECONDS))

    async def sweep(self) -> None:
        """Forgets what has been silent for too long, all of it, and counts what is left. StoreUnavailable."""
        if self._account is None:
            newest = await self._store.newest_unix_nano()
            kept = self._forget_after or self._deleted_kept
            self._account = Account(newest, kept, self._wall, self._steady)
        await self._forget(self._account.now())
        self._on_count(await self._store.count())

    async def _forget(self, now: int) -> None:
        age = self._forget_after or now  # nothing is older than that
        forgotten = 0
        while True:
            begun = self._steady()
            some = await self._store.expire(now - age, now - TOMBSTONE_FACTOR * age, now - self._deleted_kept)
            if not some:
                break
            forgotten += some
            await asyncio.sleep((self._steady() - begun) / NANOSECONDS)  # half of the time is for those who predict
        if forgotten:
            log.info("%d streams forgotten after %g s of silence", forgotten, self._forget_after_s)
