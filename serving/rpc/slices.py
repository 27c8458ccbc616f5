"""Long work in the event loop, cut into short slices, so that everybody else is served meanwhile."""

import asyncio
from time import perf_counter

# A step of a small model takes about half a millisecond from client to client; who waits for a slice waits four times as long.
SLICE_SECONDS = 0.002


class Slices:
    """The clock of one piece of work that may be long. Several tasks may share it: then the slice is for all of them."""

    def __init__(self) -> None:
        self._ends = perf_counter() + SLICE_SECONDS
        self._promised = False  # one of them has the next slice

    async def rest(self) -> None:
        """Lets the event loop do what else there is, if the slice is used up; else returns at once."""
        while perf_counter() >= self._ends:
            mine, self._promised = not self._promised, True
            try:
                await asyncio.sleep(0)
            finally:
                if mine:
                    self._promised = False
                    self._ends = perf_counter() + SLICE_SECONDS
