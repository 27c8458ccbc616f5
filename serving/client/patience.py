"""How long breaks are borne: when to open again after one, and when to give up.

One `Patience` for what is open, be it a stream or a block of them. It grows with every try in vain, and begins anew when there
was an answer that somebody waited for. Answers to timesteps that are applied again after a crash are no such thing: one that
crashes the server is among them each time, and must not be sent for ever.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.client.backoff import Backoff
from serving.client.errors import AGAIN, ClientError
from serving.core.spec import Ints

log = logging.getLogger("tidegate.client")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a stream tries, and how much it keeps; see `serving.client.Client`."""

    timeout_s: float
    reconnect_s: float
    buffer_max: int


class Patience:
    """The tries since the last answer.

    Args:
        limits: how long to try.
        backoff: the waits between tries.
        may_be_up: whether a call may reach the server now.

    Attributes:
        tries: how many were in vain.

    """

    def __init__(self, limits: Limits, backoff: Backoff, may_be_up: Callable[[], bool]) -> None:
        self._limits = limits
        self._may_be_up = may_be_up
        self._backoff = backoff
        self.tries = 0
        self._until: float | None = backoff.clock() + min(limits.timeout_s, limits.reconnect_s)
        self._opened_at: float | None = None

    def opened(self) -> None:
        """An open was answered."""
        self._opened_at = self._backoff.clock()

    def rest(self) -> None:
        """There is nothing to wait for; but the tries go on: a server that falls over at once is not to be run over."""
        self._until = None

    def get_on(self) -> None:
        """There was an answer that somebody waited for, or there is nothing left to do: breaks count anew from here."""
        self.tries = 0
        self._until = None

    async def wait(self, error: ClientError, name: str, *, opened: bool) -> None:
        """Waits before the next open, and on while a call could not reach the server; raises when that is of no use.

        Args:
            error: what ended the call.
            name: what is to be opened again, for the log.
            opened: whether it ever was open.

        Raises:
            ClientError: `error`, when trying again is of no use, or was for so long.

        """
        await self._wait(error, name, opened=opened)
        while not self._may_be_up():
            await self._wait(error, name, opened=opened)

    async def _wait(self, error: ClientError, name: str, *, opened: bool) -> None:
        if error.action not in AGAIN:
            raise error
        now = self._backoff.clock()
        if self._opened_at is not None and now - self._opened_at >= self._backoff.longest_s:
            self.tries = 0
        self._opened_at = None
        if self._until is None:
            self._until = now + self._limits.reconnect_s
        if now >= self._until:
            limit_s = self._limits.reconnect_s if opened else min(self._limits.timeout_s, self._limits.reconnect_s)
            raise type(error)(
                f"{error}; tried for {limit_s:g} s",
                error.reason,
                next_step=error.next_step,
                retry_after_s=error.retry_after_s,
            ) from error
        wait_s = self._backoff.wait_s(self.tries)
        if error.retry_after_s:
            wait_s = max(wait_s, self._backoff.not_before_s(error.retry_after_s))
        log.info("%s: %s; opened again in %.3f s", name, error, wait_s)
        self.tries += 1
        await self._backoff.sleep(min(wait_s, self._until - now))


class Shortage:
    """Until when timesteps are sent again that the server has no room for, stream by stream; the time runs from the first refusal.

    A stream is short of room for one timestep, the first in its line; number 0 is its open.
    """

    def __init__(self, streams: int, backoff: Backoff) -> None:
        self._backoff = backoff
        self._steps: Ints = np.full(streams, -1)
        self._until = np.zeros(streams)

    def may_wait(self, streams: Ints, steps: Ints, limit_s: float) -> npt.NDArray[np.bool_]:
        """Of which of these streams there is time to send the refused timestep again."""
        now = self._backoff.clock()
        first = streams[self._steps[streams] != steps]
        self._until[first] = now + limit_s
        self._steps[streams] = steps
        return now < self._until[streams]

    def over(self, streams: Ints, steps: Ints) -> None:
        """These timesteps were answered."""
        short = self._steps[streams] == steps
        self._steps[streams[short]] = -1

    def given_up(self, streams: Ints) -> None:
        """These streams' timesteps were given up; others may take their numbers."""
        self._steps[streams] = -1
