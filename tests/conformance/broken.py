"""Clients that each violate one rule: python -m tests.conformance.broken FAULT ADDRESS STREAM_ID.

They are the clients of `examples/clients/python` with one fault.
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
    """Wraps a method. `around` gets the method, the object and the arguments."""
    inner = getattr(of, name)
    setattr(of, name, lambda self, *arguments: around(inner, self, *arguments))


def new_owner() -> None:
    """Uses another owner for each call."""

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
    """Sends a `resume_from` that is one too high."""

    def speak(inner: Any, self: Any) -> Any:
        if self._model is not None:
            self._ask.resume_from += 1
        return inner(self)

    wrap("_speak", speak)


def begins_anew() -> None:
    """Opens its stream again as if for the first time."""

    def speak(inner: Any, self: Any) -> Any:
        self._ask.resume_from = 0
        return inner(self)

    wrap("_speak", speak)


def skips_a_number() -> None:
    """Leaves out a step number."""

    def next_(inner: Any, self: Any, now: float) -> Any:
        request = inner(self, now)
        if request is not None and request.timestep.step == 3:
            request.timestep.step = 4
        return request

    wrap("_next", next_)


def sends_too_far_ahead() -> None:
    """Has more timesteps in flight than the server remembers answers."""

    def opened(inner: Any, self: Any, opened: Any) -> None:
        inner(self, opened)
        self._window = 1000

    wrap("_take_opened", opened)


def keeps_more_than_it_says() -> None:
    """Sends a `kept_max` that is too low."""

    def speak(inner: Any, self: Any) -> Any:
        self._ask.kept_max = 3
        return inner(self)

    wrap("_speak", speak)


def delivers_replays() -> None:
    """Gives its user the same prediction twice."""

    def predicted(inner: Any, self: Any, prediction: Any) -> None:
        again = prediction.step <= self._answered
        inner(self, prediction)
        if again:
            common.show(prediction)

    wrap("_predicted", predicted)


def does_not_compare() -> None:
    """Continues when a timestep gets another answer."""

    def opened(inner: Any, self: Any, opened: Any) -> None:
        opened.model.batch_invariant = False
        inner(self, opened)

    wrap("_take_opened", opened)


def keeps_what_is_dropped() -> None:
    """Sends a timestep again that was refused for good."""

    def refused(inner: Any, self: Any, error: Any) -> None:
        if error.action == pb.Error.ACTION_DROP:
            error.action = pb.Error.ACTION_RETRY
        inner(self, error)

    wrap("_refused", refused)


def does_not_wait() -> None:
    """Sends a timestep again without the requested wait."""

    def refused(inner: Any, self: Any, error: Any) -> None:
        inner(self, error)
        self._not_before = 0.0

    wrap("_refused", refused)


def never_gives_up() -> None:
    """Opens a lost stream again."""

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
    """Ends although the closed stream is not durable."""

    def take(inner: Any, self: Any, response: Any) -> Any:
        if response.HasField("closed"):
            response.closed.durable_step = self._answered
        return inner(self, response)

    wrap("_take", take)


def talks_after_move() -> None:
    """Continues a call after a Move."""

    def take(inner: Any, self: Any, response: Any) -> Any:
        return False if response.HasField("move") else inner(self, response)

    wrap("_take", take)


def is_not_durable() -> None:
    """Keeps no timesteps, and does not ask for durable answers."""
    wrap(
        "_begin",
        lambda inner, self: (setattr(self._open, "durability", pb.DURABILITY_ASYNC), inner(self))[1],
        simple.SimpleStream,
    )


def has_no_deadline() -> None:
    """Calls without a deadline."""
    one.CALL_S = None  # type: ignore[assignment]


if __name__ == "__main__":
    fault, *sys.argv[1:] = sys.argv[1:]
    globals()[fault]()
    level = {"is_not_durable": simple, "has_no_deadline": one}.get(fault, full)
    try:
        asyncio.run(full.main()) if level is full else level.main()
    except common.StreamLost as error:
        sys.exit(str(error))
