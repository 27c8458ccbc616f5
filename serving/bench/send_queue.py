"""The books of one call: what is due, what is under way, which number comes next. No grpc, no clock.

A lane has one row (`Predict`) or many (`PredictBlocks`): a message holds the next timestep of every row, and is answered in
order.

Laws:
1. A message's latency counts from when it was due, however late it was sent and however often.
2. A row's numbers have no holes: after a refusal nothing more is sent until everything under way is answered. A message
   that was behind a refused one comes back as a gap, and goes again with its new number.
3. At most `window` messages are under way and at most as many wait. One that becomes due beyond that is not taken in.
4. What was refused for want of room goes again when nothing is due at a time of its own (a closed loop); else it is let
   go, as it is when it was refused for what it is. A row alone cannot go again where the next message is due anyway.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

# Refusals that go away by waiting.
CAPACITY_REASONS = frozenset({"OVERLOADED", "STORE_UNAVAILABLE", "TOO_MANY_STREAMS"})
# What a refusal for want of room is called that does not say when there will be some.
WITHOUT_RETRY_TIME = " without a time to wait"
# The one that follows from another, and how it is called when it does and the timestep is let go.
GAP = "STEP_GAP"
GAP_AFTER_REFUSAL = "STEP_GAP behind a refusal"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message or a row was not applied, and when it may go again."""

    reason: str
    retry_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said of a message: refused as a whole, or applied but for some rows."""

    refused: Refusal | None = None
    rows: Mapping[int, Refusal] | None = None


@dataclass(slots=True)  # not frozen: that would make it dearer than all the rest
class MessageOutcome:
    """What became of a message.

    Attributes:
        due: when it was due.
        sent: when it was sent last.
        applied: rows that were.
        late: when those of them were due that had been refused before.
        refused: reasons of rows that were let go, with their numbers.
        again: reasons of rows that go again, with their numbers.
        over: whether the message is; False when it goes again as a whole.

    """

    due: float
    sent: float
    applied: int
    late_due: tuple[float, ...] = ()
    refused: Mapping[str, int] | None = None
    retried: Mapping[str, int] | None = None
    done: bool = True


class SendQueue:
    """One call's books.

    Args:
        rows: of a message.
        window: the most messages under way.
        closed: whether it is a closed loop, see law 4.

    """

    def __init__(self, rows: int, window: int, *, closed_loop: bool) -> None:
        self.rows = rows
        self._window = window
        self._closed_loop = closed_loop
        self._waiting: deque[float] = deque()  # due times of messages
        self._in_flight: deque[tuple[float, int, float]] = deque()  # due times, numbers, and when they were sent
        self._retries: list[float] = []  # came back while the lane settles
        self._recovering = False
        self._done = 0  # messages that every row has had, but for those in `behind`
        self.lags: dict[int, int] = {}  # timesteps that a row is behind the others
        self._retried_rows: dict[int, float] = {}  # rows whose next timestep was due before its message
        self._paused_until = 0.0

    def __repr__(self) -> str:
        return (
            f"<Lane of {self.rows}, {self._done} over, {len(self._in_flight)} under way, {len(self._waiting)} waiting>"
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        return not (self._in_flight or self._waiting or self._retries)

    @property
    def paused_until(self) -> float:
        """When the server has room again, as it said."""
        return self._paused_until

    def add(self, due: float) -> bool:
        """A message is due; False when too many wait already."""
        if len(self._waiting) >= self._window:
            return False
        self._waiting.append(due)
        return True

    def ready(self, now: float) -> bool:
        """Whether a message can be sent."""
        return (
            bool(self._waiting)
            and len(self._in_flight) < self._window
            and not self._recovering
            and now >= self._paused_until
        )

    def send(self, now: float) -> int:
        """Puts a message under way; gives the number of its timesteps, from which each row takes off what it is behind."""
        number = self._done + len(self._in_flight) + 1
        self._in_flight.append((self._waiting.popleft(), number, now))
        return number

    def expected_number(self) -> int:
        """The number of the message that is answered next; 0 when none is under way."""
        return self._in_flight[0][1] if self._in_flight else 0

    def take_answer(self, answer: Answer, now: float) -> MessageOutcome:
        """Takes the verdict on the message that was sent first of those under way."""
        due, _, sent = self._in_flight.popleft()
        if answer.refused is not None:
            outcome = self._refused(due, sent, answer.refused, now)
        elif self._recovering and self._is_gap(answer):
            outcome = self._refused(due, sent, Refusal(GAP), now)
        elif answer.rows or self._retried_rows:
            outcome = self._take_rows(due, sent, answer.rows or {}, now)
        else:
            self._done += 1
            outcome = MessageOutcome(due, sent, self.rows)
        if self._recovering and not self._in_flight:
            self._recovering = False
            self._waiting.extendleft(reversed(self._retries))
            self._retries.clear()
        return outcome

    def abandon(self) -> list[tuple[float, int]]:
        """Gives up what was not answered: when it was due and how many rows; nothing waits afterwards."""
        given_up = [
            (due, self.rows) for due in (*(due for due, _, _ in self._in_flight), *self._retries, *self._waiting)
        ]
        given_up += [(due, 1) for due in self._retried_rows.values()]
        self._waiting.clear()
        self._retries.clear()
        self._retried_rows.clear()
        return given_up

    def _is_gap(self, answer: Answer) -> bool:
        """Whether no row was applied, since all were behind a refused one."""
        rows = answer.rows or {}
        return len(rows) == self.rows and all(refusal.reason == GAP for refusal in rows.values())

    def _refused(self, due: float, sent: float, refusal: Refusal, now: float) -> MessageOutcome:
        is_gap_after_refusal = refusal.reason == GAP and self._recovering
        self._recovering = True
        if is_gap_after_refusal or (self._closed_loop and refusal.reason in CAPACITY_REASONS):
            self._pause(refusal, now)
            self._retries.append(due)
            return MessageOutcome(due, sent, 0, retried={_retry_reason(refusal): self.rows}, done=False)
        return MessageOutcome(due, sent, 0, refused={refusal.reason: self.rows})

    def _take_rows(self, due: float, sent: float, rows: Mapping[int, Refusal], now: float) -> MessageOutcome:
        self._done += 1
        is_gap_after_refusal = self._recovering
        late_due = tuple(self._retried_rows.pop(row) for row in list(self._retried_rows) if row not in rows)
        refused: dict[str, int] = {}
        retried: dict[str, int] = {}
        for row, refusal in rows.items():
            self.lags[row] = self.lags.get(row, 0) + 1
            if self._closed_loop and (
                refusal.reason in CAPACITY_REASONS or (refusal.reason == GAP and is_gap_after_refusal)
            ):
                self._retried_rows.setdefault(row, due)
                self._pause(refusal, now)
                retried[_retry_reason(refusal)] = retried.get(_retry_reason(refusal), 0) + 1
            else:
                self._retried_rows.pop(row, None)
                reason = GAP_AFTER_REFUSAL if refusal.reason == GAP and is_gap_after_refusal else refusal.reason
                refused[reason] = refused.get(reason, 0) + 1
        self._recovering |= bool(rows)
        return MessageOutcome(due, sent, self.rows - len(rows), late_due, refused, retried)

    def _pause(self, refusal: Refusal, now: float) -> None:
        if self._closed_loop:
            self._paused_until = max(self._paused_until, now + refusal.retry_s)


def _retry_reason(refusal: Refusal) -> str:
    return refusal.reason + ("" if refusal.retry_s or refusal.reason == GAP else WITHOUT_RETRY_TIME)
