"""A stream of a session, and the view that is notified of it."""

from dataclasses import dataclass
from typing import Protocol

from tidegate.client.errors import ClientError
from tidegate.client.moves import MOVED
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.tensors import StreamInputs
from tidegate.client.types import Model
from tidegate.v1 import tidegate_pb2 as pb


class StreamListener(Protocol):
    """Notified of the streams of a session; `place` identifies the stream. `single_stream` is True when there is only one."""

    model: Model
    single_stream: bool

    def on_opened(self, place: int, buffer: ResendBuffer, call: int) -> None:
        """Called when a stream was opened on the call of that number. The buffer is for its timesteps."""

    def on_lost(self, place: int, error: ClientError, *, notified: bool, shared: bool) -> None:
        """Called when a stream is lost. `notified`: a caller got the error. `shared`: all streams of the session ended with it."""

    def on_closed(self, place: int) -> None:
        """Called when a stream was closed on request."""


@dataclass(slots=True, eq=False)
class SessionStream:
    """A stream of a session; called a member where `stream` is its index.

    Attributes:
        stream: its index, which is reused after the stream was detached.
        stream_id: its name; empty until the server has issued one.
        options: the open request, shared by the streams of a block.
        listener: the view that it belongs to.
        place: its place in that view.
        until: the deadline of its first open.
        inputs: those that it begins with; they are sent with each open.
        kind: how it was opened first: "new", "resumed" or "taken_over"; empty before.
        epoch: rises with every open.
        forget: whether the server deletes it on close; None while it is not being closed.
        model: the model that runs it; None before it was opened.
        moved: how it came to its state when the server moved it to another version last; empty when it has not.

    """

    stream: int
    stream_id: str
    options: pb.OpenStreams
    listener: StreamListener
    place: int
    until: float
    inputs: StreamInputs = ()
    kind: str = ""
    epoch: int = 0
    forget: bool | None = None
    model: Model | None = None
    moved: str = ""

    def set_model(self, model: Model, moved: str) -> None:
        """Notes the model of the last answer. `moved` is how the stream came to its state, where that is known."""
        changed = self.model is not None and self.model.fingerprint != model.fingerprint
        self.moved = moved or (MOVED if changed else self.moved)
        self.model = model
        if self.listener.single_stream:
            self.listener.model = model
