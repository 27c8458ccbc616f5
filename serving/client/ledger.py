"""A client's books on many streams, in columns: which number, what to send next, and whose an answer is.

What `serving.client.journal` is to one stream, this is to the streams of a block. It decides and does nothing: no asyncio, no
grpc, no clock. `serving.client.block` sends what `take` gives, and tells it what came back. Streams go by their index.

Laws:
1. Timesteps of all streams stand in one roll, in the order they came. Those of one stream are numbered in that order
   without a hole: when one is refused for good, those behind it move up.
2. A timestep leaves the roll when it is durable and answered, when it was refused for good, or when its stream is lost. Nothing else
   removes one.
3. Parcels are answered in the order they were sent. When a timestep is refused, the server refuses those of its stream behind it
   as a gap: those answers are ignored, and the timesteps are sent again. The other streams notice nothing.
4. A timestep is settled with the order that it came in once, in the order of its stream, and never again.
5. At most `window` timesteps of a stream are under way, as many as the server remembers answers for: so an answer that got
   lost can always be had again. A parcel has half of them at most, so that one can be under way while another is answered.
6. What is done for every timestep is done in columns; only what is rare (refusals, losses) goes row by row.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from serving.client.checksum import checksums
from serving.client.errors import AnswerLost, ClientError, Diverged, StreamLost
from serving.client.parcel import Answers, Bools, Order, Parcel
from serving.client.roll import Roll
from serving.core.spec import Floats, Ints, Output

# No timestep has this number.
NO_STEP = np.iinfo(np.int64).max


class Heard(NamedTuple):
    """What follows from the answers to a parcel.

    `fresh` says whether a caller got something. `diverged` are streams whose replay was answered otherwise than before: they
    must be lost. `refused` are the parcel's rows that were refused, the first of each stream: about each must be decided.
    """

    fresh: bool
    diverged: dict[int, Diverged]
    refused: Ints


class Ledger:
    """The roll of many streams' timesteps.

    Attributes:
        answered: of each stream, number of the last timestep whose answer was handed over.
        durable_steps: the largest that the server has told of each.
        next_steps: the number that the next timestep of each will have.
        window: how many timesteps of a stream may be under way.
        usable: whether a stream can be used: it is neither refused, lost nor closed.
        begun: whether it was ever open.
        why: the error of each stream that is refused or lost.
        done: orders whose rows are all settled; whoever reads them takes them out.

    """

    def __init__(self, streams: int, buffer_max: int) -> None:
        self.streams = streams
        self.answered: Ints = np.zeros(streams, np.int64)
        self.durable_steps: Ints = np.zeros(streams, np.int64)
        self.next_steps: Ints = np.ones(streams, np.int64)
        self.window = 1
        self.usable: Bools = np.ones(streams, np.bool_)
        self.begun: Bools = np.zeros(streams, np.bool_)
        self.why: dict[int, ClientError] = {}
        self.done: list[Order] = []
        self._buffer_max = buffer_max
        self._first: Ints = np.ones(streams, np.int64)  # number of the first timestep that came from here
        self._cursor: Ints = np.ones(streams, np.int64)  # number of the next timestep to send
        self._applied: Ints = np.zeros(streams, np.int64)  # the last that the server is known to have applied
        self._ahead: Ints = np.zeros(streams, np.int64)  # how many are under way
        self._open: Bools = np.zeros(streams, np.bool_)  # whether timesteps may be sent on this call
        self._held: Bools = np.zeros(streams, np.bool_)  # whether it shall wait a little
        self._orders: dict[int, Order] = {}
        self._orders_made = 0
        self._parcels: deque[Parcel] = deque()
        self._parcels_made = 0
        self._roll = Roll()
        self._from = 0  # nothing before this place in the roll is left to be sent

    def __repr__(self) -> str:
        return (
            f"<Ledger: {self.streams} streams, {np.count_nonzero(self.usable)} usable, {len(self._roll)} rows on the roll, "
            f"{len(self._orders)} orders, {len(self._parcels)} parcels under way>"
        )

    # What callers want -------------------------------------------------------------------------------------------------

    def order(self, rows: int, outputs: Sequence[Output], ticket: Any) -> Order:
        """Begins an order of so many rows, which are to be added next."""
        self._orders_made += 1
        order = Order(self._orders_made, rows, outputs, ticket)
        self._orders[order.number] = order
        self._finish(order)
        return order

    def room(self, rows: Ints) -> int:
        """For how many of these rows, streams by their indices, there is room, from the first on."""
        room = self._buffer_max - (self.next_steps[rows] - self.first_steps[rows])
        full = (_rank(rows) >= room) & self.usable[rows]
        return int(full.argmax()) if full.any() else len(rows)

    def add(self, order: Order, place: int, rows: Ints, values: Floats) -> None:
        """Puts rows of an order, from `place` on, at the end of the roll.

        Orders are added one after the other. Rows of streams that cannot be used are settled with their error at once.
        """
        places = np.arange(place, place + len(rows))
        if not (usable := self.usable[rows]).all():
            for refused in np.flatnonzero(~usable).tolist():
                self._fail(order, int(places[refused]), int(rows[refused]), self.why[int(rows[refused])])
            places, rows, values = places[usable], rows[usable], values[usable]
        if self._roll.long:
            self._sweep()
        self._roll.append(order.number, rows, self.next_steps[rows] + _rank(rows), places, values)
        np.add.at(self.next_steps, rows, 1)

    def leave(self, order: Order, place: int) -> None:
        """The caller has gone before the rows from `place` on were added: they never will be."""
        if order.number in self._orders:
            order.left -= len(order.steps) - place
            self._finish(order)

    # Opening -----------------------------------------------------------------------------------------------------------

    @property
    def first_steps(self) -> Ints:
        """Of each stream, number of the first timestep that is kept."""
        first: Ints = np.maximum(self._first, np.minimum(self.answered, self.durable_steps) + 1)
        return first

    def opened(self, streams: Ints, next_steps: Ints, durable_steps: Ints, window: int) -> None:
        """Streams were opened, for the first time or again, and the server goes on at `next_steps`.

        When again, it was told `first_steps`, and has refused those of which it does not have what is before, or to which another
        client has written meanwhile.
        """
        self.window = max(1, window)
        new = ~self.begun[streams]
        begun, steps = streams[new], next_steps[new]
        self._first[begun] = self.next_steps[begun] = steps
        self.answered[begun] = steps - 1
        self.begun[begun] = True
        self.durable_steps[streams] = np.maximum(self.durable_steps[streams], durable_steps)
        self._cursor[streams] = np.minimum(next_steps, self.answered[streams] + 1)
        self._applied[streams] = next_steps - 1
        self._open[streams] = True
        self._held[streams] = False
        self._from = 0

    def cut(self) -> None:
        """The call has ended: nothing is under way any more, and no stream is open."""
        self._parcels.clear()
        self._ahead[:] = 0
        self._open[:] = False

    # Sending -----------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> Ints:
        """The streams that are open on this call."""
        return np.flatnonzero(self._open & self.usable)

    @property
    def idle(self) -> bool:
        """Whether everything has been sent and answered."""
        return not (self._parcels or np.any(self.usable & (self._cursor < self.next_steps)))

    @property
    def waiting(self) -> bool:
        """Whether a caller waits for an answer."""
        return bool(self._orders)

    @property
    def unsent(self) -> bool:
        """Whether something may be left to be sent."""
        return self._from < len(self._roll)

    def take(self, rows_max: int) -> Parcel | None:
        """What to send now, so many rows at most; None when nothing may be sent."""
        if not self.unsent:
            return None
        streams, steps = self._roll["stream"][self._from :], self._roll["step"][self._from :]
        share = np.minimum(self.window - self._ahead, (self.window + 1) // 2)
        limits = np.where(self._open & ~self._held, self._cursor + share, 0)
        at = np.flatnonzero((steps >= self._cursor[streams]) & (steps < limits[streams]))[:rows_max]
        if not len(at):
            return None
        self._parcels_made += 1
        values = self._roll["values"][self._from :]
        parcel = Parcel(self._parcels_made, streams[at], steps[at], values[at], at + self._from)
        self._parcels.append(parcel)
        np.maximum.at(self._cursor, parcel.streams, parcel.steps + 1)
        np.add.at(self._ahead, parcel.streams, 1)
        unsent = steps >= self._cursor[streams]
        self._from += int(unsent.argmax()) if unsent.any() else len(unsent)
        return parcel

    def hold(self, streams: Ints) -> None:
        """Sends nothing of these streams until they are released, or opened again."""
        self._held[streams] = True

    def release(self, streams: Ints) -> None:
        """Goes on with these streams."""
        self._held[streams] = False

    # Answers -----------------------------------------------------------------------------------------------------------

    def due(self, number: int) -> Parcel:
        """An answer to this parcel came; gives the parcel.

        Then comes one of `predicted` and `refused`.

        Raises:
            StreamLost: it is another's turn.

        """
        if not self._parcels:
            raise StreamLost(f"the server answered block {number}, and nothing was under way", "WRONG_ORDER")
        parcel = self._parcels.popleft()
        if parcel.number != number:
            raise StreamLost(f"the server answered block {number}, and {parcel.number} was due", "WRONG_ORDER")
        np.subtract.at(self._ahead, parcel.streams, 1)
        return parcel

    def predicted(self, parcel: Parcel, answers: Answers, *, comparable: bool) -> Heard:
        """Settles what was answered.

        Args:
            parcel: what is answered.
            answers: the answers.
            comparable: whether a replay must have the bits that were delivered.

        Raises:
            StreamLost: an answer has another number than its timestep.

        """
        # An answer that is ignored tells all the same what was applied: when one that had been applied is refused for want of
        # room, those behind it are not; they keep their numbers then, whatever becomes of them.
        np.maximum.at(self._applied, parcel.streams[~answers.refused], parcel.steps[~answers.refused])
        heard = parcel.at >= 0
        refused = self._first_of_each(parcel, np.flatnonzero(answers.refused & heard))
        if len(refused):
            ends = np.full(self.streams, len(heard))
            ends[parcel.streams[refused]] = refused
            heard &= np.arange(len(heard)) < ends[parcel.streams]
        rows = np.flatnonzero(heard)
        streams, steps, at = parcel.streams[rows], parcel.steps[rows], parcel.at[rows]
        if len(wrong := np.flatnonzero(answers.steps[rows] != steps)):
            got, due = answers.steps[rows][wrong[0]], steps[wrong[0]]
            raise StreamLost(f"the server answered timestep {got}, and {due} was due", "WRONG_ORDER")
        np.maximum.at(self.durable_steps, streams, answers.durable_steps[rows])
        checks = checksums(answers.outputs, rows)
        fresh = steps > self.answered[streams]
        told = ~answers.forgotten[rows]
        kept = self._roll
        differ = ~fresh & told & kept["checked"][at] & (kept["check"][at] != checks)
        diverged: dict[int, Diverged] = {}
        if comparable and differ.any():
            diverged = {
                int(stream): self._diverged(int(stream), int(step))
                for stream, step in zip(streams[differ][::-1], steps[differ][::-1], strict=True)
            }
            fresh &= ~np.isin(streams, list(diverged))
        rows, at = rows[fresh], at[fresh]
        kept["check"][at] = checks[fresh]
        kept["checked"][at] = told[fresh]
        np.maximum.at(self.answered, streams[fresh], steps[fresh])
        for order, part in self._orders_of(at):
            self._settle(order, kept["place"][at[part]], rows[part], answers)
        return Heard(bool(len(rows)), diverged, refused)

    def _diverged(self, stream: int, step: int) -> Diverged:
        return Diverged(
            f"timestep {step}, sent again, was answered otherwise than before: what was delivered since timestep "
            f"{self.durable_steps[stream]} is not what the server goes on from; open the stream again to go on with the "
            "server's",
            "DIVERGED",
        )

    def first_rows(self, parcel: Parcel) -> Ints:
        """The first row of each stream of a parcel that was refused as a whole."""
        return self._first_of_each(parcel, np.flatnonzero(parcel.at >= 0))

    def refused(self, parcel: Parcel, rows: Ints, next_steps: Ints) -> None:
        """These rows were refused, one a stream, and so is what is behind them; the server says what it expects, 0 if it does not.

        Then comes one of `send_again`, `drop`, `pass_over` and `lose` for each.
        """
        streams, steps = parcel.streams[rows], parcel.steps[rows]
        ahead = next_steps > steps
        self._applied[streams[ahead]] = np.maximum(self._applied[streams[ahead]], next_steps[ahead] - 1)

    def applied(self, parcel: Parcel, rows: Ints) -> Bools:
        """Which of these rows the server is known to have applied."""
        return parcel.steps[rows] <= self._applied[parcel.streams[rows]]

    def delivered(self, parcel: Parcel, rows: Ints) -> Bools:
        """Which of these rows were answered before: they can be neither dropped nor passed over."""
        return parcel.steps[rows] <= self.answered[parcel.streams[rows]]

    def send_again(self, parcel: Parcel, rows: Ints) -> None:
        """Sends refused rows, and what is behind them, once more."""
        if not len(rows):
            return
        streams, steps = parcel.streams[rows], parcel.steps[rows]
        self._ignore(streams)
        self._cursor[streams] = steps
        self._from = min(self._from, int(parcel.at[rows].min()))

    def drop(self, parcel: Parcel, rows: Ints, errors: Sequence[ClientError]) -> None:
        """Lets refused rows go; those of their streams behind them move up."""
        if not len(rows):
            return
        self.send_again(parcel, rows)
        streams, at = parcel.streams[rows], parcel.at[rows]
        for place, error in zip(at.tolist(), errors, strict=True):
            self._fail_at(place, error)
        gone = np.full(self.streams, NO_STEP)
        gone[streams] = parcel.steps[rows]
        kept = self._roll
        steps = kept["step"]
        steps -= steps > gone[kept["stream"]]
        kept["step"][at] = 0
        self.next_steps[streams] -= 1

    def pass_over(self, parcel: Parcel, rows: Ints, errors: Sequence[AnswerLost]) -> None:
        """Goes on behind refused rows that had been applied all the same: they keep their numbers."""
        if not len(rows):
            return
        self.send_again(parcel, rows)
        streams, steps, at = parcel.streams[rows], parcel.steps[rows], parcel.at[rows]
        for place, error in zip(at.tolist(), errors, strict=True):
            self._fail_at(place, error, applied=True)
        self.answered[streams] = steps
        self._cursor[streams] = steps + 1

    def durable(self, streams: Ints, durable_steps: Ints) -> None:
        """The server has told what is durable."""
        np.maximum.at(self.durable_steps, streams, durable_steps)

    # The end -----------------------------------------------------------------------------------------------------------

    def lose(self, errors: Mapping[int, ClientError]) -> None:
        """These streams can no longer be used, or never could; whoever waits for a timestep of theirs is told."""
        if not errors:
            return
        streams = np.fromiter(errors, np.int64, len(errors))
        self.why.update(errors)
        kept = self._roll
        theirs = np.isin(kept["stream"], streams) & (kept["step"] > self.answered[kept["stream"]])
        for place in np.flatnonzero(theirs).tolist():
            self._fail_at(place, errors[int(kept["stream"][place])])
        self._remove(streams)
        self.usable[streams] = False

    def closed(self, streams: Ints) -> None:
        """These streams are closed, and everything of them is stored, or forgotten as was asked."""
        self._remove(streams)
        self.usable[streams] = False
        error = StreamLost("the stream is closed; open it again to go on")
        self.why.update(dict.fromkeys(streams.tolist(), error))

    def begin_again(self, streams: Ints) -> None:
        """What was of these streams is nobody's business any more: their next open is like the first."""
        self._remove(streams)
        self.begun[streams] = False
        self.durable_steps[streams] = 0

    def clear(self) -> list[Order]:
        """Drops everything; gives the orders whose callers wait."""
        waiting = list(self._orders.values())
        self._orders.clear()
        self._parcels.clear()
        self._roll.clear()
        self._from = 0
        return waiting

    def _remove(self, streams: Ints) -> None:
        """Takes all that these streams have out of the roll."""
        self._ignore(streams)
        kept = self._roll
        kept["step"][np.isin(kept["stream"], streams)] = 0
        self.next_steps[streams] = self._cursor[streams] = self.answered[streams] + 1

    # Settling ----------------------------------------------------------------------------------------------------------

    def _settle(self, order: Order, places: Ints, rows: Ints, answers: Answers) -> None:
        """Gives an order the answers of these rows."""
        order.steps[places] = answers.steps[rows]
        order.durable_steps[places] = answers.durable_steps[rows]
        order.duplicates[places] = answers.duplicates[rows] | answers.forgotten[rows]
        for output, got in zip(order.outputs, answers.outputs, strict=True):
            output[places] = got[rows]
        for row in np.flatnonzero(answers.forgotten[rows]).tolist():
            order.errors[int(places[row])] = AnswerLost(
                f"timestep {order.steps[places[row]]} was applied, but the server no longer remembers the prediction",
                "ANSWER_LOST",
            )
        order.left -= len(rows)
        self._finish(order)

    def _fail_at(self, at: int, error: ClientError, *, applied: bool = False) -> None:
        """Settles the row at a place of the roll with an error."""
        order, place = self._orders[int(self._roll["order"][at])], int(self._roll["place"][at])
        if applied:
            order.steps[place] = self._roll["step"][at]
        self._fail(order, place, int(self._roll["stream"][at]), error)

    def _fail(self, order: Order, place: int, stream: int, error: ClientError) -> None:
        order.errors[place] = error
        order.durable_steps[place] = self.durable_steps[stream]
        order.left -= 1
        self._finish(order)

    def _finish(self, order: Order) -> None:
        if not order.left:
            del self._orders[order.number]
            self.done.append(order)

    def _orders_of(self, at: Ints) -> Iterator[tuple[Order, slice]]:
        """The orders that rows, by their places in the roll, belong to, and which of the rows do."""
        if not len(at):
            return
        numbers = self._roll["order"][at]  # rising: so they came, and so they are sent
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(at)]
        for begin, end in pairwise(cuts):
            yield self._orders[int(numbers[begin])], slice(begin, end)

    def _first_of_each(self, parcel: Parcel, rows: Ints) -> Ints:
        """The first of these rows of each stream, rising."""
        _, first = np.unique(parcel.streams[rows], return_index=True)
        first.sort()
        return rows[first]

    def _ignore(self, streams: Ints) -> None:
        """Pays no heed to what is answered to timesteps of these streams that are under way."""
        hit = np.zeros(self.streams, np.bool_)
        hit[streams] = True
        for parcel in self._parcels:
            parcel.at[hit[parcel.streams]] = -1

    def _sweep(self) -> None:
        """Sweeps out the rows that have left."""
        stays = self._roll["step"] >= self.first_steps[self._roll["stream"]]
        self._from = int(np.count_nonzero(stays[: self._from]))
        moved = self._roll.sweep(stays)
        for parcel in self._parcels:
            parcel.at = np.where(parcel.at >= 0, moved[parcel.at], -1)


def _rank(rows: Ints) -> Ints:
    """How often each row's stream stands before it."""
    if len(rows) < 2 or np.all(rows[1:] > rows[:-1]):
        return np.zeros(len(rows), np.int64)
    sorted_at = np.argsort(rows, kind="stable")
    in_turn = rows[sorted_at]
    starts = np.flatnonzero(np.r_[True, in_turn[1:] != in_turn[:-1]])
    rank = np.empty(len(rows), np.int64)
    rank[sorted_at] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    return rank
