"""The messages of a client: timesteps, and repeats of answered timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tidegate.client.errors import StreamLost
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.results import Waiter
from tidegate.core.spec import Array, Ints


class Repeat(NamedTuple):
    """A request for the answer to an old timestep. It is sent again with the same values."""

    buffer: ResendBuffer
    stream: int
    step: int
    values: bytes
    waiter: Waiter


@dataclass(slots=True, eq=False)
class Message:
    """The timesteps of one message.

    Attributes:
        number: counts from 1.
        buffer: the resend buffer that holds the rows.
        streams: the stream of each row.
        steps: the number of each row's timestep.
        values: the rows, as `tidegate.core.input_layout` says.
        at: the place of each row in the buffer; -1 where the answer is to be ignored.
        ignored: whether any answer is to be ignored.
        repeats: the repeats, one for each row; empty for a message of new timesteps.

    """

    number: int
    buffer: ResendBuffer
    streams: Ints
    steps: Ints
    values: Array
    at: Ints
    ignored: bool = False
    repeats: Sequence[Repeat] = ()


class SingleRowMessage(Message):
    """A message with a single timestep. Its columns are made on first use, which is rare.

    Attributes:
        stream, step, place: the values of its columns.
        packed: its timestep as bytes.
        waiter_id: the key of the caller in `PendingTimesteps`.

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
        """Makes the columns of a `Message` when one of them is used first."""
        if name not in ("streams", "steps", "values", "at"):
            raise AttributeError(name)
        self.streams, self.steps, self.at = np.array([[self.stream], [self.step], [self.place]])
        self.values = np.frombuffer(self.packed, self.buffer.layout.row_dtype).reshape(1, -1)
        return getattr(self, name)


def check_numbers(answered: Ints, sent: Ints) -> None:
    """Raises StreamLost when an answer does not have the number of its timestep."""
    if len(wrong := np.flatnonzero(answered != sent)):
        got, due = answered[wrong[0]], sent[wrong[0]]
        raise StreamLost(f"the server answered timestep {got}, expected {due}", "WRONG_ORDER")
