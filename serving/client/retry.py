"""The retry policy: when a client tries again, and when it gives up.

Full jitter: a wait is drawn evenly between nothing and the bound, so that a thousand clients of a server that came back do not
come back together. The clock is monotonic. Tests put their own clock, sleep and dice in.
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

# 2 ** 16 times any first wait is beyond any longest one, and still a number.
DOUBLINGS_MAX = 16
# A network that breaks twice in a row is no rare thing; what breaks a server does so each time.
ISOLATE_AFTER_TRIES = 2


@dataclass(frozen=True, slots=True)
class Backoff:
    """The first try comes at once, the second within `first_s`, then the bound doubles up to `longest_s`."""

    first_s: float = 0.05
    longest_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    dice: Callable[[], float] = random.random

    def wait_s(self, tries: int) -> float:
        """How long to wait after so many tries that failed."""
        if tries == 0:
            return 0.0
        return self.dice() * min(self.longest_s, self.first_s * 2.0 ** min(tries - 1, DOUBLINGS_MAX))

    def jittered_s(self, delay_s: float) -> float:
        """How long to wait when the server asked for a wait: that long, and up to half of it more."""
        delay_s = delay_s or self.first_s
        return delay_s * (1 + self.dice() / 2)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a stream tries, and how much it keeps; see `tidegate.client.Client`."""

    timeout_s: float
    reconnect_s: float
    buffer_max: int
    backoff: Backoff

    @property
    def open_s(self) -> float:
        """How long a first open is tried."""
        return min(self.timeout_s, self.reconnect_s)


class Retry:
    """The tries since the last answer that somebody waited for.

    Answers to timesteps that are applied again after a crash are no such thing: one that crashes the server is among them each
    time, and must not be sent for ever.

    `tries` counts those in vain; `may_be_reachable` says whether a call may reach the server now.
    """

    def __init__(self, limits: Limits, may_be_reachable: Callable[[], bool]) -> None:
        self._limits = limits
        self._may_be_up = may_be_reachable
        self._backoff = limits.backoff
        self.tries = 0
        self._until: float | None = None  # since the first try in vain
        self._opened_at: float | None = None

    def on_opened(self) -> None:
        """An open was answered."""
        self._opened_at = self._backoff.clock()

    def reset_deadline(self) -> None:
        """There is nothing to wait for; but the tries go on: a server that falls over at once is not to be run over."""
        self._until = None

    def on_progress(self) -> None:
        """There was an answer that somebody waited for: breaks count anew from here."""
        self.tries = 0
        self._until = None

    async def wait(
        self, error: ClientError, name: str, expire: Callable[[ClientError, float], float] | None = None
    ) -> None:
        """Waits before the next try, and on while a call could not reach the server; raises when that is of no use.

        Args:
            error: what ended the last one.
            name: of what is tried, for the log.
            give_up: is given the error and the time; gives up what has waited for too long by then, and says when to ask again.

        Raises:
            ClientError: `error`, when trying again is of no use, or was for so long.

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
            if self._may_be_up():
                return


def retries_exhausted(error: ClientError, limit_s: float) -> ClientError:
    """The error for what was tried for so long in vain."""
    tried = type(error)(
        f"{error}; tried for {limit_s:g} s", error.reason, next_step=error.next_step, retry_after_s=error.retry_after_s
    )
    tried.__cause__ = error
    return tried


class RetryDeadlines:
    """Until when timesteps are sent again that the server has no room for, stream by stream; the time runs from the first refusal.

    A stream is short of room for one timestep, the first in its line; number 0 is its open.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._until: dict[int, tuple[int, float]] = {}

    def may_retry(self, stream: int, step: int, limit_s: float) -> bool:
        """Whether there is time to send the refused timestep again."""
        now = self._backoff.clock()
        known, until = self._until.get(stream, (-1, 0.0))
        if known != step:
            until = now + limit_s
            self._until[stream] = step, until
        return now < until

    def clear(self, stream: int, step: int | None = None) -> None:
        """A timestep was answered; None when whatever it was short of room for was given up."""
        if self._until and (step is None or self._until.get(stream, (-1, 0.0))[0] == step):
            self._until.pop(stream, None)

    @property
    def active(self) -> bool:
        """Whether any stream is."""
        return bool(self._until)


@dataclass(slots=True)
class Suspect:
    """A timestep of a stream that was in flight at breaks since then; `isolated` says whether at one of them nothing else was."""

    step: int
    since: float
    isolated: bool = False


class PoisonDetector:
    """What was in flight when calls broke, and is not answered since: one of it may break the server.

    It harms no other stream, and is not sent for ever: after some breaks timesteps go one at a time, so that the next break tells
    which one it is. One that was alone in flight at a break waits behind all others from then on, and is given up when it was
    tried for too long.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._suspects: dict[int, Suspect] = {}

    def record_disconnect(self, now: float, tries: int, limit_s: float) -> list[int]:
        """A call has broken, before `Window.cut` and after so many in vain; gives the streams that were tried for too long."""
        window, unanswered = self._window, self._window.unanswered()
        self._forget_answered()
        for stream, step in unanswered.items():
            self._suspects.setdefault(stream, Suspect(step, now))
        if len(unanswered) == 1 and window.usable_count > 1 and window.one_in_flight:
            self._suspects[next(iter(unanswered))].isolated = True
        window.one_in_flight = len(self._suspects) > 1 and tries >= ISOLATE_AFTER_TRIES
        return [s for s, suspect in self._suspects.items() if suspect.isolated and now - suspect.since > limit_s]

    def on_progress(self) -> None:
        """There was an answer: timesteps go together again once those that were in flight at the last break are answered."""
        if self._window.one_in_flight:
            self._forget_answered()
            self._window.one_in_flight = not all(suspect.isolated for suspect in self._suspects.values())

    def streams_to_hold(self, streams: Iterable[int]) -> list[int]:
        """Which of these streams wait until the others had time to get on."""
        self._forget_answered()
        held = [stream for stream in streams if stream in self._suspects and self._suspects[stream].isolated]
        return held if len(held) < self._window.usable_count else []

    def forget(self, stream: int) -> None:
        """Another stream will have this index."""
        self._suspects.pop(stream, None)

    def _forget_answered(self) -> None:
        window = self._window
        self._suspects = {
            stream: suspect
            for stream, suspect in self._suspects.items()
            if window.usable[stream] and window.answered[stream] < suspect.step
        }
