"""Measures how long one turn of the event loop blocks it, in processor time: other processes do not count."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import thread_time


@dataclass
class LoopLatency:
    """Processor time of the event loop's thread, in seconds: of the longest turn, and in all."""

    longest: float = 0.0
    total: float = 0.0

    async def watch(self) -> None:
        """Measures every turn, until cancelled."""
        last = thread_time()
        while True:
            await asyncio.sleep(0)
            now = thread_time()
            self.longest = max(self.longest, now - last)
            self.total += now - last
            last = now


@asynccontextmanager
async def measure_loop() -> AsyncIterator[LoopLatency]:
    """Measures the turns inside the context, with the garbage collector off: its pauses depend on all objects, not on this code."""
    turns = LoopLatency()
    gc.disable()
    watching = asyncio.create_task(turns.watch())
    await asyncio.sleep(0)
    try:
        yield turns
        await asyncio.sleep(0)
    finally:
        gc.enable()
        watching.cancel()
