"""How long the event loop is kept by one turn of it, in processor time: what other processes take does not count."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import thread_time


@dataclass
class Turns:
    """Seconds of the loop's thread: of its longest turn, and of all."""

    longest: float = 0.0
    total: float = 0.0

    async def watch(self) -> None:
        """Takes part in every turn, until cancelled."""
        last = thread_time()
        while True:
            await asyncio.sleep(0)
            now = thread_time()
            self.longest = max(self.longest, now - last)
            self.total += now - last
            last = now


@asynccontextmanager
async def watched_turns() -> AsyncIterator[Turns]:
    """Measures what is done inside. The collector rests: its pauses are a matter of what there is, not of who runs."""
    turns = Turns()
    gc.disable()
    watching = asyncio.create_task(turns.watch())
    await asyncio.sleep(0)
    try:
        yield turns
        await asyncio.sleep(0)
    finally:
        gc.enable()
        watching.cancel()
