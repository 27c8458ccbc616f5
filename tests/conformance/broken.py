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

    def run_call(inner: Any, self: Any) -> Any:
        self._open_request.owner = uuid.uuid4().hex
        return inner(self)

    wrap("_run_call", run_call)


def no_owner() -> None:
    """Has no owner."""

    def run_call(inner: Any, self: Any) -> Any:
        self._open_request.owner = ""
        return inner(self)

    wrap("_run_call", run_call)


def resume_from_too_high() -> None:
    """Sends a `resume_from` that is one too high."""

    def run_call(inner: Any, self: Any) -> Any:
        if self._model is not None:
            self._open_request.resume_from += 1
        return inner(self)

    wrap("_run_call", run_call)


def resumes_from_zero() -> None:
    """Opens its stream again as if for the first time."""

    def run_call(inner: Any, self: Any) -> Any:
        self._open_request.resume_from = 0
        return inner(self)

    wrap("_run_call", run_call)


def skips_a_number() -> None:
    """Leaves out a step number."""

    def next_request(inner: Any, self: Any, now: float) -> Any:
        request = inner(self, now)
        if request is not None and request.timestep.step == 3:
            request.timestep.step = 4
        return request

    wrap("_next_request", next_request)


def exceeds_window() -> None:
    """Has more timesteps in flight than the server remembers answers."""

    def opened(inner: Any, self: Any, opened: Any) -> None:
        inner(self, opened)
        self._window = 1000

    wrap("_on_opened", opened)


def kept_max_too_low() -> None:
    """Sends a `kept_max` that is too low."""

    def run_call(inner: Any, self: Any) -> Any:
        self._open_request.kept_max = 3
        return inner(self)

    wrap("_run_call", run_call)


def delivers_duplicates() -> None:
    """Gives its user the same prediction twice."""

    def on_prediction(inner: Any, self: Any, prediction: Any) -> None:
        again = prediction.step <= self._answered
        inner(self, prediction)
        if again:
            common.show(prediction)

    wrap("_on_prediction", on_prediction)


def ignores_divergence() -> None:
    """Continues when a timestep gets another answer."""

    def opened(inner: Any, self: Any, opened: Any) -> None:
        opened.model.batch_invariant = False
        inner(self, opened)

    wrap("_on_opened", opened)


def resends_dropped() -> None:
    """Sends a timestep again that was refused for good."""

    def on_error(inner: Any, self: Any, error: Any) -> None:
        if error.action == pb.Error.ACTION_DROP:
            error.action = pb.Error.ACTION_RETRY
        inner(self, error)

    wrap("_on_error", on_error)


def ignores_retry_after() -> None:
    """Sends a timestep again without the requested wait."""

    def on_error(inner: Any, self: Any, error: Any) -> None:
        inner(self, error)
        self._not_before = 0.0

    wrap("_on_error", on_error)


def reopens_lost_stream() -> None:
    """Opens a lost stream again."""

    def delay(inner: Any, self: Any, ending: Any) -> float:
        return float(inner(self, ending._replace(action="REOPEN")))

    wrap("delay", delay, common.Retry)


def retries_without_back_off() -> None:
    """Does not wait between its tries."""
    wrap("delay", lambda inner, self, ending: min(inner(self, ending), 0.001), common.Retry)


def closes_too_early() -> None:
    """Closes while timesteps are in flight."""

    def next_request(inner: Any, self: Any, now: float) -> Any:
        request = inner(self, now)
        if request is not None and request.timestep.step == 5:
            self._half_closed = True
            return pb.PredictRequest(close=pb.Close())
        return request

    wrap("_next_request", next_request)


def accepts_incomplete_close() -> None:
    """Ends although the closed stream is not durable."""

    def on_response(inner: Any, self: Any, response: Any) -> Any:
        if response.HasField("closed"):
            response.closed.durable_step = self._answered
        return inner(self, response)

    wrap("_on_response", on_response)


def sends_after_move() -> None:
    """Continues a call after a Move."""

    def on_response(inner: Any, self: Any, response: Any) -> Any:
        return False if response.HasField("move") else inner(self, response)

    wrap("_on_response", on_response)


def asks_for_async_durability() -> None:
    """Keeps no timesteps, and does not ask for durable answers."""
    wrap(
        "_open_call",
        lambda inner, self: (setattr(self._open_request, "durability", pb.DURABILITY_ASYNC), inner(self))[1],
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
