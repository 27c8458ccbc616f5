"""Splits long work in the event loop into short time slices, so that other tasks run in between."""

import asyncio
from time import perf_counter

# A step of a small model takes half a millisecond from client to client. Behind one slice it takes about five times as
# long.
SLICE_SECONDS = 0.002


class TimeSlice:
    """The time slice of one long piece of work. Tasks that share the object share the slice."""

    def __init__(self) -> None:
        self._ends = perf_counter() + SLICE_SECONDS
        self._next_claimed = False  # a task has already claimed the next slice

    async def maybe_yield(self) -> None:
        """Yields to the event loop when the slice is used up; else returns at once."""
        while perf_counter() >= self._ends:
            claimed, self._next_claimed = not self._next_claimed, True
            try:
                await asyncio.sleep(0)
            finally:
                if claimed:
                    self._next_claimed = False
                    self._ends = perf_counter() + SLICE_SECONDS
