"""What becomes of timesteps of a block that were refused: sent again after a while, told to their callers, or the loss of their stream.

The ledger keeps the books of it; here is done what the server says of each, for its stream alone.
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
    ServerUnavailable,
    StreamLost,
    TimestepRefused,
    refusal_of,
)
from serving.client.ledger import Ledger
from serving.client.parcel import Parcel
from serving.client.patience import Shortage
from serving.core.spec import Ints


class Decision(NamedTuple):
    """What is left to be done about refused timesteps.

    `held` are streams that are to be released after a wait, for which the server has asked for `retry_after_s`; `lost` are
    those that can no longer be used; `told` says whether a caller was told.
    """

    held: Ints
    retry_after_s: float
    lost: dict[int, ClientError]
    told: bool


class Refusals:
    """Decides about refused timesteps of a ledger; those that may be sent again are, within `reconnect_s`."""

    def __init__(self, ledger: Ledger, shortage: Shortage, reconnect_s: float) -> None:
        self._ledger = ledger
        self._shortage = shortage
        self._reconnect_s = reconnect_s

    def of_all(self, parcel: Parcel, error: pb.Error) -> Decision:
        """Decides about a parcel of which no row was applied.

        Raises:
            CallEnded: the streams are to be opened again.
            StreamLost: it is nothing that trying again mends.

        """
        refusal = refusal_of(error)
        if refusal.action == pb.Error.ACTION_REOPEN:
            raise CallEnded(refusal)
        if not (isinstance(refusal, TimestepRefused) and refusal.action == pb.Error.ACTION_RETRY):
            raise StreamLost(f"the server refused a block: {refusal}", refusal.reason)
        rows = self._ledger.first_rows(parcel)
        self._ledger.refused(parcel, rows, np.zeros(len(rows), np.int64))
        return self._decide(parcel, dict.fromkeys(rows.tolist(), refusal), {})

    def of_rows(self, parcel: Parcel, rows: Ints, errors: Sequence[pb.Error]) -> Decision:
        """Decides about rows, one a stream.

        Raises:
            CallEnded: the streams are to be opened again.

        """
        self._ledger.refused(parcel, rows, np.array([error.next_step for error in errors], np.int64))
        refusals: dict[int, TimestepRefused] = {}
        lost: dict[int, ClientError] = {}
        for row, error in zip(rows.tolist(), errors, strict=True):
            refusal = refusal_of(error)
            if refusal.action == pb.Error.ACTION_REOPEN:
                raise CallEnded(refusal)
            if isinstance(refusal, TimestepRefused):
                refusals[row] = refusal
            else:
                lost[int(parcel.streams[row])] = refusal
        return self._decide(parcel, refusals, lost)

    def _decide(
        self, parcel: Parcel, refusals: Mapping[int, TimestepRefused], lost: dict[int, ClientError]
    ) -> Decision:
        rows = np.fromiter(refusals, np.int64, len(refusals))
        short = np.array([row for row in refusals if refusals[row].action == pb.Error.ACTION_RETRY], np.int64)
        again = short[self._shortage.may_wait(parcel.streams[short], parcel.steps[short], self._reconnect_s)]
        self._ledger.send_again(parcel, again)
        self._ledger.hold(parcel.streams[again])
        retry_after_s = max((refusals[row].retry_after_s for row in again.tolist()), default=0.0)
        given_up = np.setdiff1d(rows, again)
        delivered = self._ledger.delivered(parcel, given_up)
        for row in given_up[delivered].tolist():
            lost[int(parcel.streams[row])] = self._loss_by(int(parcel.steps[row]), refusals[row])
        self._tell(parcel, given_up[~delivered], refusals)
        return Decision(parcel.streams[again], retry_after_s, lost, bool(len(given_up[~delivered])))

    def _tell(self, parcel: Parcel, rows: Ints, refusals: Mapping[int, TimestepRefused]) -> None:
        """Tells the callers of rows that they were refused. Those that had been applied all the same keep their numbers."""
        applied = self._ledger.applied(parcel, rows)
        self._shortage.given_up(parcel.streams[rows])
        lost_answers = [
            AnswerLost(
                f"timestep {parcel.steps[row]} was applied, but could not be answered: {refusals[row]}",
                refusals[row].reason,
            )
            for row in rows[applied].tolist()
        ]
        self._ledger.pass_over(parcel, rows[applied], lost_answers)
        self._ledger.drop(parcel, rows[~applied], [refusals[row] for row in rows[~applied].tolist()])

    def _loss_by(self, step: int, refusal: TimestepRefused) -> StreamLost:
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
