"""What becomes of timesteps that were refused: sent again after a while, told to their callers, or the loss of their stream.

The window keeps the books of it; here is done what the server says of each, for its stream alone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client.call import CallEnded
from serving.client.errors import (
    AnswerLost,
    ClientError,
    Diverged,
    InvalidTimestep,
    ServerUnavailable,
    StreamLost,
    TimestepRefused,
    ValuesDiffer,
    refusal_of,
)
from serving.client.message import Message, Repeat, check_numbers
from serving.client.results import Answers
from serving.client.retry import Shortage
from serving.client.types import Prediction
from serving.client.window import NO_ROWS, Window
from serving.core.spec import Ints


class Decision(NamedTuple):
    """What is left to be done about refused timesteps.

    `held` are streams that are to be released after a wait, for which the server has asked for `retry_after_s`; `lost` are
    those that can no longer be used, `whole` says that a message was refused as a whole; `told` whether a caller was told.
    """

    held: Ints
    retry_after_s: float
    lost: dict[int, ClientError]
    told: bool
    whole: bool = False


class Refusals:
    """Decides about refused timesteps; those that may be sent again are, within `reconnect_s`."""

    def __init__(self, window: Window, shortage: Shortage, reconnect_s: float) -> None:
        self._window = window
        self._shortage = shortage
        self._reconnect_s = reconnect_s

    def of_all(self, message: Message, error: pb.Error) -> Decision:
        """Decides about a message of which no row was applied.

        Raises:
            CallEnded: the streams are to be opened again.

        """
        refusal = refusal_of(error)
        if message.repeats:
            return self._decide_on_repeats(list(message.repeats), dict.fromkeys(range(len(message.repeats)), refusal))
        if refusal.action == pb.Error.ACTION_REOPEN:
            raise CallEnded(refusal)
        again = isinstance(refusal, TimestepRefused) and refusal.action == pb.Error.ACTION_RETRY
        rows = self._window.first_rows(message)
        if not again:
            lost = StreamLost(f"the server refused a block: {refusal}", refusal.reason)
            return Decision(NO_ROWS, 0.0, dict.fromkeys(message.streams[rows].tolist(), lost), told=False, whole=True)
        self._window.refused(message, rows, np.zeros(len(rows), np.int64))
        return self._decide(message, dict.fromkeys(rows.tolist(), refusal), {})

    def of_rows(self, message: Message, rows: Ints, errors: Sequence[pb.Error]) -> Decision:
        """Decides about rows, one a stream.

        Raises:
            CallEnded: the streams are to be opened again.

        """
        self._window.refused(message, rows, np.array([error.next_step for error in errors], np.int64))
        refusals: dict[int, ClientError] = {}
        lost: dict[int, ClientError] = {}
        for row, error in zip(rows.tolist(), errors, strict=True):
            refusal = refusal_of(error)
            if refusal.action == pb.Error.ACTION_REOPEN:
                raise CallEnded(refusal)
            if isinstance(refusal, TimestepRefused):
                refusals[row] = refusal
            else:
                lost[int(message.streams[row])] = refusal
        return self._decide(message, refusals, lost)

    def of_repeats(self, message: Message, answers: Answers, errors: Mapping[int, pb.Error]) -> Decision:
        """Hands over old answers that were asked for again, and decides about those that were refused.

        Raises:
            StreamLost: an answer has another number than was asked for.
            CallEnded: the streams are to be opened again.

        """
        check_numbers(answers.steps[~answers.refused], message.steps[~answers.refused])
        outputs = message.buffer.model.outputs
        forgotten, refused = answers.forgotten.tolist(), answers.refused.tolist()
        for row, repeat in enumerate(message.repeats):
            if not refused[row] and not repeat.waiter.done():
                packed = [] if forgotten[row] else [column[row].tobytes() for column in answers.outputs]
                durable_step = int(answers.durable_steps[row])
                repeat.waiter.set_result(Prediction(repeat.step, outputs, packed, durable_step, duplicate=True))
        return self._decide_on_repeats(message.repeats, {row: refusal_of(error) for row, error in errors.items()})

    def _decide_on_repeats(self, repeats: Sequence[Repeat], refusals: Mapping[int, ClientError]) -> Decision:
        lost: dict[int, ClientError] = {}
        held: list[int] = []
        retry_after_s, told = 0.0, False
        for refusal in refusals.values():
            if refusal.action == pb.Error.ACTION_REOPEN:
                for again in refusals:
                    self._window.ask_again(repeats[again])
                raise CallEnded(refusal)
        for row, refusal in refusals.items():
            repeat = repeats[row]
            # Whoever asks for an old answer may have its values wrong; what this stream has sent stands.
            if not isinstance(refusal, TimestepRefused | ValuesDiffer):
                lost[repeat.stream] = refusal
            elif refusal.action == pb.Error.ACTION_RETRY and self._shortage.may_wait(
                repeat.stream, repeat.step, self._reconnect_s
            ):
                self._window.ask_again(repeat)
                held.append(repeat.stream)
                retry_after_s = max(retry_after_s, refusal.retry_after_s)
                continue
            if not repeat.waiter.done():
                wrong = isinstance(refusal, ValuesDiffer)
                repeat.waiter.set_exception(
                    InvalidTimestep(str(refusal), refusal.reason, field="values") if wrong else refusal
                )
                told = True
        self._window.hold(np.array(held, np.int64))
        return Decision(np.array(held, np.int64), retry_after_s, lost, told)

    def _decide(self, message: Message, refusals: Mapping[int, ClientError], lost: dict[int, ClientError]) -> Decision:
        streams, steps = message.streams, message.steps
        again = np.array(
            [
                row
                for row, refusal in refusals.items()
                if refusal.action == pb.Error.ACTION_RETRY
                and self._shortage.may_wait(int(streams[row]), int(steps[row]), self._reconnect_s)
            ],
            np.int64,
        )
        self._window.send_again(message, again)
        self._window.hold(streams[again])
        retry_after_s = max((refusals[row].retry_after_s for row in again.tolist()), default=0.0)
        given_up = np.setdiff1d(np.fromiter(refusals, np.int64, len(refusals)), again)
        delivered = self._window.delivered(message, given_up)
        for row in given_up[delivered].tolist():
            lost[int(streams[row])] = self._loss_by(int(steps[row]), refusals[row])
        self._tell(message, given_up[~delivered], refusals)
        return Decision(streams[again], retry_after_s, lost, bool(len(given_up[~delivered])))

    def _tell(self, message: Message, rows: Ints, refusals: Mapping[int, ClientError]) -> None:
        """Tells the callers of rows that they were refused. Those that had been applied all the same keep their numbers."""
        applied = self._window.applied(message, rows)
        for stream in message.streams[rows].tolist():
            self._shortage.over(stream)
        lost_answers = [
            AnswerLost(
                f"timestep {message.steps[row]} was applied, but could not be answered: {refusals[row]}",
                refusals[row].reason,
            )
            for row in rows[applied].tolist()
        ]
        self._window.pass_over(message, rows[applied], lost_answers)
        self._window.drop(message, rows[~applied], [refusals[row] for row in rows[~applied].tolist()])

    def _loss_by(self, step: int, refusal: ClientError) -> StreamLost:
        """What a stream is lost by when a timestep is refused whose answer was delivered."""
        if refusal.action == pb.Error.ACTION_RETRY:
            return ServerUnavailable(
                f"timestep {step} could not be sent again for {self._reconnect_s:g} s: {refusal}", refusal.reason
            )
        return Diverged(
            f"timestep {step} was answered before, and is refused now that the server has lost it: what was delivered since "
            f"timestep {step - 1} is not what the server goes on from; open the stream again to go on with the server's",
            "DIVERGED",
        )
