"""The retry policy: when a client tries again, and when it gives up.

Backoff has full jitter: a delay is drawn evenly between 0 and the bound, so that a thousand clients of a restarted server do not
reconnect at the same moment. The clock is monotonic. Tests replace the clock, the sleep and the random numbers.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from tidegate.client.errors import RETRY_ACTIONS, ClientError
from tidegate.client.window import Window

log = logging.getLogger("tidegate.client")

# 2 ** 16 times any first delay is longer than any longest one, and does not overflow.
DOUBLINGS_MAX = 16
# Networks often break twice in a row. A timestep that breaks the server does so each time.
ISOLATE_AFTER_TRIES = 2


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff: no delay before the first try, up to `first_s` before the second, then doubled up to `longest_s`."""

    first_s: float = 0.05
    longest_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    dice: Callable[[], float] = random.random

    def wait_s(self, tries: int) -> float:
        """The delay before the next try, in seconds, after this number of failed tries."""
        if tries == 0:
            return 0.0
        return self.dice() * min(self.longest_s, self.first_s * 2.0 ** min(tries - 1, DOUBLINGS_MAX))

    def jittered_s(self, delay_s: float) -> float:
        """The delay, in seconds, for a delay that the server asked for: that long, and up to half of it more."""
        delay_s = delay_s or self.first_s
        return delay_s * (1 + self.dice() / 2)


@dataclass(frozen=True, slots=True)
class Limits:
    """Time-outs and the size of the resend buffer; see `tidegate.client.Client`."""

    timeout_s: float
    reconnect_s: float
    buffer_max: int
    backoff: Backoff

    @property
    def open_s(self) -> float:
        """How long a first open is tried, in seconds."""
        return min(self.timeout_s, self.reconnect_s)


class Retry:
    """Counts the failed tries since the last progress, and waits between them.

    Only an answer that a caller waits for is progress. Replayed answers after a crash are not: a timestep that crashes the server
    comes after them each time, and must not be sent for ever.

    `tries` is the number of failed tries. `may_be_reachable` tells whether a call may reach the server now.
    """

    def __init__(self, limits: Limits, may_be_reachable: Callable[[], bool]) -> None:
        self._limits = limits
        self._may_be_reachable = may_be_reachable
        self._backoff = limits.backoff
        self.tries = 0
        self._until: float | None = None  # the deadline, set by the first failed try
        self._opened_at: float | None = None

    def on_opened(self) -> None:
        """Notes that an open was answered."""
        self._opened_at = self._backoff.clock()

    def reset_deadline(self) -> None:
        """Clears the deadline, as nothing is pending. The backoff goes on: a server that fails at once is not to be flooded."""
        self._until = None

    def on_progress(self) -> None:
        """Clears deadline and backoff after progress."""
        self.tries = 0
        self._until = None

    async def wait(
        self, error: ClientError, name: str, expire: Callable[[ClientError, float], float] | None = None
    ) -> None:
        """Waits before the next try, and longer while the channel is not connected.

        Args:
            error: the reason of the last failure.
            name: what is tried, for the log.
            expire: called with the error and the time. It fails what has waited too long, and returns the next deadline.

        Raises:
            ClientError: `error`, when it is final or the deadline has passed.

        """
        if error.action not in RETRY_ACTIONS:
            raise error
        if self._opened_at is not None and self._backoff.clock() - self._opened_at >= self._backoff.longest_s:
            self.tries = 0
        self._opened_at = None
        while True:
            now = self._backoff.clock()
            if self._until is None:
                self._until = now + self._limits.reconnect_s
            if now >= self._until:
                raise retries_exhausted(error, self._limits.reconnect_s)
            until = min(self._until, expire(error, now)) if expire is not None else self._until
            if until <= now:
                return
            wait_s = self._backoff.wait_s(self.tries)
            if error.retry_after_s:
                wait_s = max(wait_s, self._backoff.jittered_s(error.retry_after_s))
            log.info("%s: %s; opened again in %.3f s", name, error, wait_s)
            self.tries += 1
            await self._backoff.sleep(min(wait_s, until - now))
            if self._may_be_reachable():
                return


def retries_exhausted(error: ClientError, limit_s: float) -> ClientError:
    """The error for a try that failed until its deadline."""
    tried = type(error)(
        f"{error}; tried for {limit_s:g} s", error.reason, next_step=error.next_step, retry_after_s=error.retry_after_s
    )
    tried.__cause__ = error
    return tried


class RetryDeadlines:
    """The deadlines of refused timesteps that are sent again, one a stream. The time runs from the first refusal.

    Only the first unanswered timestep of a stream is retried; `OPEN_STEP` and `CLOSE_STEP` stand for an open and a close.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._until: dict[int, tuple[int, float]] = {}

    def may_retry(self, stream: int, step: int, limit_s: float) -> bool:
        """Whether a refused timestep may be sent again."""
        now = self._backoff.clock()
        known, until = self._until.get(stream, (-1, 0.0))
        if known != step:
            until = now + limit_s
            self._until[stream] = step, until
        return now < until

    def clear(self, stream: int, step: int | None = None) -> None:
        """Clears the deadline of an answered timestep; with None whichever the stream has."""
        if self._until and (step is None or self._until.get(stream, (-1, 0.0))[0] == step):
            self._until.pop(stream, None)

    @property
    def active(self) -> bool:
        """Whether any stream has a deadline."""
        return bool(self._until)


@dataclass(slots=True)
class Suspect:
    """A timestep that was in flight whenever the call broke. `isolated`: once it was the only one in flight."""

    step: int
    since: float
    isolated: bool = False


class PoisonDetector:
    """Finds the timestep that breaks the server (a poison message), so that it harms no other stream and is not sent for ever.

    All timesteps in flight when a call breaks are suspects. After some breaks they are sent one at a time, and the next break shows
    which one it is. That one then waits behind all others, and fails when its time is over.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._suspects: dict[int, Suspect] = {}

    def record_disconnect(self, now: float, tries: int, limit_s: float) -> list[int]:
        """Notes that the call broke, before `Window.end_call`. Returns the streams whose isolated timestep was tried too long."""
        window, unanswered = self._window, self._window.unanswered()
        self._forget_answered()
        for stream, step in unanswered.items():
            self._suspects.setdefault(stream, Suspect(step, now))
        if len(unanswered) == 1 and window.usable_count > 1 and window.one_in_flight:
            self._suspects[next(iter(unanswered))].isolated = True
        window.one_in_flight = len(self._suspects) > 1 and tries >= ISOLATE_AFTER_TRIES
        return [s for s, suspect in self._suspects.items() if suspect.isolated and now - suspect.since > limit_s]

    def on_progress(self) -> None:
        """Sends timesteps together again once all suspects are answered or isolated."""
        if self._window.one_in_flight:
            self._forget_answered()
            self._window.one_in_flight = not all(suspect.isolated for suspect in self._suspects.values())

    def streams_to_hold(self, streams: Iterable[int]) -> list[int]:
        """The streams whose timesteps wait until the others had time to progress."""
        self._forget_answered()
        held = [stream for stream in streams if stream in self._suspects and self._suspects[stream].isolated]
        return held if len(held) < self._window.usable_count else []

    def forget(self, stream: int) -> None:
        """Forgets a stream whose index is free."""
        self._suspects.pop(stream, None)

    def _forget_answered(self) -> None:
        window = self._window
        self._suspects = {
            stream: suspect
            for stream, suspect in self._suspects.items()
            if window.usable[stream] and window.answered[stream] < suspect.step
        }
