"""Decides what happens to refused timesteps: a retry, an error for their callers, or the loss of the stream.

Each decision follows the error that the server sent for that stream. `tidegate.client.window` carries it out.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tidegate.client.call import CallEnded
from tidegate.client.errors import (
    RETRY_ACTIONS,
    AnswerLost,
    ClientError,
    InvalidTimestep,
    ServerUnavailable,
    StreamLost,
    TimestepRefused,
    ValuesDiffer,
    diverged_error,
    timestep_error,
)
from tidegate.client.message import Message, check_numbers
from tidegate.client.results import Answers
from tidegate.client.retry import RetryDeadlines
from tidegate.client.types import Prediction
from tidegate.client.window import NO_ROWS, Window, first_of_each
from tidegate.core.spec import Ints
from tidegate.v1 import tidegate_pb2 as pb

RefusedRows = Mapping[int, ClientError]


class Decision(NamedTuple):
    """What the session must do about refused timesteps.

    `held` are streams to release after a delay; the server asked for `retry_after_s` seconds. `lost` are streams that can no longer be
    used. `shared`: the message was refused as a whole. `notified`: a caller got an error.
    """

    held: Ints
    retry_after_s: float
    lost: dict[int, ClientError]
    notified: bool
    shared: bool = False


class RefusalHandler:
    """Decides about refused timesteps. They are sent again for up to `reconnect_s` if the server allows it.

    Every method raises CallEnded when the streams must be opened again.
    """

    def __init__(self, window: Window, deadlines: RetryDeadlines, reconnect_s: float) -> None:
        self._window = window
        self._deadlines = deadlines
        self._reconnect_s = reconnect_s

    def handle_message(self, message: Message, error: pb.Error) -> Decision:
        """Decides about a message that was refused as a whole."""
        refusal = timestep_error(error)
        if message.repeats:
            return self._decide_repeats(message, dict.fromkeys(range(len(message.repeats)), refusal))
        rows = first_of_each(message, np.flatnonzero(message.at >= 0))
        if refusal.action in RETRY_ACTIONS:
            return self._decide(message, dict.fromkeys(rows.tolist(), refusal))
        lost = StreamLost(f"the server refused a block: {refusal}", refusal.reason)
        return Decision(NO_ROWS, 0.0, dict.fromkeys(message.streams[rows].tolist(), lost), notified=False, shared=True)

    def handle_rows(self, message: Message, rows: Ints, errors: Sequence[pb.Error]) -> Decision:
        """Decides about the first refused row of each stream."""
        self._window.mark_refused(message, rows, np.array([error.next_step for error in errors], np.int64))
        return self._decide(message, dict(zip(rows.tolist(), map(timestep_error, errors), strict=True)))

    def handle_repeats(self, message: Message, answers: Answers, errors: Mapping[int, pb.Error]) -> Decision:
        """Delivers the answers to repeats, and decides about refused ones.

        Raises:
            StreamLost: an answer has another number than was asked for.

        """
        check_numbers(answers.steps[~answers.refused], message.steps[~answers.refused])
        outputs = message.buffer.model.outputs
        for row, repeat in enumerate(message.repeats):
            if not answers.refused[row] and not repeat.waiter.done():
                packed = [] if answers.forgotten[row] else [column[row].tobytes() for column in answers.outputs]
                durable_step = int(answers.durable_steps[row])
                repeat.waiter.set_result(Prediction(repeat.step, outputs, packed, durable_step, duplicate=True))
        return self._decide_repeats(message, {row: timestep_error(error) for row, error in errors.items()})

    def _decide_repeats(self, message: Message, refusals: RefusedRows) -> Decision:
        lost: dict[int, ClientError] = {}
        retried, notified = [], False
        if reopen := _reopen(refusals):
            for row in refusals:
                self._window.add_repeat(message.repeats[row])
            raise CallEnded(reopen)
        for row, refusal in refusals.items():
            repeat = message.repeats[row]
            # The values of the repeat may be wrong. The timestep that was sent first is not affected.
            if not isinstance(refusal, TimestepRefused | ValuesDiffer):
                lost[repeat.stream] = refusal
            elif self._may_retry(refusal, repeat.stream, repeat.step):
                self._window.add_repeat(repeat)
                retried.append(row)
                continue
            if not repeat.waiter.done():
                wrong = isinstance(refusal, ValuesDiffer)
                repeat.waiter.set_exception(
                    InvalidTimestep(str(refusal), refusal.reason, field="values") if wrong else refusal
                )
                notified = True
        return self._hold(message, retried, refusals, lost, notified=notified)

    def _decide(self, message: Message, refusals: RefusedRows) -> Decision:
        if reopen := _reopen(refusals):
            raise CallEnded(reopen)
        lost: dict[int, ClientError] = {}
        retried, failed = [], []
        for row, refusal in refusals.items():
            stream, step = int(message.streams[row]), int(message.steps[row])
            if not isinstance(refusal, TimestepRefused):
                lost[stream] = refusal
            elif self._may_retry(refusal, stream, step):
                retried.append(row)
            elif step <= self._window.answered[stream]:  # it was answered, so it can neither be dropped nor failed
                lost[stream] = self._loss(step, refusal)
            else:
                failed.append(row)
                self._deadlines.clear(stream)
        self._window.resend(message, np.array(retried, np.int64))
        self._fail_rows(message, np.array(failed, np.int64), refusals)
        return self._hold(message, retried, refusals, lost, notified=bool(failed))

    def _may_retry(self, refusal: ClientError, stream: int, step: int) -> bool:
        return refusal.action == pb.Error.ACTION_RETRY and self._deadlines.may_retry(stream, step, self._reconnect_s)

    def _hold(
        self,
        message: Message,
        retried: list[int],
        refusals: RefusedRows,
        lost: dict[int, ClientError],
        *,
        notified: bool,
    ) -> Decision:
        """Holds the streams of rows that are sent again until they are released."""
        held = message.streams[retried]
        self._window.hold(held)
        return Decision(held, max((refusals[row].retry_after_s for row in retried), default=0.0), lost, notified)

    def _fail_rows(self, message: Message, rows: Ints, refusals: RefusedRows) -> None:
        """Fails the callers of refused rows. Rows that had been applied keep their numbers."""
        applied = self._window.is_applied(message, rows)
        lost_answers = [
            AnswerLost(
                f"timestep {message.steps[row]} was applied, but could not be answered: {refusals[row]}",
                refusals[row].reason,
            )
            for row in rows[applied].tolist()
        ]
        self._window.skip_applied(message, rows[applied], lost_answers)
        self._window.drop(message, rows[~applied], [refusals[row] for row in rows[~applied].tolist()])

    def _loss(self, step: int, refusal: ClientError) -> StreamLost:
        """The error that ends a stream whose answered timestep was refused."""
        if refusal.action == pb.Error.ACTION_RETRY:
            return ServerUnavailable(
                f"timestep {step} could not be sent again for {self._reconnect_s:g} s: {refusal}", refusal.reason
            )
        what = f"timestep {step} was answered before, and is refused now that the server has lost it"
        return diverged_error(what, step - 1)


def _reopen(refusals: RefusedRows) -> ClientError | None:
    """The first refusal that ends the call; None when none does."""
    return next((refusal for refusal in refusals.values() if refusal.action == pb.Error.ACTION_REOPEN), None)
