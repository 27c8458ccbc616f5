"""A client's window without a network, so that every interleaving is one line: calls of tests, and the answers of a server."""

import dataclasses
from typing import Any

import numpy as np

from tidegate.client.errors import InvalidTimestep
from tidegate.client.message import Message, Repeat, SingleRowMessage
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.results import Answers, BlockResults, Group
from tidegate.client.types import Model
from tidegate.client.window import Window
from tidegate.core.spec import Feature, Ints, Output

OUTPUTS = (Output("sum", np.dtype(np.float32), (1,)), Output("seen", np.dtype(np.float64), (2,)))
MODEL = Model("toy", "1", "f" * 64, "", 0.0, (Feature("x"),), OUTPUTS, batch_invariant=True, handles_missing=True)
OTHER = dataclasses.replace(MODEL, name="other")
ROWS_MAX = 1000

Row = tuple[int, int, float]


def ints(*numbers: int) -> Ints:
    """A column."""
    return np.array(numbers, np.int64)


class Caller:
    """A future without an event loop, which takes one answer and no other."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: Any = None
        self.cancelled = False

    def done(self) -> bool:
        """Whether it has an answer, or was cancelled."""
        return self.cancelled or self.result is not None or self.error is not None

    def set_result(self, result: Any, /) -> None:
        """Sets the answer."""
        assert not self.done()
        self.result = result

    def set_exception(self, exception: Any, /) -> None:
        """Sets the error."""
        assert not self.done()
        self.error = exception


class Block(BlockResults):
    """Results of many rows that check that each row is settled once."""

    def __init__(self, rows: int) -> None:
        self.caller = Caller()
        self.settled = np.zeros(rows, np.bool_)
        super().__init__(OUTPUTS, rows, self.caller)

    def settle(self, places: Ints, rows: Ints, answers: Answers) -> None:
        """Settles rows with answers."""
        assert not self.settled[places].any()
        self.settled[places] = True
        super().settle(places, rows, answers)

    def fail(self, place: int, *error: Any, **more: Any) -> None:
        """Settles a row with an error."""
        assert not self.settled[place]
        self.settled[place] = True
        super().fail(place, *error, **more)


class OpenWindow(Window):
    """A window of open streams of one model, which continue at these numbers."""

    def __init__(self, *next_steps: int, durable: int = 0, window: int = 4, buffer_max: int = 100) -> None:
        super().__init__(buffer_max)
        self.buffer = self.buffer_of(MODEL, ROWS_MAX)
        streams = self.add_streams(len(next_steps))
        self.mark_opened(streams, ints(*next_steps), np.full(len(next_steps), durable), window)

    def open_again(self, *next_steps: int, durable: int = 0) -> None:
        """Ends the call, and opens these streams, from the first on, again."""
        self.end_call()
        count = len(next_steps)
        self.mark_opened(np.arange(count), ints(*next_steps), np.full(count, durable), self.window)

    @property
    def settled(self) -> bool:
        """Whether no caller waits for anything."""
        return not self._blocks and not self._singles and not self._pending_repeats()


def add_block(
    window: Window, rows: list[int], values: list[float] | None = None, buffer: ResendBuffer | None = None
) -> Block:
    """Adds rows of many streams; without values they are 1."""
    results = Block(len(rows))
    column = np.array(values or [1.0] * len(rows), np.float32).reshape(-1, 1)
    window.add(window._buffers[0] if buffer is None else buffer, results, 0, ints(*rows), column)
    return results


def add_single_row(
    window: Window, stream: int, value: float = 1.0, group: Group | None = None, buffer: ResendBuffer | None = None
) -> Caller:
    """Adds one timestep."""
    caller = Caller()
    window.add_single(window._buffers[0] if buffer is None else buffer, stream, packed(value), caller, group)
    return caller


def ask_again(window: OpenWindow, stream: int, step: int, value: float = 1.0) -> Caller:
    """Requests an old answer."""
    caller = Caller()
    window.add_repeat(Repeat(window.buffer, stream, step, packed(value), caller))
    return caller


def packed(value: float) -> bytes:
    """Packs a value as a caller of one timestep gives it."""
    return np.array([value], "<f4").tobytes()


def sent_rows(window: Window, rows_max: int = ROWS_MAX) -> list[Row]:
    """Takes the next message: stream, number and value of each row."""
    for buffer in window._buffers:
        buffer.rows_max = rows_max
    message = window.next_message()
    return [] if message is None else contents(message)


def contents(message: Message) -> list[Row]:
    """Stream, number and value of each row."""
    return list(zip(message.streams.tolist(), message.steps.tolist(), message.values[:, 0].tolist(), strict=True))


def answers_to(message: Message, *, durable: int = 0, forgotten: tuple[int, ...] = (), bits: float = 0.5) -> Answers:
    """Answers every row with its stream and number, so that a mixed-up answer shows."""
    rows = len(message.steps)
    gone = np.zeros(rows, np.bool_)
    gone[list(forgotten)] = True
    sums = (message.streams * 100 + message.steps + bits).astype(np.float32).reshape(rows, 1)
    seen = np.stack([message.streams, message.steps], axis=1).astype(np.float64)
    sums[gone], seen[gone] = 0, 0
    nothing = np.zeros(rows, np.bool_)
    steps = message.steps.copy()
    return Answers(steps, [sums, seen], np.full(rows, durable), nothing, gone, nothing.copy(), plain=not forgotten)


def respond(window: Window, number: int, **more: Any) -> Any:
    """Answers the message of that number."""
    message = window.match_answer(number)
    return window.settle(message, answers_to(message, **more))


def settle_single_row(window: OpenWindow, message: SingleRowMessage, durable: int = 0) -> bool:
    """Answers a message of a single timestep."""
    answers = answers_to(message)
    outputs = [column.tobytes() for column in answers.outputs]
    return window.settle_single_row(message, answers.steps.tobytes(), outputs, durable)


def refuse(window: Window, number: int, *rows: int, next_step: int = 0) -> tuple[Message, Ints]:
    """Refuses these rows of a message and answers the others. Returns the message and the rows to decide on."""
    message = window.match_answer(number)
    answers = answers_to(message)
    answers.refused[list(rows)] = True
    refused = window.settle(message, answers._replace(plain=False)).refused
    window.mark_refused(message, refused, np.full(len(refused), next_step))
    return message, refused


def drop(window: Window, message: Message, rows: Ints) -> InvalidTimestep:
    """Drops refused rows."""
    error = InvalidTimestep("bad", "NOT_FINITE")
    window.drop(message, rows, [error] * len(rows))
    return error
