"""What one lane does, whichever client it speaks through: `light` or `library`."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Protocol

from serving.bench.plan import Plan
from serving.bench.tally import Tally


class Lanes(Protocol):
    """What a lane knows of all lanes of its process; `load.Load` is it.

    Attributes:
        plan: what is asked.
        closed: whether it is a closed loop.
        draining: whether the time is up; what was due may still be answered.
        abandoned: whether what was not answered is no longer waited for.
        closing: whether the streams are to be forgotten.
        why: what was said of the first stream that was refused or lost.

    """

    plan: Plan
    loop: asyncio.AbstractEventLoop
    tally: Tally
    closed: bool
    draining: bool
    abandoned: bool
    closing: bool
    why: str

    def keep(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Runs a coroutine; what goes wrong with it is a bug, and ends the run."""

    def answered(self, runner: "Runner", now: float) -> float | None:
        """A message is over; gives when the next is due, or None when it is not or will be told."""

    def lost(self, runner: "Runner", reason: str) -> None:
        """A lane's call is over before its time."""

    def drained(self, runner: "Runner") -> None:
        """A lane has nothing more to be answered."""


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

    def __init__(self, load: Lanes, streams: int) -> None:
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
