"""How long tests wait for what must come."""

import asyncio
from collections.abc import Callable

# The longest wait in a test, whatever for. It only ends a test that hangs: nothing takes a second on a free machine, and one that is
# busy, slow, or stands still for some seconds must not fail a test. A run of many clients gets a multiple of it.
TIMEOUT_S = 60.0


async def eventually(condition: Callable[[], bool], what: str = "it") -> None:
    """Waits until a condition holds; fails when it does not hold in time."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - the parts of a server have no event for it
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen") from None
