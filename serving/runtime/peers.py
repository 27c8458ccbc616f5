"""The other servers on the same store.

The rules of this file:
1. Nobody waits for another server to open a stream: the store fences the server that had it.
2. A server announces in the store which streams it has in memory. So others can tell a live stream from a parked one,
   and do not let it expire. Its heartbeat shows that it is alive; announcements of a dead server do not count.
3. When a server opens or deletes a stream that another one has in memory, or wants to read it, the other one gets a
   notice. Within `NOTICE_POLL_SECONDS` it looks at the stream: it saves the stream if it still owns it, else it drops
   it.
4. A notice only saves time. A server that misses it finds out when it next saves or wakes the stream, because the store
   refuses that.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tidegate.core.errors import StoreUnavailable, TidegateError
from tidegate.core.spec import Key
from tidegate.core.streams import Phase, Stream
from tidegate.store import Holder, Record, Residency, ResidencyUpdate, Store
from tidegate.store.store import DEAD_SECONDS, HEARTBEAT_SECONDS

log = logging.getLogger("tidegate.peers")

# How often notices are read. A read costs some hundred microseconds, and a server that waits for a save waits for it.
NOTICE_POLL_SECONDS = 0.1
# How long to wait for the server that has a stream in memory to save it, which takes a fraction of a second. It is
# longer than the time after which that server counts as dead: after a crash, the stored state is found and no error is
# raised.
SAVE_WAIT_SECONDS = DEAD_SECONDS + 2.0
# How long one notice may take. Together with the time between two heartbeats it is shorter than the time after which a
# server counts as dead.
NOTICE_TIMEOUT_SECONDS = 2.0
# How often to check whether the stream was saved.
SAVE_POLL_SECONDS = 0.02
# How many updates are written at once: a store in memory takes a few microseconds for each, during which nothing else
# runs.
UPDATES_PER_WRITE_MAX = 1024
# How many notices are handled concurrently: their loads share a commit of the store.
CONCURRENT_MAX = 64


class PeerUnresponsive(StoreUnavailable):
    """The server that has a stream in memory does not respond. Soon it will, or it will count as dead."""


class Peers:
    """Communicates with other servers through the store. `run` is its task.

    Args:
        store: the store that they share.
        on_notice: handles a notice: another server has opened or deleted the stream, or wants to read it.
        holds_any: whether this server has any stream in memory.
        on_restart: called after the store was restarted and may have lost data; stores all live streams again.

    """

    def __init__(
        self,
        store: Store,
        on_notice: Callable[[Key], Awaitable[None]],
        holds_any: Callable[[], bool],
        on_restart: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._on_notice = on_notice
        self._holds_any = holds_any
        self._on_restart = on_restart
        self._store_run_id: str | None = None
        self._pending: dict[Key, ResidencyUpdate] = {}
        self._heartbeat_at = 0.0
        self._failing = False

    def __repr__(self) -> str:
        return f"<Peers on {self._store!r}: {len(self._pending)} updates pending>"

    def announce(self, stream: Stream) -> None:
        """Announces soon where a stream is: live, parked on an open call, or no longer in memory."""
        mark = (
            Residency.LIVE
            if stream.phase is Phase.LIVE
            else Residency.OPEN_PARKED
            if stream.lease is not None
            else Residency.RELEASED
        )
        self.announce_update(ResidencyUpdate(stream.key, stream.epoch, mark))

    def announce_update(self, update: ResidencyUpdate) -> None:
        """Announces an update soon."""
        self._pending[update.key] = update

    async def flush(self) -> None:
        """Writes the pending updates. Raises StoreUnavailable; then they stay pending."""
        remaining, self._pending = list(self._pending.values()), {}
        try:
            while remaining:
                await self._store.set_residency(remaining[:UPDATES_PER_WRITE_MAX])
                del remaining[:UPDATES_PER_WRITE_MAX]
                await asyncio.sleep(0)
        except BaseException:
            # Newer updates take precedence.
            self._pending = {**{update.key: update for update in remaining}, **self._pending}
            raise

    async def load_settled(self, key: Key) -> Record | None:
        """The record of a stream, after the server that has it in memory has saved its last applied timestep.

        Raises:
            PeerUnresponsive: that server does not respond.
            CheckpointBroken, StoreUnavailable: as `Store.load`.

        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SAVE_WAIT_SECONDS
        record = await self._store.load(key)
        requested: tuple[int, int] | None = None  # the epoch of the request, and its number
        while record is not None and record.metadata.holder is Holder.OTHER and record.metadata.live:
            head = record.metadata
            if requested is not None and requested[0] == head.epoch and head.save_answers >= requested[1]:
                break
            if loop.time() > deadline:  # also when the stream changes hands again and again
                raise PeerUnresponsive(
                    "", f"the server that has stream '{key.stream_id}' in memory does not answer; try again"
                )
            if requested is None or requested[0] != head.epoch:
                number = await self._store.request_save(key, head.epoch)
                requested = None if number is None else (head.epoch, number)
            else:
                await asyncio.sleep(SAVE_POLL_SECONDS)
            record = await self._store.load(key)
        return record

    async def run(self) -> None:
        """Announces, reads notices and sends heartbeats, until cancelled."""
        while True:
            try:
                await self._heartbeat()
                await self.flush()
                keys = await self._store.take_notices()
                for first in range(0, len(keys), CONCURRENT_MAX):
                    await self._heartbeat()  # however long the notices take, this server does not count as dead
                    await asyncio.gather(*(self._handle_notice(key) for key in keys[first : first + CONCURRENT_MAX]))
                if self._failing:
                    log.info("other servers can be reached again")
                self._failing = False
            except StoreUnavailable as error:
                if not self._failing:
                    log.error("%s; other servers cannot be reached", error)
                self._failing = True
            await asyncio.sleep(NOTICE_POLL_SECONDS)

    async def _heartbeat(self) -> None:
        """Sends a heartbeat when it is due and this server has streams in memory."""
        now = asyncio.get_running_loop().time()
        if not self._holds_any() or now < self._heartbeat_at:
            return
        self._heartbeat_at = now + HEARTBEAT_SECONDS
        run, last = await self._store.heartbeat(), self._store_run_id
        self._store_run_id = run
        if last not in (None, run):
            await self._on_restart()

    async def _handle_notice(self, key: Key) -> None:
        """Handles one notice. A failure does not affect the other notices."""
        try:
            async with asyncio.timeout(NOTICE_TIMEOUT_SECONDS):
                await self._on_notice(key)
        except (TidegateError, TimeoutError) as error:
            log.warning(
                "stream %s: the request of another server has failed: %s", key.stream_id, error or "it took too long"
            )
