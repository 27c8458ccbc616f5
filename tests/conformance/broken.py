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


def resume_from_too_high() -> None:
    """Sends a `resume_from` that is one too high."""

    def speak(inner: Any, self: Any) -> Any:
        if self._model is not None:
            self._ask.resume_from += 1
        return inner(self)

    wrap("_speak", speak)


def resumes_from_zero() -> None:
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


def exceeds_window() -> None:
    """Has more timesteps in flight than the server remembers answers."""

    def opened(inner: Any, self: Any, opened: Any) -> None:
        inner(self, opened)
        self._window = 1000

    wrap("_take_opened", opened)


def kept_max_too_low() -> None:
    """Sends a `kept_max` that is too low."""

    def speak(inner: Any, self: Any) -> Any:
        self._ask.kept_max = 3
        return inner(self)

    wrap("_speak", speak)


def delivers_duplicates() -> None:
    """Gives its user the same prediction twice."""

    def predicted(inner: Any, self: Any, prediction: Any) -> None:
        again = prediction.step <= self._answered
        inner(self, prediction)
        if again:
            common.show(prediction)

    wrap("_predicted", predicted)


def ignores_divergence() -> None:
    """Continues when a timestep gets another answer."""

    def opened(inner: Any, self: Any, opened: Any) -> None:
        opened.model.batch_invariant = False
        inner(self, opened)

    wrap("_take_opened", opened)


def resends_dropped() -> None:
    """Sends a timestep again that was refused for good."""

    def refused(inner: Any, self: Any, error: Any) -> None:
        if error.action == pb.Error.ACTION_DROP:
            error.action = pb.Error.ACTION_RETRY
        inner(self, error)

    wrap("_refused", refused)


def ignores_retry_after() -> None:
    """Sends a timestep again without the requested wait."""

    def refused(inner: Any, self: Any, error: Any) -> None:
        inner(self, error)
        self._not_before = 0.0

    wrap("_refused", refused)


def reopens_lost_stream() -> None:
    """Opens a lost stream again."""

    def after(inner: Any, self: Any, ending: Any) -> float:
        return float(inner(self, ending._replace(action="REOPEN")))

    wrap("after", after, common.Retry)


def retries_without_back_off() -> None:
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


def accepts_incomplete_close() -> None:
    """Ends although the closed stream is not durable."""

    def take(inner: Any, self: Any, response: Any) -> Any:
        if response.HasField("closed"):
            response.closed.durable_step = self._answered
        return inner(self, response)

    wrap("_take", take)


def sends_after_move() -> None:
    """Continues a call after a Move."""

    def take(inner: Any, self: Any, response: Any) -> Any:
        return False if response.HasField("move") else inner(self, response)

    wrap("_take", take)


def asks_for_async_durability() -> None:
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
    level = {"asks_for_async_durability": simple, "has_no_deadline": one}.get(fault, full)
    try:
        asyncio.run(full.main()) if level is full else level.main()
    except common.StreamLost as error:
        sys.exit(str(error))
