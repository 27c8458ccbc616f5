"""Tidegate's own client with one fault: python -m tests.conformance.broken_blocks FAULT ADDRESS STREAM_ID."""

import sys
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.conformance import driver
from tidegate.client.call import Call
from tidegate.client.refusals import RefusalHandler
from tidegate.client.session import Session
from tidegate.client.session_streams import SessionStreams
from tidegate.client.window import Window
from tidegate.v1 import tidegate_pb2 as pb


def wrap(of: Any, name: str, around: Callable[..., Any]) -> None:
    """Wraps a method. `around` gets the method, the object and the arguments."""
    inner = getattr(of, name)
    setattr(of, name, lambda self, *arguments, **named: around(inner, self, *arguments, **named))


def new_owner() -> None:
    """Uses another owner for each open."""

    def next_open(inner: Any, self: Any) -> Any:
        if (ask := inner(self)) is not None:
            ask.owner = uuid.uuid4().hex
        return ask

    wrap(SessionStreams, "_next_open", next_open)


def resume_from_too_high() -> None:
    """Sends a `resume_from` that is too high."""
    wrap(Window, "first_kept", lambda inner, self, streams: inner(self, streams) + self.ever_opened[streams])


def exceeds_window() -> None:
    """Has more timesteps in flight than the server remembers answers."""

    def opened(inner: Any, self: Any, streams: Any, next_steps: Any, durable_steps: Any, _: int) -> None:
        inner(self, streams, next_steps, durable_steps, 1000)

    wrap(Window, "mark_opened", opened)


def skips_unanswered() -> None:
    """Does not send a timestep again that was unanswered when its call ended."""

    def opened(inner: Any, self: Any, streams: Any, next_steps: Any, durable_steps: Any, window: int) -> None:
        again = self.ever_opened[streams].any()
        inner(self, streams, next_steps, durable_steps, window)
        if again:
            self._cursor[streams] += 1

    wrap(Window, "mark_opened", opened)


def resends_dropped() -> None:
    """Sends a timestep again that was refused for good."""

    def handle_rows(inner: Any, self: Any, message: Any, rows: Any, errors: Any) -> Any:
        for error in errors:
            error.action = pb.Error.ACTION_RETRY
        return inner(self, message, rows, errors)

    wrap(RefusalHandler, "handle_rows", handle_rows)


def reopens_ended_stream() -> None:
    """Opens a stream again that another client has taken over."""

    def ended(inner: Any, self: Any, message: Any) -> None:
        message.error.action = pb.Error.ACTION_REOPEN
        inner(self, message)

    wrap(Session, "_on_ended", ended)


def reopens_refused_stream() -> None:
    """Opens a stream again whose open was refused for good."""

    def opened(inner: Any, self: Any, message: Any) -> None:
        for row in message.errors:
            row.error.action = pb.Error.ACTION_REOPEN
        inner(self, message)

    wrap(Session, "_on_opened", opened)


def closes_too_early() -> None:
    """Closes instead of sending its fifth timestep."""

    def next_request(inner: Any, self: Any) -> Any:
        request = inner(self)
        if request is not None and 5 in np.frombuffer(request.block.steps, "<u8"):
            return pb.PredictBlocksRequest(close=pb.CloseStreams(handles=[1]))
        return request

    wrap(Session, "_next_request", next_request)


def sends_after_move() -> None:
    """Continues a call after a Move."""

    def on_response(inner: Any, self: Any, call: Call, response: pb.PredictBlocksResponse) -> None:
        if not response.HasField("move"):
            inner(self, call, response)

    wrap(Session, "_on_response", on_response)


def accepts_incomplete_close() -> None:
    """Ends although the closed stream is not durable."""

    def closed(inner: Any, self: Any, message: Any) -> None:
        message.durable_steps[0] = message.steps[0]
        inner(self, message)

    wrap(Session, "_on_closed", closed)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    driver.run(sys.argv[2:])
