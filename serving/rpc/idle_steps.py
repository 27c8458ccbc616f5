"""Single timesteps of streams that no call holds open. Both unary calls run them: `PredictOne` and `ModelInfer`.

The stream stays in memory as an idle stream, so that the next call for it is fast: it continues without asking the
store. Another server may have opened the stream meanwhile, and then the state here is old. So no result that a caller
could act on is sent before the store has confirmed it. When such a try fails, it is repeated from the store.
"""

import asyncio
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from tidegate.core.errors import InvalidField, LeaseEnded, StepGap, StreamRefused, ValuesDiffer
from tidegate.core.spec import Key, Prediction
from tidegate.core.streams import Lease
from tidegate.core.swap_policy import Moved
from tidegate.rpc.backend import OpenResult, StreamBackend
from tidegate.rpc.stream_quota import StreamQuota

# Every try but the first claims the stream. They all fail only if others claim it within the milliseconds of each.
TRIES = 4


class IdleSteps:
    """Runs the timesteps of each stream one after the other."""

    def __init__(self, backend: StreamBackend) -> None:
        self._backend = backend
        # A client that times out sends its timestep again, perhaps while the first one is still being stored.
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    async def run(
        self,
        key: Key,
        quota: StreamQuota,
        acquire_idle: Callable[[], Lease | None],
        open_stream: Callable[[], Awaitable[OpenResult]],
        step: Callable[[Lease], Awaitable[Prediction]],
    ) -> tuple[Prediction, Lease, list[Moved]]:
        """Runs one timestep.

        Args:
            key: the stream.
            quota: of the connection.
            acquire_idle: gives the stream if it is in memory.
            open_stream: opens it from the store.
            step: applies the timestep, and stores it if its answer has to wait for that.

        Returns:
            The prediction; the lease under which it was computed, which is over; and for each open whether the stream moved.

        """
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            lease, moves = acquire_idle(), list[Moved]()
            for tries_left in range(TRIES, 0, -1):
                reused = lease is not None  # and the store was not asked whether it is still valid
                if lease is None:
                    opened = await open_stream()
                    lease = opened.lease
                    moves.append(opened.moved)
                quota.leases.add(lease)
                try:
                    return await step(lease), lease, moves
                except (LeaseEnded, StreamRefused) as error:
                    if lease.ended is None or isinstance(error, InvalidField) or tries_left == 1:
                        raise
                except (StepGap, ValuesDiffer):
                    if not reused:
                        raise
                finally:
                    quota.leases.discard(lease)
                    self._backend.release_to_idle(lease, opened=not reused)
                lease = None
        raise AssertionError("the last try returns or raises")
