"""The load generator of one client process: it opens the calls, sends due timesteps and counts the answers.

Rules:
1. Due times come from the schedule (open loop) or from the previous answer (closed loop). They never depend on when a
   timestep was sent.
2. Reading never waits for writing, so a server that reads slowly cannot stop this process from reading its answers.
3. Opening, draining and closing have time limits. A call that exceeds one is cancelled.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from tidegate.bench.counts import Counts
from tidegate.bench.messages import Ready, Report, RunTimes, SecondsDone, Task
from tidegate.bench.plan import Plan
from tidegate.bench.schedule import Schedule
from tidegate.bench.timer import Timer

# Enough to keep a server busy, without filling its queue.
OPENS_IN_FLIGHT_MAX = 64
# The time limit for opening or closing: a busy server opens or deletes some hundred streams per second.
OPEN_TIMEOUT_S = 10.0
OPEN_TIMEOUT_S_PER_STREAM = 0.01
# The time limit for answers after the end of the load. Later answers count as unanswered.
DRAIN_TIMEOUT_S = 5.0
# The counts of a second are sent this long after its end.
PROGRESS_DELAY_S = 0.05
# The interval between checks of a time limit.
POLL_INTERVAL_S = 0.25

MakeRunners = Callable[["LoadGenerator", Task, AsyncExitStack], Awaitable[Sequence["CallRunner"]]]


def open_timeout_s(streams: int) -> float:
    """Returns the time limit for opening or closing that many streams."""
    return OPEN_TIMEOUT_S + OPEN_TIMEOUT_S_PER_STREAM * streams


class CallRunner:
    """Runs one call, from its open to its end.

    Attributes:
        streams: the number of open streams.
        refused: the number of streams that could not be opened, by reason.
        opened: a future that is done when the server has answered the open.
        ended: a future that is done when the call has ended.
        lost: whether the call ended too early.
        closed: whether the server closed the streams on request.
    """

    def __init__(self, load: "LoadGenerator", streams: int) -> None:
        self.streams = streams
        self.refused: Counter[str] = Counter()
        self.opened: asyncio.Future[None] = load.loop.create_future()
        self.ended: asyncio.Future[None] = load.loop.create_future()
        self.lost = False
        self.closed = False
        self._load = load

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.streams} streams>"

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is in flight."""
        raise NotImplementedError

    def open(self) -> None:
        """Opens the streams."""
        raise NotImplementedError

    def on_due(self, due: float, now: float) -> None:
        """The next timestep of every row is due."""
        raise NotImplementedError

    def abandon(self) -> list[tuple[float, int]]:
        """Gives up all unanswered messages. Returns the due time and the number of rows of each."""
        raise NotImplementedError

    def close(self) -> None:
        """Asks the server to close and delete the streams."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ends the call at once."""
        raise NotImplementedError

    def end(self, reason: str = "", error: str = "") -> None:
        """The call has ended. A reason means that it ended too early."""
        if self.ended.done():
            return
        self.ended.set_result(None)
        if not reason:
            return
        self._load.first_error = self._load.first_error or error
        if self.opened.done():
            self.lost = True
            self._load.call_lost(self, reason)
            return
        if self.streams:
            self.refused[reason] += self.streams
            self.streams = 0
        self.opened.set_result(None)


class LoadGenerator:
    """All calls of a process.

    Args:
        task: what to do.
        report_progress: is called with the counts of the seconds that are over.
        make_runners: connects, and makes the runners of the calls. An exit stack closes the connections.
    """

    def __init__(self, task: Task, report_progress: Callable[[SecondsDone], None], make_runners: MakeRunners) -> None:
        self.plan: Plan = task.plan
        self.loop = asyncio.get_running_loop()
        self.counts = Counts()
        self.closed_loop = task.plan.rate is None
        self.draining = False  # the load has ended; answers may still come
        self.abandoned = False  # nothing more is expected
        self.closing = False
        self.first_error = ""  # the message of the first stream that was refused or lost
        self._task = task
        self._report_progress = report_progress
        self._make_runners = make_runners
        self._connections = AsyncExitStack()
        self._runners: dict[CallRunner, None] = {}  # those with an open call, in order
        self._all_runners: list[CallRunner] = []
        self._draining_runners: set[CallRunner] = set()  # while draining: those with unanswered messages
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()  # the load has ended
        self._all_drained = asyncio.Event()
        self._timer: Timer | None = None
        self._schedule: Schedule | None = None
        # In order of time, because all pauses have the same length.
        self._think_queue: deque[tuple[float, CallRunner]] = deque()
        self._start = 0.0
        self._streams_left = 0
        self._failure: BaseException | None = None

    async def open(self) -> Ready:
        """Opens all streams, some at a time. Streams that are not open at the time limit count as refused."""
        streams = sum(self._task.calls)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                runners = await self._make_runners(self, self._task, self._connections)
        except OSError as error:  # a TimeoutError too
            return Ready(0, Counter({"UNAVAILABLE": streams}), f"{error or 'the server does not answer'}")
        waiting = deque(runners)
        opening: set[asyncio.Future[None]] = set()
        deadline = time.monotonic() + open_timeout_s(streams)
        while (waiting or opening) and time.monotonic() < deadline and not self._stopped.is_set():
            while waiting and len(opening) < OPENS_IN_FLIGHT_MAX:
                runner = waiting.popleft()
                runner.open()
                opening.add(runner.opened)
            _, opening = await asyncio.wait(opening, timeout=POLL_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
        refused: Counter[str] = Counter()
        for runner in waiting:
            refused["DEADLINE_EXCEEDED"] += runner.streams
            runner.streams = 0
        for runner in runners:
            if runner.streams and not runner.opened.done():
                runner.cancel()
            refused += runner.refused
        self._all_runners = [runner for runner in runners if runner.streams]
        self._runners = dict.fromkeys(runner for runner in self._all_runners if not runner.lost)
        return Ready(sum(runner.streams for runner in self._all_runners), refused, self.first_error)

    async def run(self, times: RunTimes) -> Report:
        """Runs the load, waits for the answers and closes the streams."""
        self.counts.set_measured_time(times.begin, min(times.end, self.counts.end))
        self._timer = Timer(self._on_timer)
        cpu_s = 0.0
        if await self._wait_until(times.start):
            self._begin_load(times.start)
            self._schedule_progress()
        if await self._wait_until(times.begin):
            cpu_s = time.process_time()
            await self._wait_until(times.end)
            cpu_s = time.process_time() - cpu_s
        self._stopped.set()
        self._timer.close()
        end = min(time.monotonic(), self.counts.end)
        await self._drain()
        await self._close()
        if self._failure is not None:
            raise self._failure
        return Report(self.counts, self.counts.pop_seconds(2**62), end, cpu_s, self._streams_left, self.first_error)

    def stop(self, end: float) -> None:
        """Ends the load early."""
        self.counts.end = min(end, self.counts.end)
        self._stopped.set()

    async def close(self) -> None:
        """Cancels all tasks and closes the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connections.aclose()

    def start_task(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Runs a coroutine as a task. An exception in it is a bug and ends the run."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def next_due(self, runner: CallRunner, now: float) -> float | None:
        """A message was answered. Returns the due time of the next one.

        Returns None in an open loop, at the end, and when the timer will call `on_due` after a pause.
        """
        if not self.closed_loop or now >= self.counts.end or self._stopped.is_set():
            return None
        if not self.plan.think:
            return now
        self._think_queue.append((now + self.plan.think, runner))
        if len(self._think_queue) == 1:
            self._set_timer()
        return None

    def call_lost(self, runner: CallRunner, reason: str) -> None:
        """A call ended too early."""
        if not self.closing:
            self.counts.lost[reason] += runner.streams
        self._streams_left += runner.streams
        self._runners.pop(runner, None)
        if not self.abandoned:
            self._abandon(runner)
        self.call_drained(runner)
        if not self._runners:
            self._stopped.set()

    def call_drained(self, runner: CallRunner) -> None:
        """A call has no more unanswered messages."""
        self._draining_runners.discard(runner)
        if not self._draining_runners:
            self._all_drained.set()

    def _begin_load(self, start: float) -> None:
        plan = self.plan
        seed = (plan.seed, self._task.process)
        self._start = start  # even when it is later: the due times are computed already
        if not self._runners:
            self._stopped.set()
        elif plan.interval_s is not None:
            self._schedule = Schedule(len(self._all_runners), plan.interval_s, plan.arrivals, seed)
        elif plan.think:
            # Random phases, so that the streams do not all send at the same time.
            phases = np.random.default_rng(seed).uniform(0.0, plan.think, (len(self._all_runners), plan.ahead))
            first_due = sorted((self._start + due, index) for index, row in enumerate(phases.tolist()) for due in row)
            self._think_queue.extend((due, self._all_runners[index]) for due, index in first_due)
        else:
            for runner in self._all_runners:
                for _ in range(plan.ahead):
                    now = time.monotonic()
                    runner.on_due(now, now)
        self._set_timer()

    def _on_timer(self) -> None:
        """Passes due messages to their runners."""
        now = time.monotonic()
        if self._schedule is not None:
            for due, index in self._schedule.pop_due(min(now, self.counts.end) - self._start):
                self.counts.add_lateness(self._start + due, now)
                self._all_runners[index].on_due(self._start + due, now)
        while self._think_queue and self._think_queue[0][0] <= now < self.counts.end:
            self._think_queue.popleft()[1].on_due(now, now)
        if not self._stopped.is_set() and now < self.counts.end:
            self._set_timer()

    def _set_timer(self) -> None:
        assert self._timer is not None
        if self._schedule is not None:
            self._timer.set(self._start + self._schedule.next_s)
        elif self._think_queue:
            self._timer.set(self._think_queue[0][0])

    async def _wait_until(self, until: float) -> bool:
        """Waits until a time. Returns False when the load was stopped before."""
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    async def _drain(self) -> None:
        """Waits for the answers to what was due. The rest counts as unanswered."""
        self.draining = True
        self._think_queue.clear()
        self._draining_runners = {runner for runner in self._runners if not runner.idle}
        if self._draining_runners:
            await asyncio.wait([asyncio.ensure_future(self._all_drained.wait())], timeout=DRAIN_TIMEOUT_S)
        self.abandoned = True
        for runner in self._runners:
            self._abandon(runner)

    async def _close(self) -> None:
        """Closes all streams, within the time limit."""
        self.closing = True
        closing = {runner.ended for runner in self._runners}
        for runner in list(self._runners):
            runner.close()
        deadline = time.monotonic() + open_timeout_s(sum(runner.streams for runner in self._runners))
        while closing and time.monotonic() < deadline and self._failure is None:
            _, closing = await asyncio.wait(closing, timeout=POLL_INTERVAL_S)
        self._streams_left += sum(runner.streams for runner in self._runners if not runner.closed)

    def _abandon(self, runner: CallRunner) -> None:
        for due, rows in runner.abandon():
            self.counts.add_unanswered(due, rows)

    def _schedule_progress(self) -> None:
        """Reports each second after its end."""
        now = max(time.monotonic(), self._start) + PROGRESS_DELAY_S / 2  # timers and sums of floats are not exact
        number = math.floor(now - self.counts.begin) + 1
        due = self.counts.begin + number + PROGRESS_DELAY_S
        self.loop.call_later(due - time.monotonic(), self._send_progress, number)

    def _send_progress(self, number: int) -> None:
        if not self._stopped.is_set():
            self._report_progress(SecondsDone(number, self.counts.pop_seconds(number)))
            self._schedule_progress()

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = self._failure or failure
            self._stopped.set()
            self._all_drained.set()
