"""Clients that each break one rule: python -m tests.conformance.broken FAULT ADDRESS STREAM_ID.

They are the clients of `examples/clients/python` with one thing done wrong.
"""

import asyncio
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "clients" / "python"))

import common
import full
import one
import simple
from common import pb

Stream = full.FullStream


def wrap(name: str, around: Callable[..., Any], of: Any = Stream) -> None:
    """Puts something around a method: it is given the method, the object and the arguments."""
    inner = getattr(of, name)
    setattr(of, name, lambda self, *arguments: around(inner, self, *arguments))


def new_owner() -> None:
    """Takes another owner for each call."""

    def speak(inner: Any, self: Any) -> Any:
        self._ask.owner = uuid.uuid4().hex
        return inner(self)

    wrap("_speak", speak)


def no_owner() -> None:
    """Has no owner."""

    def speak(inner: Any, self: Any) -> Any:
        self._ask.owner = ""
        return inner(self)

    wrap("_speak", speak)


def forgets_too_much() -> None:
    """Says that it can go on only behind what it can still send."""

    def speak(inner: Any, self: Any) -> Any:
        if self._model is not None:
            self._ask.resume_from += 1
        return inner(self)

    wrap("_speak", speak)


def begins_anew() -> None:
    """Opens its stream again as if it had never been open."""

    def speak(inner: Any, self: Any) -> Any:
        self._ask.resume_from = 0
        return inner(self)

    wrap("_speak", speak)


def skips_a_number() -> None:
    """Leaves a hole in its numbers."""

    def next_(inner: Any, self: Any, now: float) -> Any:
        request = inner(self, now)
        if request is not None and request.timestep.step == 3:
            request.timestep.step = 4
        return request

    wrap("_next", next_)


def sends_too_far_ahead() -> None:
    """Has more in flight than the server remembers."""

    def opened(inner: Any, self: Any, opened: Any) -> None:
        inner(self, opened)
        self._window = 1000

    wrap("_take_opened", opened)


def keeps_more_than_it_says() -> None:
    """Says that it keeps less than it does."""

    def speak(inner: Any, self: Any) -> Any:
        self._ask.kept_max = 3
        return inner(self)

    wrap("_speak", speak)


def delivers_replays() -> None:
    """Hands over what its user has had."""

    def predicted(inner: Any, self: Any, prediction: Any) -> None:
        again = prediction.step <= self._answered
        inner(self, prediction)
        if again:
            common.show(prediction)

    wrap("_predicted", predicted)


def does_not_compare() -> None:
    """Goes on when a replay is answered otherwise."""

    def opened(inner: Any, self: Any, opened: Any) -> None:
        opened.model.batch_invariant = False
        inner(self, opened)

    wrap("_take_opened", opened)


def keeps_what_is_dropped() -> None:
    """Sends again what was refused for good."""

    def refused(inner: Any, self: Any, error: Any) -> None:
        if error.action == pb.Error.ACTION_DROP:
            error.action = pb.Error.ACTION_RETRY
        inner(self, error)

    wrap("_refused", refused)


def does_not_wait() -> None:
    """Sends again at once what the server has no room for."""

    def refused(inner: Any, self: Any, error: Any) -> None:
        inner(self, error)
        self._not_before = 0.0

    wrap("_refused", refused)


def never_gives_up() -> None:
    """Opens a stream again that is lost."""

    def after(inner: Any, self: Any, ending: Any) -> float:
        return float(inner(self, ending._replace(action="REOPEN")))

    wrap("after", after, common.Retry)


def runs_the_server_over() -> None:
    """Does not wait between its tries."""
    wrap("after", lambda inner, self, ending: min(inner(self, ending), 0.001), common.Retry)


def closes_too_early() -> None:
    """Closes while timesteps are in flight."""

    def next_(inner: Any, self: Any, now: float) -> Any:
        request = inner(self, now)
        if request is not None and request.timestep.step == 5:
            self._silent = True
            return pb.PredictRequest(close=pb.Close())
        return request

    wrap("_next", next_)


def is_content_with_less() -> None:
    """Takes a stream for closed that is not all stored."""

    def take(inner: Any, self: Any, response: Any) -> Any:
        if response.HasField("closed"):
            response.closed.durable_step = self._answered
        return inner(self, response)

    wrap("_take", take)


def talks_after_move() -> None:
    """Goes on with a call that it was asked to leave."""

    def take(inner: Any, self: Any, response: Any) -> Any:
        return False if response.HasField("move") else inner(self, response)

    wrap("_take", take)


def is_not_durable() -> None:
    """Keeps nothing, and does not wait until all is stored."""
    wrap(
        "_begin",
        lambda inner, self: (setattr(self._open, "durability", pb.DURABILITY_ASYNC), inner(self))[1],
        simple.SimpleStream,
    )


def has_no_deadline() -> None:
    """Waits for ever."""
    one.CALL_S = None  # type: ignore[assignment]


if __name__ == "__main__":
    fault, *sys.argv[1:] = sys.argv[1:]
    globals()[fault]()
    level = {"is_not_durable": simple, "has_no_deadline": one}.get(fault, full)
    try:
        asyncio.run(full.main()) if level is full else level.main()
    except common.StreamLost as error:
        sys.exit(str(error))
