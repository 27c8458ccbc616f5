"""How long a client waits before it tries again.

Full jitter: the wait is drawn evenly between nothing and the bound, so that a thousand clients of a server that came back
do not come back together. The clock is monotonic. Tests put their own clock, sleep and dice in.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

# 2 ** 16 times any first wait is beyond any longest one, and still a number.
DOUBLINGS_MAX = 16


@dataclass(frozen=True, slots=True)
class Backoff:
    """The first try comes at once, the second within `first_s`, then the bound doubles up to `longest_s`."""

    first_s: float = 0.05
    longest_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    dice: Callable[[], float] = random.random

    def wait_s(self, tries: int) -> float:
        """How long to wait after so many tries that failed."""
        if tries == 0:
            return 0.0
        return self.dice() * min(self.longest_s, self.first_s * 2.0 ** min(tries - 1, DOUBLINGS_MAX))

    def not_before_s(self, asked_s: float) -> float:
        """How long to wait when the server asked for a wait: that long, and up to half of it more."""
        asked_s = asked_s or self.first_s
        return asked_s * (1 + self.dice() / 2)
