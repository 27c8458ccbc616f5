"""Runs shadows beside the real versions. See `core.shadow`.

The rules of this file:
1. A shadow never delays or fails a real answer. The engine hands it a copy of what it has answered, and nothing more.
2. The queue of a shadow is bounded. When it is full, timesteps are dropped and counted; their streams begin again.
3. It runs in a thread of its own. Its errors are counted, and the first is logged.
"""

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from tidegate.core.shadow import Applied, ShadowRun, Tap
from tidegate.core.swap_policy import difference
from tidegate.runtime.model_settings import ShadowSettings
from tidegate.runtime.repository import Repository, ServedModel

log = logging.getLogger("tidegate.shadow")

# How many timesteps may wait: a second of a small model on half a core.
QUEUE_ROWS_MAX = 8192


class Shadow:
    """A version that runs beside another one.

    Args:
        real: the version whose timesteps it gets.
        shadow: the version that it runs.
        settings: which streams it sees, and when they are compared.

    """

    def __init__(self, real: ServedModel, shadow: ServedModel, settings: ShadowSettings) -> None:
        self.real = real
        self.shadow = shadow
        self.settings = settings
        self._metrics = shadow.metrics
        self._run = ShadowRun(shadow.batcher.engine.model, shadow.slots.capacity, settings.warmup)
        self._queue: deque[Applied] = deque()
        self._rows = 0  # in the queue
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._failing = False
        self._task = asyncio.create_task(self._work(), name=repr(self))
        real.batcher.engine.tap = Tap(real.slots, settings.share, self._offer)

    def __repr__(self) -> str:
        return f"<Shadow {self.shadow.spec.title} of {self.real.spec.title}>"

    def _offer(self, applied: Applied) -> None:
        """Queues timesteps, or drops them. Called in the thread of the engine."""
        self._loop.call_soon_threadsafe(self._put, applied)

    def _put(self, applied: Applied) -> None:
        if self._rows + len(applied.keys) > QUEUE_ROWS_MAX:
            self._metrics.shadow_steps["dropped"] += len(applied.keys)
            return
        self._rows += len(applied.keys)
        self._queue.append(applied)
        self._arrived.set()

    async def _work(self) -> None:
        """Runs what is queued, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                applied = self._queue.popleft()
                try:
                    compared = await self._loop.run_in_executor(self._thread, self._run.run, applied)
                except Exception as error:  # noqa: BLE001 - a shadow must harm nobody, whatever is wrong with it
                    if not self._failing:
                        log.error("%r fails: %s", self, error)
                    self._failing = True
                    self._metrics.shadow_steps["failed"] += len(applied.keys)
                else:
                    self._metrics.shadow_steps["compared"] += len(compared.absolute)
                    self._metrics.shadow_steps["warming"] += compared.warming
                    self._metrics.shadow_steps["failed"] += compared.failed
                    self._metrics.shadow_absolute.observe_many(compared.absolute)
                    self._metrics.shadow_relative.observe_many(compared.relative)
                self._rows -= len(applied.keys)

    def close(self) -> None:
        """Ends it."""
        self.real.batcher.engine.tap = None
        self._task.cancel()
        self._thread.shutdown(wait=False)


class Shadows:
    """The shadows of a process, at most one for each model."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._shadows: dict[str, Shadow] = {}

    def __repr__(self) -> str:
        return f"<Shadows: {', '.join(map(repr, self._shadows.values()))}>"

    def refresh(self, name: str) -> None:
        """Begins, changes or ends the shadow of a model, after its versions or its settings have changed."""
        real, shadow = self._repository.default(name), self._repository.shadow(name)
        settings = self._repository.settings(name).shadow
        running = self._shadows.get(name)
        if running is not None:
            if (running.real, running.shadow, running.settings) == (real, shadow, settings):
                return
            del self._shadows[name]
            running.close()
        if real is None or shadow is None:
            return
        if why_not := difference(real.spec, shadow.spec):
            log.warning("%s is no shadow of %s: %s", shadow.spec.title, real.spec.title, why_not)
            return
        self._shadows[name] = Shadow(real, shadow, settings)
        log.info("%r sees %g of the streams", self._shadows[name], settings.share)

    def close(self) -> None:
        """Ends all of them."""
        for shadow in self._shadows.values():
            shadow.close()
        self._shadows.clear()
