"""The state of a client's streams, in columns: the number of each timestep, what to send next, and what an answer answers.

It decides and does nothing: no asyncio, no grpc, no clock. `tidegate.client.session` sends what `take` gives, and tells it what
came back. Streams go by their index.

Laws:
1. Timesteps of streams of one model stand in one buffer, in the order they came. Those of one stream are numbered in that order
   without a hole: when one is refused for good, those behind it move up.
2. A timestep leaves the buffer when it is durable and answered, when it was refused for good, or when its stream is lost. Nothing else
   removes one.
3. Messages are answered in the order they were sent. When a timestep is refused, the server refuses those of its stream behind it
   as a gap: those answers are ignored, and the timesteps are sent again. The other streams notice nothing.
4. A timestep is settled with its results once, in the order of its stream, and never again.
5. At most `window` timesteps of a stream are in flight, as many as the server remembers answers for: so an answer that got
   lost can always be had again. A message has half of them at most, so that one can be in flight while another is answered.
6. What is done for every timestep is done in columns; only what is rare (refusals, losses) goes row by row.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from struct import error as StructError  # noqa: N812 - it is a class
from typing import NamedTuple

import numpy as np

from tidegate.client.errors import ClientError, Diverged, StreamLost, diverged_error
from tidegate.client.message import Message, Repeat, SingleRowMessage, check_numbers
from tidegate.client.pending import SINGLE_TIMESTEPS, PendingTimesteps
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.results import Answers, Bools, Deliver, deliver
from tidegate.client.types import Prediction
from tidegate.core.spec import Floats, Ints

NO_ROWS: Ints = np.empty(0, np.int64)


class BlockOutcome(NamedTuple):
    """What follows from the answers to a message.

    `delivered` says whether a caller got something. `diverged` are streams whose replay was answered otherwise than before: they
    must be lost. `refused` are the rows that were refused, the first of each stream: about each must be decided.
    """

    delivered: bool
    diverged: dict[int, Diverged]
    refused: Ints


class Window(PendingTimesteps):
    """The books, beside what stands in the table of streams.

    Attributes:
        window: how many timesteps of a stream may be in flight.
        careful: one timestep is in flight at a time, so that the next break tells which one it is that breaks the server.

    """

    def __init__(self, buffer_max: int, deliver: Deliver = deliver) -> None:
        super().__init__(buffer_max, deliver)
        self.window = 1
        self.one_in_flight = False
        self._repeats: deque[Repeat] = deque()
        self._messages: deque[Message] = deque()
        self._messages_made = 0
        self._current: Message | None = None  # whose answer came last: it is looked at still
        self._released: deque[tuple[int, Ints]] = deque()  # free again once that message is answered

    def __repr__(self) -> str:
        rows = sum(len(buffer) for buffer in self._buffers)
        return f"<Window: {np.count_nonzero(self.usable)} streams, {rows} rows kept, {len(self._messages)} messages in flight>"

    def release_indices(self, streams: Ints) -> None:
        """Nobody uses these streams any more. Only when they are not usable."""
        assert not self.usable[streams].any()
        for stream in streams.tolist():
            self.errors.pop(stream, None)
        self.handles[streams] = 0
        if self._messages:
            self._released.append((self._messages_made, streams))
        else:
            self._free_indices += streams.tolist()

    def add_repeat(self, repeat: Repeat) -> None:
        """Asks again for the answer to a timestep that has been answered, unless its caller has gone or has an error already."""
        assert 0 < repeat.step <= self.answered[repeat.stream]
        if not repeat.waiter.done():
            self._repeats.append(repeat)

    def mark_opened(self, streams: Ints, next_steps: Ints, durable_steps: Ints, window: int) -> None:
        """Streams were opened, for the first time or again, and the server goes on at `next_steps`.

        When again, it was told `first_kept`, and has refused those of which it does not have what is before, or to which another
        client has written meanwhile.
        """
        self.window = max(1, window)
        new = ~self.ever_opened[streams]
        ever_opened, steps = streams[new], next_steps[new]
        self.start_steps[ever_opened] = self.next_steps[ever_opened] = steps
        self.answered[ever_opened] = steps - 1
        self.ever_opened[ever_opened] = True
        self.durable_steps[streams] = np.maximum(self.durable_steps[streams], durable_steps)
        self._cursor[streams] = np.minimum(next_steps, self.answered[streams] + 1)
        self._applied[streams] = next_steps - 1
        self.open[streams] = True
        self._held[streams] = False
        for buffer in self._buffers:
            buffer.unsent_from = 0  # all rows may be to send again

    def end_call(self) -> None:
        """The call has ended: nothing is in flight any more, and no stream is open."""
        for message in reversed(self._messages):
            # Not those that nobody waits for: their stream may be lost, and its index will be another's.
            self._repeats.extendleft(repeat for repeat in reversed(message.repeats) if not repeat.waiter.done())
        self._messages.clear()
        self._recycle_indices()
        self._in_flight[:] = 0
        self.open[:] = False

    # Sending -----------------------------------------------------------------------------------------------------------

    def idle(self, streams: Ints) -> Bools:
        """Of which of these streams everything has been sent and answered."""
        idle: Bools = (self._in_flight[streams] == 0) & (self._cursor[streams] >= self.next_steps[streams])
        if self._repeats:
            idle &= ~np.isin(streams, [repeat.stream for repeat in self._repeats])
        return idle

    def has_waiters(self, streams: Ints) -> Bools:
        """Of which of these streams a caller waits for an answer."""
        waited: Bools = self.next_steps[streams] > self.answered[streams] + 1
        return waited | np.isin(streams, [repeat.stream for repeat in self._pending_repeats()])

    def _pending_repeats(self) -> list[Repeat]:
        """Those that somebody waits for: to be sent, in flight, and of the message that is being looked at."""
        sent = self._messages if self._current is None else (self._current, *self._messages)
        repeats = (*self._repeats, *(repeat for message in sent for repeat in message.repeats))
        return [repeat for repeat in repeats if not repeat.waiter.done()]

    @property
    def in_flight(self) -> bool:
        """Whether a message is."""
        return bool(self._messages)

    @property
    def drained(self) -> bool:
        """Whether nothing is in flight, and nothing left to be sent."""
        return not (self._messages or self.has_unsent)

    @property
    def has_unsent(self) -> bool:
        """Whether something may be left to be sent."""
        return bool(self._repeats) or any(buffer.has_unsent for buffer in self._buffers)

    def next_message(self) -> Message | None:
        """What to send now; None when nothing may be sent."""
        if self.one_in_flight and self._messages:
            return None
        for buffer in self._buffers:
            if buffer.needs_compaction:
                self._compact(buffer)
            message = self._next_repeats(buffer) if self._repeats else None
            if message is None and buffer.has_unsent:
                message = self._next_single_row(buffer)
                if message is None:
                    self._flush_singles(buffer)
                    message = self._next_rows(buffer)
            if message is not None:
                # Buffers take turns, so that none waits for ever behind a busy one.
                self._buffers.append(self._buffers.pop(self._buffers.index(buffer)))
                return message
        return None

    def _next_rows(self, buffer: ResendBuffer) -> Message | None:
        begin, message = buffer.unsent_from, None
        streams, steps = buffer["stream"][begin:], buffer["step"][begin:]
        cursor = self._cursor[streams]
        share = np.minimum(self.window - self._in_flight[streams], (self.window + 1) // 2)
        ready = (steps >= cursor) & (steps < cursor + share) & self.open[streams] & ~self._held[streams]
        at = np.flatnonzero(ready)[: 1 if self.one_in_flight else buffer.rows_max] + begin
        if len(at):
            message = self._make_message(buffer, buffer["stream"][at], buffer["step"][at], buffer["values"][at], at)
            np.maximum.at(self._cursor, message.streams, message.steps + 1)
        # Rows at the begin that are left behind or were sent are not looked at again.
        if len(at) == len(steps):
            buffer.unsent_from = len(buffer)
        else:
            unsent = steps >= self._cursor[streams]
            buffer.unsent_from += int(unsent.argmax()) if unsent.any() else len(unsent)
        return message

    def _next_single_row(self, buffer: ResendBuffer) -> Message | None:
        """A single timestep that is alone, in a fifth of the time; None when it cannot be sent so."""
        stream = buffer.lone_stream
        if stream is None or not self._open_at[stream] or self._held_at[stream]:
            return None
        step = self._next_at[stream] - 1
        if self._cursor_at[stream] != step or self._in_flight_at[stream] >= self.window:
            return None
        ((_, values, _, _),) = singles = buffer.take_singles()
        waiter_id = self._register(singles)
        place = buffer.append(SINGLE_TIMESTEPS, waiter_id, stream, step, np.frombuffer(values, "<f4"))
        buffer.unsent_from = len(buffer)
        self._cursor_at[stream] = step + 1
        self._in_flight_at[stream] += 1
        self._messages_made += 1
        message = SingleRowMessage(self._messages_made, buffer, stream, step, values, place, waiter_id)
        self._messages.append(message)
        return message

    def _next_repeats(self, buffer: ResendBuffer) -> Message | None:
        """Old answers that may be asked for now.

        Only what the server is known to have applied: else it would be applied with the values that are asked with.
        """
        repeats = [
            repeat
            for repeat in self._repeats
            if repeat.buffer is buffer and self.open[repeat.stream] and not self._held[repeat.stream]
            and repeat.step <= self._applied[repeat.stream]
            and self._cursor[repeat.stream] > self.answered[repeat.stream]
        ][: buffer.rows_max]  # fmt: skip
        if not repeats:
            return None
        self._repeats = deque(repeat for repeat in self._repeats if repeat not in repeats)
        _, streams, steps, packed, _ = zip(*repeats, strict=True)
        values = np.frombuffer(b"".join(packed), "<f4").reshape(len(repeats), -1)
        message = self._make_message(buffer, np.array(streams), np.array(steps), values, np.full(len(repeats), -1))
        message.repeats = repeats
        return message

    def _make_message(self, buffer: ResendBuffer, streams: Ints, steps: Ints, values: Floats, at: Ints) -> Message:
        self._messages_made += 1
        message = Message(self._messages_made, buffer, streams, steps, values, at)
        self._messages.append(message)
        np.add.at(self._in_flight, streams, 1)
        return message

    # Answers -----------------------------------------------------------------------------------------------------------

    def match_answer(self, number: int) -> Message:
        """An answer to this message came; gives the message, for one of `predicted` and `refused`.

        Raises:
            StreamLost: it is another's turn.

        """
        if not self._messages:
            raise StreamLost(f"the server answered block {number}, and nothing was in flight", "WRONG_ORDER")
        message = self._current = self._messages.popleft()
        if message.number != number:
            raise StreamLost(f"the server answered block {number}, and {message.number} was due", "WRONG_ORDER")
        if isinstance(message, SingleRowMessage):
            self._in_flight_at[message.stream] -= 1
        else:
            np.subtract.at(self._in_flight, message.streams, 1)
        if self._released:
            self._recycle_indices()
        return message

    def settle_single_row(
        self, message: SingleRowMessage, step: bytes, outputs: Sequence[bytes], durable_step: int
    ) -> bool:
        """Settles the plain answer to a message of a single timestep, in a fifth of the time; False when it cannot be settled so."""
        stream, number = message.stream, message.step
        if message.ignored or int.from_bytes(step, "little") != number or number <= self._answered_at[stream]:
            return False
        try:
            message.buffer.set_checksum(message.place, outputs)
            self._durable_at[stream] = max(durable_step, self._durable_at[stream])
        except (ValueError, StructError):
            return False  # it does not fit; whoever looks at it next says how
        self._applied_at[stream] = max(number, self._applied_at[stream])
        self._answered_at[stream] = number
        _, _, waiter, _ = self._singles.pop(message.waiter_id)
        deliver([(waiter, Prediction(number, message.buffer.model.outputs, outputs, durable_step, duplicate=False))])
        return True

    def settle(self, message: Message, answers: Answers) -> BlockOutcome:
        """Settles what was answered. A replay must have the bits that were delivered, where the model promises that.

        Raises:
            StreamLost: an answer has another number than its timestep.

        """
        streams, steps = message.streams, message.steps
        plain = answers.plain and not message.ignored and answers.steps.tobytes() == steps.tobytes()
        if plain and (steps > self.answered[streams]).all():
            np.maximum.at(self._applied, streams, steps)
            np.maximum.at(self.answered, streams, steps)
            np.maximum.at(self.durable_steps, streams, answers.durable_steps)
            message.buffer["check"][message.at] = message.buffer.checksums(answers.outputs)
            message.buffer["checked"][message.at] = True
            self._settle_rows(message, message.at, np.arange(len(steps)), answers)
            return BlockOutcome(delivered=True, diverged={}, refused=NO_ROWS)
        return self._settle_partial(message, answers)

    def _settle_partial(self, message: Message, answers: Answers) -> BlockOutcome:
        # An answer that is ignored tells all the same what was applied: when one that had been applied is refused for want of
        # room, those behind it are not; they keep their numbers then, whatever becomes of them.
        good = ~answers.refused
        np.maximum.at(self._applied, message.streams[good], message.steps[good])
        accepted = message.at >= 0
        refused = first_of_each(message, np.flatnonzero(answers.refused & accepted))
        if len(refused):
            ends = np.full(self._count, len(accepted))
            ends[message.streams[refused]] = refused
            accepted &= np.arange(len(accepted)) < ends[message.streams]
        rows = np.flatnonzero(accepted)
        streams, steps, at = message.streams[rows], message.steps[rows], message.at[rows]
        check_numbers(answers.steps[rows], steps)
        np.maximum.at(self.durable_steps, streams, answers.durable_steps[rows])
        checks = message.buffer.checksums(answers.outputs)[rows]
        undelivered = steps > self.answered[streams]
        notified = ~answers.forgotten[rows]
        kept = message.buffer
        differ = ~undelivered & notified & kept["checked"][at] & (kept["check"][at] != checks)
        diverged: dict[int, Diverged] = {}
        if kept.model.batch_invariant and differ.any():
            for stream, step in zip(streams[differ][::-1].tolist(), steps[differ][::-1].tolist(), strict=True):
                diverged[stream] = diverged_error(
                    f"timestep {step}, sent again, was answered otherwise than before", self.durable_steps.item(stream)
                )
            undelivered &= ~np.isin(streams, list(diverged))
        rows, at = rows[undelivered], at[undelivered]
        kept["check"][at] = checks[undelivered]
        kept["checked"][at] = notified[undelivered]
        np.maximum.at(self.answered, streams[undelivered], steps[undelivered])
        self._settle_rows(message, at, rows, answers)
        return BlockOutcome(bool(len(rows)), diverged, refused)

    def mark_refused(self, message: Message, rows: Ints, next_steps: Ints) -> None:
        """These rows were refused, one a stream, and so is what is behind them; the server says what it expects, 0 if it does not.

        Then comes one of `resend`, `drop`, `skip_applied` and `lose` for each.
        """
        streams, steps = message.streams[rows], message.steps[rows]
        ahead = next_steps > steps
        self._applied[streams[ahead]] = np.maximum(self._applied[streams[ahead]], next_steps[ahead] - 1)

    def is_applied(self, message: Message, rows: Ints) -> Bools:
        """Which of these rows the server is known to have applied."""
        return message.steps[rows] <= self._applied[message.streams[rows]]

    def resend(self, message: Message, rows: Ints) -> None:
        """Sends refused rows, and what is behind them, once more."""
        self._ignore_answers(message.streams[rows])
        self._cursor[message.streams[rows]] = message.steps[rows]
        for buffer in self._buffers:
            buffer.unsent_from = 0  # all rows may be to send again

    def drop(self, message: Message, rows: Ints, errors: Sequence[ClientError]) -> None:
        """Lets refused rows go; those of their streams behind them move up, but for those of the same group: they fall too."""
        buffer, touched = message.buffer, message.streams[rows]
        self._flush_singles(buffer)
        self.resend(message, rows)
        for at, error in zip(message.at[rows].tolist(), errors, strict=True):
            for dropped in self._dropped_rows(buffer, at):
                self._fail(buffer, dropped, error)
                buffer["step"][dropped] = 0
        self._renumber(buffer, touched)

    def skip_applied(self, message: Message, rows: Ints, errors: Sequence[ClientError]) -> None:
        """Goes on behind refused rows that had been applied all the same: they keep their numbers."""
        self.resend(message, rows)
        streams, steps = message.streams[rows], message.steps[rows]
        for at, step, error in zip(message.at[rows].tolist(), steps.tolist(), errors, strict=True):
            self._fail(message.buffer, at, error, step)
        self.answered[streams] = steps
        self._cursor[streams] = steps + 1

    def mark_lost(self, errors: Mapping[int, ClientError], *, shared_error: bool = False) -> set[int]:
        """These streams can no longer be used, or never could; gives those of which a caller was waiting, who is told.

        `shared_error` says that they end together: a caller who waits for many of them gets the error itself.
        """
        notified: set[int] = set()
        streams = np.fromiter(errors, np.int64, len(errors))
        self.errors.update(errors)
        for buffer in self._buffers:
            self._flush_singles(buffer)
            theirs = np.isin(buffer["stream"], streams) & (buffer["step"] > self.answered[buffer["stream"]])
            for at in np.flatnonzero(theirs).tolist():
                stream = int(buffer["stream"][at])
                if self._fail(buffer, at, errors[stream], shared_error=shared_error):
                    notified.add(stream)
        for repeat in self._pending_repeats():
            if repeat.stream in errors and not repeat.waiter.done():
                notified.add(repeat.stream)
                repeat.waiter.set_exception(errors[repeat.stream])
        self._remove(streams)
        self.usable_count -= int(np.count_nonzero(self.usable[streams]))
        self.usable[streams] = self.open[streams] = False
        return notified

    def mark_closed(self, streams: Sequence[int]) -> None:
        """These streams are closed, and everything of them is stored, or forgotten as was asked."""
        error = StreamLost("the stream is closed; open it again to go on")
        self.mark_lost(dict.fromkeys(streams, error))

    def reset(self, streams: Sequence[int] | Ints) -> None:
        """What was of these streams is nobody's business any more: their next open is like the first."""
        self._remove(streams)
        self.ever_opened[streams] = False
        self.durable_steps[streams] = 0

    def _remove(self, streams: Sequence[int] | Ints) -> None:
        """Takes all that these streams have out of the buffers."""
        if not len(streams):
            return
        self._ignore_answers(streams)
        for buffer in self._buffers:
            self._flush_singles(buffer)
            buffer["step"][np.isin(buffer["stream"], streams)] = 0
        if self._repeats:
            self._repeats = deque(repeat for repeat in self._repeats if repeat.stream not in streams)
        self.next_steps[streams] = self._cursor[streams] = self.answered[streams] + 1

    def _ignore_answers(self, streams: Sequence[int] | Ints) -> None:
        """Pays no heed to what is answered to timesteps of these streams that are in flight."""
        if not self._messages:
            return
        hit = np.zeros(self._count, np.bool_)
        hit[streams] = True
        for message in self._messages:
            theirs = hit[message.streams]
            if theirs.any():
                message.ignored = True
                message.at[theirs] = -1

    def _compact(self, buffer: ResendBuffer) -> None:
        """Sweeps out the rows that have left."""
        moved = buffer.compact(buffer["step"] >= self.first_kept(buffer["stream"]))
        for message in self._messages if self._current is None else (self._current, *self._messages):
            if message.buffer is buffer:
                accepted = message.at >= 0
                message.at[accepted] = moved[message.at[accepted]]
                if isinstance(message, SingleRowMessage):
                    message.place = int(message.at[0])

    def _recycle_indices(self) -> None:
        """Gives indices back that no message in flight speaks of any more."""
        while self._released and (not self._messages or self._messages[0].number > self._released[0][0]):
            self._free_indices += self._released.popleft()[1].tolist()


def first_of_each(message: Message, rows: Ints) -> Ints:
    """The first of these rows of each stream, rising."""
    _, first = np.unique(message.streams[rows], return_index=True)
    first.sort()
    return rows[first]
