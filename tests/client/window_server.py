"""A model of a server, as the protocol describes it, that answers messages of a client's window without a network."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from tests.client.reasons import error_of
from tests.client.windows import ints
from tidegate.client.message import Message
from tidegate.client.results import Answers
from tidegate.v1 import tidegate_pb2 as pb

# Of a stream that the server knows by this name: number and value.
Row = tuple[int, int, float]


def answer(history: Sequence[float]) -> tuple[float, list[float]]:
    """What a server answers to the last timestep of a history: it depends on all of it."""
    return sum(history), [len(history), sum(place * value for place, value in enumerate(history, 1))]


class Server:
    """A server as the protocol describes it: takes messages whole and in order, stores now and then, crashes.

    Streams go by names that are never used again. Values of timesteps rise over time, those below 0 are refused.
    """

    def __init__(self, remembered: int) -> None:
        self.remembered = remembered
        self.applied: list[list[float]] = []
        self.durable: list[int] = []
        self.forgotten: list[int] = []  # answers up to here are gone, besides those that are not remembered for long
        self.taken: set[int] = set()  # by another client
        self.requests: deque[tuple[Message, list[Row]]] = deque()
        self.responses: deque[tuple[Message, Answers | None, dict[int, pb.Error]]] = deque()

    def run(self, *, full: bool, busy: Callable[[], str]) -> None:
        """Answers one message, or has no room for it, or for a row of it, or for the answer to one that it has applied."""
        message, rows = self.requests.popleft()
        if full:
            self.responses.append((message, None, {0: error_of("OVERLOADED", retry_after_ms=100)}))
            return
        count = len(rows)
        sums, seen = np.zeros((count, 1), np.float32), np.zeros((count, 2))
        forgotten, repeated = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        durable = np.zeros(count, np.int64)
        errors: dict[int, pb.Error] = {}
        for row, (name, step, value) in enumerate(rows):
            applied = self.applied[name]
            durable[row] = self.durable[name]
            repeated[row] = step <= len(applied)
            reason = self.refuses(name, step, value) or busy()
            if step == len(applied) + 1 and reason in {"", "late"}:
                assert not applied or abs(value) > applied[-1], "applied twice, or out of order"
                applied.append(value)
            if reason:
                reason = reason.replace("busy", "OVERLOADED").replace("late", "OVERLOADED")
                errors[row] = error_of(reason, step=step, next_step=len(applied) + 1)
                continue
            forgotten[row] = step <= max(self.forgotten[name], len(applied) - self.remembered)
            if not forgotten[row]:
                sums[row], seen[row] = answer(applied[:step])
        refused = np.zeros(count, np.bool_)
        refused[list(errors)] = True
        repeated &= ~forgotten & ~refused
        plain = not (errors or forgotten.any() or repeated.any())
        steps = ints(*(step for _, step, _ in rows))
        columns = Answers(steps, [sums, seen], durable, repeated, forgotten, refused, plain=plain)
        self.responses.append((message, columns, errors))

    def refuses(self, name: int, step: int, value: float) -> str:
        """Why a row cannot be answered; empty when it can."""
        applied = self.applied[name]
        if name in self.taken:
            return "TAKEN_OVER"
        if step > len(applied) + 1:
            return "STEP_GAP"
        if step == len(applied) + 1:
            return "NOT_FINITE" if value < 0 else ""
        return "" if applied[step - 1] == value else "VALUES_DIFFER"
