"""Ends runs of models that take too long.

A graph may hold a loop whose length depends on its input. A thread watches the runs, because one in the event loop
stops everything else in the process: health checks, other models, signals. onnxruntime ends a run between two
operators. Where even that does not help, only the end of the process does: its streams are in the store, and clients
send again what is not.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from math import inf
from time import perf_counter
from weakref import WeakKeyDictionary

from tidegate.runtime.batcher import Batcher

log = logging.getLogger("tidegate.models")

# How often the thread looks, in seconds. It counts its looks, not the time: a process that was stopped for a while has
# not run for so long.
LOOK_SECONDS = 0.1
# How long a model counts as unhealthy after one of its runs was ended, in seconds: a probe each second sees it.
LATE_SECONDS = 2.0
# How long a run may block the event loop. Only models whose runs took some hundred microseconds run there.
LOOP_RUN_SECONDS_MAX = 1.0
# How much longer than its time a run may take, in seconds: it ends only between two operators.
STUCK_SECONDS = 5.0


class RunWatch:
    """Watches the runs of some batchers in a thread, from `start` to `stop`.

    Args:
        batchers: the batchers, looked up each time.
        step_s: how long a run may take, in seconds.
        on_stuck: called in the thread when a run in the event loop cannot be ended.

    """

    def __init__(
        self, batchers: Callable[[], Iterable[Batcher]], step_s: float, on_stuck: Callable[[str], None]
    ) -> None:
        self._batchers = batchers
        self._step_s = step_s
        self._on_stuck = on_stuck
        self._looks: dict[Batcher, tuple[float, int]] = {}  # the run that was seen, and how often
        self._ended_at: WeakKeyDictionary[Batcher, float] = WeakKeyDictionary()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run watch", daemon=True)

    def __repr__(self) -> str:
        return f"<RunWatch: {len(self._looks)} models run>"

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def end_all(self) -> None:
        """Ends every run soon: no caller waits for one any more."""
        self._step_s = LOOK_SECONDS

    def is_late(self, batcher: Batcher) -> bool:
        """Whether a run takes longer than it may, or was ended for that a moment ago."""
        since, now = batcher.running_since, perf_counter()
        return (bool(since) and now - since > self._step_s) or now - self._ended_at.get(batcher, -inf) < LATE_SECONDS

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Looks at all runs once."""
        looks = {}
        for batcher in self._batchers():
            since = batcher.running_since
            if not since:
                continue
            seen, times = self._looks.get(batcher, (since, 0))
            times = times + 1 if seen == since else 1
            looks[batcher] = (since, times)
            allowed_s = self._step_s if batcher.runs_in_thread else min(self._step_s, LOOP_RUN_SECONDS_MAX)
            self._judge(batcher, since, times, allowed_s)
        self._looks = looks

    def _judge(self, batcher: Batcher, since: float, times: int, allowed_s: float) -> None:
        model = batcher.engine.model
        # Again and again: after the batch its rows run alone, and each may take too long.
        if times % max(1, round(allowed_s / LOOK_SECONDS)) == 0:
            batcher.cost.hung = True
            self._ended_at[batcher] = perf_counter()
            model.end_run()
            if batcher.running_since != since:  # it has just ended by itself, and the next one may go on
                model.resume()
                return
            log.error("model %s: a run takes more than %g s and is ended", model.spec.title, allowed_s)
        stuck_s = 3 * allowed_s + STUCK_SECONDS
        if not batcher.runs_in_thread and times == round(stuck_s / LOOK_SECONDS):
            self._on_stuck(f"model {model.spec.title}: a run in the event loop does not end")
