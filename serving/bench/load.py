"""One client process: opens its lanes, sends what is due, and counts what comes back.

Laws:
1. What is due is decided by the schedule (open loop) or by the answer before it (closed loop); never by how late it is sent.
2. Reading never waits for writing, so a server that is slow to read cannot keep this side from taking its answers.
3. Everything ends: opening, draining and closing have deadlines, and a call that does not keep one is cancelled.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from serving.bench.alarm import Alarm
from serving.bench.plan import Plan
from serving.bench.schedule import Schedule
from serving.bench.tally import Tally
from serving.bench.words import Go, Ready, Report, Seconds, Task

# Enough to keep a server busy, few enough to leave it its queue.
OPENS_AT_ONCE = 64
# A busy server opens and forgets some hundred streams a second, beside what else it does.
PATIENCE_S = 10.0
PATIENCE_S_PER_STREAM = 0.01
# What was due at the end may still be answered; what has not been by then is called unanswered.
DRAIN_S = 5.0
# A second is told a little after it is over.
TELL_AFTER_S = 0.05
# How often deadlines are looked at.
LOOK_S = 0.25

Make = Callable[["Load", Task, AsyncExitStack], Awaitable[Sequence["Runner"]]]


def patience_s(streams: int) -> float:
    """How long opening or closing so many streams may take."""
    return PATIENCE_S + PATIENCE_S_PER_STREAM * streams


class Runner:
    """One lane, from its open to its end.

    Attributes:
        streams: that are open.
        refused: that could not be opened, by reason.
        opened: done when it is known which.
        ended: done when the call is over.
        gone: whether it was over before its time.
        closed: whether the server has ended the streams as it was asked.

    """

    def __init__(self, load: "Load", streams: int) -> None:
        self.streams = streams
        self.refused: Counter[str] = Counter()
        self.opened: asyncio.Future[None] = load.loop.create_future()
        self.ended: asyncio.Future[None] = load.loop.create_future()
        self.gone = False
        self.closed = False
        self._load = load

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.streams} streams>"

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        raise NotImplementedError

    def begin(self) -> None:
        """Opens the streams."""
        raise NotImplementedError

    def due(self, at: float, now: float) -> None:
        """The next timestep of every row is due."""
        raise NotImplementedError

    def abandon(self) -> list[tuple[float, int]]:
        """Gives up what was not answered: when it was due and how many rows."""
        raise NotImplementedError

    def close(self) -> None:
        """Asks the server to forget the streams."""
        raise NotImplementedError

    def cut(self) -> None:
        """Ends the call at once."""
        raise NotImplementedError

    def over(self, reason: str = "", why: str = "") -> None:
        """The call is over; with a reason, before its time."""
        if self.ended.done():
            return
        self.ended.set_result(None)
        if not reason:
            return
        self._load.why = self._load.why or why
        if self.opened.done():
            self.gone = True
            self._load.lost(self, reason)
            return
        if self.streams:
            self.refused[reason] += self.streams
            self.streams = 0
        self.opened.set_result(None)


class Load:
    """All lanes of a process.

    Args:
        task: what to do.
        tell: takes the seconds that are over.
        make: connects, as long as a stack is open, and makes the lanes.

    """

    def __init__(self, task: Task, tell: Callable[[Seconds], None], make: Make) -> None:
        self.plan: Plan = task.plan
        self.loop = asyncio.get_running_loop()
        self.tally = Tally()
        self.closed = task.plan.rate is None
        self.draining = False  # the time is up; what was due may still be answered
        self.abandoned = False  # and what was not is no longer waited for
        self.closing = False
        self.why = ""  # what was said of the first stream that was refused or lost
        self._task = task
        self._tell = tell
        self._make = make
        self._connections = AsyncExitStack()
        self._runners: dict[Runner, None] = {}  # whose calls are open, in order
        self._by_place: list[Runner] = []
        self._busy: set[Runner] = set()  # while draining: those with something to be answered
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()  # the time is up
        self._drained = asyncio.Event()
        self._alarm: Alarm | None = None
        self._schedule: Schedule | None = None
        self._thinking: deque[tuple[float, Runner]] = deque()  # in order: all think as long
        self._start = 0.0
        self._left = 0
        self._bug: BaseException | None = None

    async def open(self) -> Ready:
        """Opens all streams, some at a time; those that are not open when patience is out were refused too."""
        streams = sum(self._task.lanes)
        try:
            async with asyncio.timeout(PATIENCE_S):
                made = await self._make(self, self._task, self._connections)
        except OSError as error:  # that of a timeout among them
            return Ready(0, Counter({"UNAVAILABLE": streams}), f"{error or 'it does not answer'}")
        waiting = deque(made)
        opening: set[asyncio.Future[None]] = set()
        deadline = time.monotonic() + patience_s(streams)
        while (waiting or opening) and time.monotonic() < deadline and not self._stopped.is_set():
            while waiting and len(opening) < OPENS_AT_ONCE:
                runner = waiting.popleft()
                runner.begin()
                opening.add(runner.opened)
            _, opening = await asyncio.wait(opening, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        refused: Counter[str] = Counter()
        for runner in waiting:
            refused["DEADLINE_EXCEEDED"] += runner.streams
            runner.streams = 0
        for runner in made:
            if runner.streams and not runner.opened.done():
                runner.cut()
            refused += runner.refused
        self._by_place = [runner for runner in made if runner.streams]
        self._runners = dict.fromkeys(runner for runner in self._by_place if not runner.gone)
        return Ready(sum(runner.streams for runner in self._by_place), refused, self.why)

    async def run(self, go: Go) -> Report:
        """Runs the load, drains it and closes the streams."""
        self.tally.measure(go.begin, min(go.end, self.tally.end))
        self._alarm = Alarm(self._ring)
        cpu_s = 0.0
        if await self._until(go.start):
            self._begin_load(go.start)
            self._tell_later()
        if await self._until(go.begin):
            cpu_s = time.process_time()
            await self._until(go.end)
            cpu_s = time.process_time() - cpu_s
        self._stopped.set()
        self._alarm.close()
        end = min(time.monotonic(), self.tally.end)
        await self._drain()
        await self._close()
        if self._bug is not None:
            raise self._bug
        return Report(self.tally, self.tally.take_seconds(2**62), end, cpu_s, self._left, self.why)

    def stop(self, end: float) -> None:
        """Ends the load already now."""
        self.tally.end = min(end, self.tally.end)
        self._stopped.set()

    async def leave(self) -> None:
        """Ends whatever is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connections.aclose()

    def keep(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Runs a coroutine; what goes wrong with it is a bug, and ends the run."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._kept)
        return task

    def answered(self, runner: Runner, now: float) -> float | None:
        """A message is over: in a closed loop the next is due. Gives when, or None when it is not or will be told."""
        if not self.closed or now >= self.tally.end or self._stopped.is_set():
            return None
        if not self.plan.think:
            return now
        self._thinking.append((now + self.plan.think, runner))
        if len(self._thinking) == 1:
            self._set_alarm()
        return None

    def lost(self, runner: Runner, reason: str) -> None:
        """A lane's call is over before its time."""
        if not self.closing:
            self.tally.lost[reason] += runner.streams
        self._left += runner.streams
        self._runners.pop(runner, None)
        if not self.abandoned:
            self._abandon(runner)
        self.drained(runner)
        if not self._runners:
            self._stopped.set()

    def drained(self, runner: Runner) -> None:
        """A lane has nothing more to be answered."""
        self._busy.discard(runner)
        if not self._busy:
            self._drained.set()

    def _begin_load(self, start: float) -> None:
        plan = self.plan
        seed = (plan.seed, self._task.number)
        self._start = start  # also when it is later than that: what is due is drawn already
        if not self._runners:
            self._stopped.set()
        elif plan.interval_s is not None:
            self._schedule = Schedule(len(self._by_place), plan.interval_s, plan.arrivals, seed)
        elif plan.think:
            # Spread over the pause, or all would come at once, again and again.
            phases = np.random.default_rng(seed).uniform(0.0, plan.think, (len(self._by_place), plan.ahead))
            begun = sorted((self._start + at, place) for place, row in enumerate(phases.tolist()) for at in row)
            self._thinking.extend((at, self._by_place[place]) for at, place in begun)
        else:
            for runner in self._by_place:
                for _ in range(plan.ahead):
                    now = time.monotonic()
                    runner.due(now, now)
        self._set_alarm()

    def _ring(self) -> None:
        """Something is due."""
        now = time.monotonic()
        if self._schedule is not None:
            for at, place in self._schedule.take(min(now, self.tally.end) - self._start):
                self.tally.late(self._start + at, now)
                self._by_place[place].due(self._start + at, now)
        while self._thinking and self._thinking[0][0] <= now < self.tally.end:
            self._thinking.popleft()[1].due(now, now)
        if not self._stopped.is_set() and now < self.tally.end:
            self._set_alarm()

    def _set_alarm(self) -> None:
        assert self._alarm is not None
        if self._schedule is not None:
            self._alarm.set(self._start + self._schedule.next_s)
        elif self._thinking:
            self._alarm.set(self._thinking[0][0])

    async def _until(self, at: float) -> bool:
        """Waits for a time; False when the load was stopped before."""
        try:
            async with asyncio.timeout(max(0.0, at - time.monotonic())):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    async def _drain(self) -> None:
        """Waits for answers to what was due; then says of the rest that there were none."""
        self.draining = True
        self._thinking.clear()
        self._busy = {runner for runner in self._runners if not runner.quiet}
        if self._busy:
            await asyncio.wait([asyncio.ensure_future(self._drained.wait())], timeout=DRAIN_S)
        self.abandoned = True
        for runner in self._runners:
            self._abandon(runner)

    async def _close(self) -> None:
        """Closes all streams, as far as patience reaches."""
        self.closing = True
        closing = {runner.ended for runner in self._runners}
        for runner in list(self._runners):
            runner.close()
        deadline = time.monotonic() + patience_s(sum(runner.streams for runner in self._runners))
        while closing and time.monotonic() < deadline and self._bug is None:
            _, closing = await asyncio.wait(closing, timeout=LOOK_S)
        self._left += sum(runner.streams for runner in self._runners if not runner.closed)

    def _abandon(self, runner: Runner) -> None:
        for due, rows in runner.abandon():
            self.tally.unanswered(due, rows)

    def _tell_later(self) -> None:
        """Tells each second when it is over."""
        now = max(time.monotonic(), self._start) + TELL_AFTER_S / 2  # timers and sums of floats miss a little
        number = math.floor(now - self.tally.begin) + 1
        at = self.tally.begin + number + TELL_AFTER_S
        self.loop.call_later(at - time.monotonic(), self._tell_second, number)

    def _tell_second(self, number: int) -> None:
        if not self._stopped.is_set():
            self._tell(Seconds(number, self.tally.take_seconds(number)))
            self._tell_later()

    def _kept(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._bug = self._bug or bug
            self._stopped.set()
            self._drained.set()
