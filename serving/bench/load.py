"""One client process: opens its lanes, sends what is due, and counts what comes back.

Laws:
1. What is due is decided by the schedule (open loop) or by the answer before it (closed loop); never by how late it is sent.
2. Reading never waits for writing, so a server that is slow to read cannot keep this side from taking its answers.
3. Everything ends: opening, draining and closing have deadlines, and a call that does not keep one is cancelled.
"""

import asyncio
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import grpc
import numpy as np

from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc
from serving.bench.alarm import Alarm
from serving.bench.lane import Lane
from serving.bench.plan import Plan
from serving.bench.schedule import Schedule
from serving.bench.speech import Ended, Many, Single, Speech, WrongAnswer
from serving.bench.tally import Tally
from serving.bench.words import Go, Ready, Report, Seconds, Task
from serving.client.errors import error_of

# Enough to keep a server busy, few enough to leave it its queue.
OPENS_AT_ONCE = 64
# A busy server opens and forgets some hundred streams a second, beside what else it does.
PATIENCE_S = 10.0
PATIENCE_S_PER_STREAM = 0.01
# What was due at the end may still be answered; what has not been by then is called unanswered.
DRAIN_S = 5.0
# Answers to a block of 65,536 rows are some megabytes; gRPC would take four.
MESSAGE_BYTES_MAX = 256 * 1024 * 1024
# A second is told a little after it is over.
TELL_AFTER_S = 0.05
# How often deadlines are looked at.
LOOK_S = 0.25


def patience_s(streams: int) -> float:
    """How long opening or closing so many streams may take."""
    return PATIENCE_S + PATIENCE_S_PER_STREAM * streams


class Lost(Exception):
    """A call is over before its time; the message is what was said."""

    def __init__(self, reason: str, message: str = "") -> None:
        self.reason = reason
        super().__init__(message)


class Runner:
    """One lane and its call."""

    def __init__(self, load: "Load", stub: Any, speech: Speech, streams: int) -> None:
        self.lane = Lane(streams, 1, closed=load.closed)
        self.streams = streams  # that are open
        self.gone = False
        self.refused: Counter[str] = Counter()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False  # the server has said so
        self._load = load
        self._stub = stub
        self._speech = speech
        self._call: Any = None
        self._writing = False
        self._closing = False
        self._why = "CANCELLED"

    def __repr__(self) -> str:
        return f"<Runner of {self.streams} streams, {self.lane!r}>"

    async def run(self) -> None:
        """From the open to the end of the call."""
        try:
            await self._open()
            await self._read_answers()
        except Lost as lost:
            self._over(lost.reason, str(lost))
        except WrongAnswer as wrong:
            self._over("WRONG_ANSWER", str(wrong))
        finally:
            if self._call is not None:
                self._call.cancel()
            if not self.opened.done():
                self.opened.set_result(None)

    def due(self, at: float) -> None:
        """The next timestep of every row is due."""
        self._load.tally.due(at, self.streams)
        if not self.gone and self.lane.add(at):
            self.flush()
        else:
            self._load.tally.dropped(at, self.streams)

    def flush(self) -> None:
        """Sends what can be sent."""
        if not self._writing and self.lane.ready(time.monotonic()):
            self._writing = True  # from now on, and not only once the task has begun: two must not write at once
            self._load.keep(self._write())

    def close(self) -> None:
        """Asks the server to forget the streams."""
        self._closing = True
        if not self._writing:
            self._writing = True
            self._load.keep(self._write())

    def cut(self, why: str) -> None:
        """Ends the call."""
        self._why = why
        if self._call is not None:
            self._call.cancel()

    async def _open(self) -> None:
        self._call = getattr(self._stub, self._speech.method)()
        if not await self._send(self._speech.open()):
            await self._read()  # raises why
        refused = self._speech.opened(await self._read())
        self.refused += refused
        self.streams -= refused.total()
        if not self.streams:
            raise Lost("TOO_MANY_STREAMS")  # or what else was said of each
        plan = self._load.plan
        window = min(plan.ahead, self._speech.window) if self._load.closed else self._speech.window
        self.lane = Lane(self.streams, window, closed=self._load.closed)
        self.opened.set_result(None)

    async def _read_answers(self) -> None:
        lane, tally = self.lane, self._load.tally
        while not self.closed:
            response = await self._read()
            now = time.monotonic()
            if self._load.closing and response.HasField("closed"):
                self.closed = True
                return
            verdict = self._speech.verdict(response, lane.expected())
            if isinstance(verdict, Ended):
                tally.lost[verdict.reason] += verdict.streams
            elif verdict is not None:
                if not lane.expected():
                    raise WrongAnswer("got an answer when nothing had been asked")
                self._settle(verdict, now)

    def _settle(self, verdict: Any, now: float) -> None:
        lane, load = self.lane, self._load
        outcome = lane.settle(verdict, now)
        if load.abandoned:
            return  # counted as unanswered already
        if outcome.applied:
            load.tally.answered(now, outcome.due, outcome.applied - len(outcome.late))
            for due in outcome.late:
                load.tally.answered(now, due, 1)
        if outcome.refused:
            load.tally.let_go(now, outcome.due, outcome.refused)
        load.tally.again += outcome.again
        if outcome.over:
            load.answered(self, now)
        if lane.paused_until > now:
            load.loop.call_later(lane.paused_until - now + 0.001, self.flush)
        self.flush()
        if load.draining and lane.quiet:
            load.drained(self)

    async def _write(self) -> None:
        lane = self.lane
        while lane.ready(time.monotonic()):
            if not await self._send(self._speech.message(lane.send(), lane.behind)):
                return  # the reader is told why
        if self._closing:
            await self._send(self._speech.close())
        else:
            self._writing = False

    async def _send(self, request: Any) -> bool:
        """Whether it was sent; if not, the call is over."""
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return False
        return True

    async def _read(self) -> Any:
        """The next response. Raises Lost when there is none."""
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            why = error_of(error.code(), error.details(), error.trailing_metadata())
            raise Lost(why.reason, str(why)) from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise Lost(self._why) from None
        if response is grpc.aio.EOF:
            raise Lost("OK", "the server ended the call")
        return response

    def _over(self, reason: str, message: str) -> None:
        self._load.why = self._load.why or message
        if not self.opened.done():
            self.refused[reason] += self.streams
            self.streams = 0
            return
        self.gone = True
        self._load.lost(self, reason)


def _is_cancelled() -> bool:
    """Whether it is this task that is cancelled, and not its call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Load:
    """All lanes of a process.

    Args:
        task: what to do.
        tell: takes the seconds that are over.

    """

    def __init__(self, task: Task, tell: Callable[[Seconds], None]) -> None:
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
        self._channels = [
            grpc.aio.insecure_channel(
                task.plan.address,
                options=[
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                    ("grpc.enable_http_proxy", int("grpc_proxy" in os.environ)),
                ],
            )
            for _ in range(min(task.plan.connections, len(task.lanes)))
        ]
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
        waiting = deque(self._make_runners())
        made = list(waiting)
        opening: set[asyncio.Future[None]] = set()
        deadline = time.monotonic() + patience_s(sum(self._task.lanes))
        while (waiting or opening) and time.monotonic() < deadline and not self._stopped.is_set():
            while waiting and len(opening) < OPENS_AT_ONCE:
                runner = waiting.popleft()
                self.keep(runner.run())
                opening.add(runner.opened)
            _, opening = await asyncio.wait(opening, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        refused: Counter[str] = Counter()
        for runner in waiting:
            refused["DEADLINE_EXCEEDED"] += runner.streams
            runner.streams = 0
        for runner in made:
            if runner.streams and not runner.opened.done():
                runner.cut("DEADLINE_EXCEEDED")
        await asyncio.gather(*opening)
        for runner in made:
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
        for channel in self._channels:
            await channel.close()

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine; what goes wrong with it is a bug, and ends the run."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._kept)

    def answered(self, runner: Runner, now: float) -> None:
        """A message is over: in a closed loop the next is due, now or after a pause."""
        if not self.closed or self._stopped.is_set() or now >= self.tally.end:
            return
        if not self.plan.think:
            runner.due(now)
            return
        self._thinking.append((now + self.plan.think, runner))
        if len(self._thinking) == 1:
            self._set_alarm()

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

    def _make_runners(self) -> list[Runner]:
        stubs = [pb_grpc.TidegateServiceStub(channel) for channel in self._channels]
        packed = [row.astype("<f4").tobytes() for row in self._task.values]
        runners = []
        first = 0
        for place, rows in enumerate(self._task.lanes):
            speech = self._speech(place, first, rows, packed)
            runners.append(Runner(self, stubs[place % len(stubs)], speech, rows))
            first += rows
        return runners

    def _speech(self, place: int, first: int, rows: int, packed: Sequence[bytes]) -> Speech:
        task = self._task
        plan = task.plan
        offset = int(np.random.default_rng((plan.seed, task.number, place)).integers(len(packed)))
        names = [f"{task.prefix}{task.number}-{first + row}" for row in range(rows)]
        if plan.block is None:
            return Single(names[0], plan.model, plan.version, packed, offset)
        return Many(names, plan.model, plan.version, task.values, offset)

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
                    runner.due(time.monotonic())
        self._set_alarm()

    def _ring(self) -> None:
        """Something is due."""
        now = time.monotonic()
        if self._schedule is not None:
            for at, place in self._schedule.take(min(now, self.tally.end) - self._start):
                self.tally.late(self._start + at, now)
                self._by_place[place].due(self._start + at)
        while self._thinking and self._thinking[0][0] <= now < self.tally.end:
            self._thinking.popleft()[1].due(now)
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
        self._busy = {runner for runner in self._runners if not runner.lane.quiet}
        if self._busy:
            await asyncio.wait([asyncio.ensure_future(self._drained.wait())], timeout=DRAIN_S)
        self.abandoned = True
        for runner in self._runners:
            self._abandon(runner)

    async def _close(self) -> None:
        """Closes all streams, as far as patience reaches."""
        self.closing = True
        for runner in self._runners:
            runner.close()
        deadline = time.monotonic() + patience_s(sum(runner.streams for runner in self._runners))
        while self._tasks and time.monotonic() < deadline:
            await asyncio.wait(self._tasks, timeout=LOOK_S, return_when=asyncio.FIRST_EXCEPTION)
        self._left += sum(runner.streams for runner in self._runners if not runner.closed)

    def _abandon(self, runner: Runner) -> None:
        for due, rows in runner.lane.abandon():
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
