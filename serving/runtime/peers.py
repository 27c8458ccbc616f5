"""The other servers on the same store, as far as a stream concerns them.

The laws of this file:
1. Nobody waits for another server to open a stream: the store fences whoever had it.
2. What this server has in memory it says to the store, in the background: so others can tell a live stream from a parked one,
   and do not let it expire. It says every so often that it is alive; what a dead server said counts no longer.
3. A server that opened, deleted or wants to read a stream that another one has in memory gives it notice. The other looks at
   the stream within `LOOK_SECONDS`: it stores it if it still has it, and drops it if it has it no longer.
4. The notice is for speed. A server that misses it finds out when it next stores or wakes the stream, which the store refuses.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serving.core.errors import StoreUnavailable, TidegateError
from serving.core.spec import Key
from serving.core.streams import Phase, Stream
from serving.store import Holder, Mark, Marking, Record, Store
from serving.store.store import BEAT_SECONDS, DEAD_SECONDS

log = logging.getLogger("tidegate.peers")

# How often notices are looked for. A look costs some hundred microseconds, and somebody who asks waits for one.
LOOK_SECONDS = 0.1
# How long somebody waits for the server that has a stream in memory to store it: that looks, commits and answers in a fraction of a
# second. Longer than it takes to be taken for dead, so that after a crash what is stored is found rather than an error.
ASK_SECONDS = DEAD_SECONDS + 2.0
# How long a look at one stream may take: with what lies between two heartbeats less than it takes to be taken for dead.
LOOK_AT_SECONDS = 2.0
# Between two looks at whether it has.
ASK_AGAIN_SECONDS = 0.02
# Marks in one write: a store that is in memory takes a few microseconds for each, during which nothing else runs.
SAID_AT_ONCE_MAX = 1024
# Streams that are looked at side by side: their loads share a commit of the store.
TOGETHER_MAX = 64


class HolderSilent(StoreUnavailable):
    """The server that has a stream in memory does not answer; soon it will, or count as dead."""


class Peers:
    """Speaks to other servers through the store; `run` is its task.

    Args:
        store: what they share.
        look: looks at a stream that another server opened, deleted or asks for.
        holds_any: whether this server has any stream in memory.
        on_restart: stores all live streams again, after the store was restarted and may have less.

    """

    def __init__(
        self,
        store: Store,
        look: Callable[[Key], Awaitable[None]],
        holds_any: Callable[[], bool],
        on_restart: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._look = look
        self._holds_any = holds_any
        self._on_restart = on_restart
        self._run_of_store: str | None = None
        self._unsaid: dict[Key, Marking] = {}
        self._beat_at = 0.0
        self._failing = False

    def __repr__(self) -> str:
        return f"<Peers on {self._store!r}: {len(self._unsaid)} marks to say>"

    def say(self, stream: Stream) -> None:
        """Has others told, soon, where a stream is: live, asleep on an open call, or no longer in memory."""
        mark = Mark.LIVE if stream.phase is Phase.LIVE else Mark.ASLEEP if stream.lease is not None else Mark.RELEASED
        self.say_of(Marking(stream.key, stream.epoch, mark))

    def say_of(self, marking: Marking) -> None:
        """Has others told that, soon."""
        self._unsaid[marking.key] = marking

    async def flush(self) -> None:
        """Tells what is to be told. StoreUnavailable; then it is told later."""
        left, self._unsaid = list(self._unsaid.values()), {}
        try:
            while left:
                await self._store.mark(left[:SAID_AT_ONCE_MAX])
                del left[:SAID_AT_ONCE_MAX]
                await asyncio.sleep(0)
        except BaseException:
            # What was said meanwhile counts.
            self._unsaid = {**{marking.key: marking for marking in left}, **self._unsaid}
            raise

    async def settled(self, key: Key) -> Record | None:
        """What is held of a stream, after the server that has it in memory has stored its last applied timestep.

        Raises:
            HolderSilent: that server does not answer.
            CheckpointBroken, StoreUnavailable: as `Store.load`.

        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ASK_SECONDS
        record = await self._store.load(key)
        asked: tuple[int, int] | None = None  # of which epoch, by which number
        while record is not None and record.head.holder is Holder.OTHER and record.head.live:
            head = record.head
            if asked is not None and asked[0] == head.epoch and head.answered >= asked[1]:
                break
            if loop.time() > deadline:  # also when it changes hands again and again
                raise HolderSilent(
                    "", f"the server that has stream '{key.stream_id}' in memory does not answer; try again"
                )
            if asked is None or asked[0] != head.epoch:
                number = await self._store.ask(key, head.epoch)
                asked = None if number is None else (head.epoch, number)
            else:
                await asyncio.sleep(ASK_AGAIN_SECONDS)
            record = await self._store.load(key)
        return record

    async def run(self) -> None:
        """Says, listens and shows that this server is alive, until cancelled."""
        while True:
            try:
                await self._beat()
                await self.flush()
                keys = await self._store.notices()
                for first in range(0, len(keys), TOGETHER_MAX):
                    await self._beat()  # however long the others take, this server is not taken for dead
                    await asyncio.gather(*(self._look_at(key) for key in keys[first : first + TOGETHER_MAX]))
                if self._failing:
                    log.info("other servers can be heard again")
                self._failing = False
            except StoreUnavailable as error:
                if not self._failing:
                    log.error("%s; other servers cannot be heard", error)
                self._failing = True
            await asyncio.sleep(LOOK_SECONDS)

    async def _beat(self) -> None:
        """Shows that this server is alive, when it is time to and it has something in memory."""
        now = asyncio.get_running_loop().time()
        if not self._holds_any() or now < self._beat_at:
            return
        self._beat_at = now + BEAT_SECONDS
        run, last = await self._store.beat(), self._run_of_store
        self._run_of_store = run
        if last not in (None, run):
            await self._on_restart()

    async def _look_at(self, key: Key) -> None:
        """Looks at one stream; one that cannot be looked at does not keep the others waiting."""
        try:
            async with asyncio.timeout(LOOK_AT_SECONDS):
                await self._look(key)
        except (TidegateError, TimeoutError) as error:
            log.warning(
                "stream %s: another server asked for it, in vain: %s", key.stream_id, error or "it took too long"
            )
