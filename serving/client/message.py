"""The messages that a client sends: timesteps, and repeats of old timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tidegate.client.errors import StreamLost
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.results import Waiter
from tidegate.core.spec import Floats, Ints


class Repeat(NamedTuple):
    """An old timestep whose answer is asked for again, with the values that it had."""

    buffer: ResendBuffer
    stream: int
    step: int
    values: bytes
    waiter: Waiter


@dataclass(slots=True, eq=False)
class Message:
    """Timesteps that are sent together.

    Attributes:
        number: counts from 1.
        buffer: where they stand.
        streams: one a row.
        steps: their numbers, one a row.
        values: (rows, features)
        at: their places in the buffer; -1 where the answer is to be ignored.
        ignored: whether some of its answers are to be ignored.
        repeats: one a row where old answers are asked for again; else empty.

    """

    number: int
    buffer: ResendBuffer
    streams: Ints
    steps: Ints
    values: Floats
    at: Ints
    ignored: bool = False
    repeats: Sequence[Repeat] = ()


class SingleRowMessage(Message):
    """A message with a single timestep, whose columns are made when somebody asks for them: mostly nobody does.

    Attributes:
        stream, step, place: what stands in its columns.
        packed: its values.
        caller: by which the backlog knows who waits for it.

    """

    __slots__ = ("packed", "place", "step", "stream", "waiter_id")

    def __init__(
        self, number: int, buffer: ResendBuffer, stream: int, step: int, packed: bytes, place: int, waiter_id: int
    ) -> None:
        self.number = number
        self.buffer = buffer
        self.stream = stream
        self.step = step
        self.packed = packed
        self.place = place
        self.waiter_id = waiter_id
        self.ignored = False
        self.repeats = ()

    def __getattr__(self, name: str) -> Any:
        """The columns of a `Message`, the first time that one of them is asked for."""
        if name not in ("streams", "steps", "values", "at"):
            raise AttributeError(name)
        self.streams, self.steps, self.at = np.array([[self.stream], [self.step], [self.place]])
        self.values = np.frombuffer(self.packed, "<f4").reshape(1, -1)
        return getattr(self, name)


def check_numbers(answered: Ints, sent: Ints) -> None:
    """Raises StreamLost when an answer has another number than its timestep."""
    if len(wrong := np.flatnonzero(answered != sent)):
        got, due = answered[wrong[0]], sent[wrong[0]]
        raise StreamLost(f"the server answered timestep {got}, and {due} was due", "WRONG_ORDER")
