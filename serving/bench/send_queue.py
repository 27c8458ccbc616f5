"""The send queue of one call: due messages, messages in flight, and the number of the next timestep.

A call has one row (`Predict`) or many (`PredictBlocks`). A message holds the next timestep of every row. The server
answers messages in order. This module has no gRPC and no clock.

Rules:
1. The latency of a message counts from its due time, even when it is sent late or several times.
2. The timesteps of a row have consecutive numbers. After a refusal nothing is sent until all messages in flight are
   answered. A message that was in flight behind a refused one is answered with a gap. It is sent again with its new
   number.
3. At most `window` messages are in flight and at most as many wait. A message that becomes due beyond that is dropped.
4. In a closed loop a timestep that was refused for lack of capacity is sent again. In an open loop it is dropped, as
   are timesteps that were refused for another reason. A single row is not sent again in an open loop, because the next
   message is due anyway.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

# Reasons of refusals that end by waiting.
CAPACITY_REASONS = frozenset({"OVERLOADED", "STORE_UNAVAILABLE", "TOO_MANY_STREAMS"})
# Marks the reason of a refusal for lack of capacity that gives no retry time.
WITHOUT_RETRY_TIME = " without a time to wait"
# The reason of a gap, and the reason that is counted when the gap follows a refusal and the timestep is dropped.
GAP = "STEP_GAP"
GAP_AFTER_REFUSAL = "STEP_GAP behind a refusal"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message or a row was not applied, and after how many seconds it may be sent again."""

    reason: str
    retry_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a message: refused as a whole, or applied except for some rows."""

    refused: Refusal | None = None
    rows: Mapping[int, Refusal] | None = None


@dataclass(slots=True)  # not frozen: a frozen class is much slower to create
class MessageOutcome:
    """The outcome of one sending of a message.

    Attributes:
        due: when the message was due.
        sent: when it was sent last.
        applied: the number of applied rows.
        late_due: the due times of applied rows that had been refused before.
        refused: the number of dropped rows by reason.
        retried: the number of rows that are sent again, by reason.
        done: False when the whole message is sent again.
    """

    due: float
    sent: float
    applied: int
    late_due: tuple[float, ...] = ()
    refused: Mapping[str, int] | None = None
    retried: Mapping[str, int] | None = None
    done: bool = True


class SendQueue:
    """The send queue of one call.

    Args:
        rows: the number of rows of a message.
        window: the maximum number of messages in flight.
        closed_loop: whether refused timesteps are sent again, see rule 4.
    """

    def __init__(self, rows: int, window: int, *, closed_loop: bool) -> None:
        self.rows = rows
        self._window = window
        self._closed_loop = closed_loop
        self._waiting: deque[float] = deque()  # due times of messages
        self._in_flight: deque[tuple[float, int, float]] = deque()  # due time, number and send time of each message
        self._retries: list[float] = []  # due times of messages that are sent again after the recovery
        self._recovering = False
        self._done = 0  # answered messages
        self.lags: dict[int, int] = {}  # by row: how many timesteps it is behind the others
        self._retried_rows: dict[int, float] = {}  # by row: the due time of a timestep that is sent again
        self._paused_until = 0.0

    def __repr__(self) -> str:
        return f"<SendQueue rows={self.rows} done={self._done} in_flight={len(self._in_flight)} waiting={len(self._waiting)}>"

    @property
    def idle(self) -> bool:
        """Whether no message waits or is in flight."""
        return not (self._in_flight or self._waiting or self._retries)

    @property
    def paused_until(self) -> float:
        """The time until which the server asked to wait."""
        return self._paused_until

    def add(self, due: float) -> bool:
        """Adds a message. Returns False when too many messages wait already."""
        if len(self._waiting) >= self._window:
            return False
        self._waiting.append(due)
        return True

    def ready(self, now: float) -> bool:
        """Whether a message can be sent now."""
        return (
            bool(self._waiting)
            and len(self._in_flight) < self._window
            and not self._recovering
            and now >= self._paused_until
        )

    def send(self, now: float) -> int:
        """Takes the next message. Returns its number; the number of a row's timestep is that less its lag."""
        number = self._done + len(self._in_flight) + 1
        self._in_flight.append((self._waiting.popleft(), number, now))
        return number

    def expected_number(self) -> int:
        """Returns the number of the message that is answered next; 0 when none is in flight."""
        return self._in_flight[0][1] if self._in_flight else 0

    def take_answer(self, answer: Answer, now: float) -> MessageOutcome:
        """Takes the answer to the oldest message in flight."""
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
        """Gives up all unanswered messages. Returns the due time and the number of rows of each."""
        given_up = [
            (due, self.rows) for due in (*(due for due, _, _ in self._in_flight), *self._retries, *self._waiting)
        ]
        given_up += [(due, 1) for due in self._retried_rows.values()]
        self._waiting.clear()
        self._retries.clear()
        self._retried_rows.clear()
        return given_up

    def _is_gap(self, answer: Answer) -> bool:
        """Whether all rows were refused because they were sent behind a refused message."""
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
