"""The sliding window of a client: the number of each timestep, what to send next, and which timestep an answer belongs to.

It only keeps state: no asyncio, no grpc, no clock. `tidegate.client.session` sends the messages of `next_message`, and passes
the answers on to `settle`, `resend`, `drop` and so on. Streams are identified by their index.

Laws:
1. The timesteps of all streams of one model are in one resend buffer, in order of arrival. Those of one stream have consecutive
   numbers: when one is refused for good, the later ones move up.
2. A timestep leaves the buffer when it is answered and durable, when it is refused for good, or when its stream is lost, and
   only then.
3. Messages are answered in the order in which they are sent. When a timestep is refused, the server also refuses the later ones of
   its stream as a gap. Those answers are ignored, and the timesteps are sent again. Other streams are not affected.
4. A timestep is settled exactly once, in the order of its stream.
5. At most `window` timesteps of a stream are in flight: as many as the server remembers answers for, so a lost answer can be
   requested again. A message has half of them at most, so that one is in flight while another is answered.
6. The frequent work is done in columns. Only rare cases (refusals, losses) are handled row by row.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tidegate.client.errors import ClientError, Diverged, StreamLost, diverged_error
from tidegate.client.message import Message, Repeat, SingleRowMessage, check_numbers
from tidegate.client.pending import SINGLE_TIMESTEPS, PendingTimesteps
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.results import Answers, Bools, Deliver, deliver
from tidegate.client.types import Prediction
from tidegate.core.spec import STEP_MAX, Array, Ints

NO_ROWS: Ints = np.empty(0, np.int64)


class BlockOutcome(NamedTuple):
    """The consequences of the answers to a message.

    `delivered` says whether a caller got an answer. `diverged` are streams whose replay was answered differently, so they are lost.
    `refused` has the first refused row of each stream; `tidegate.client.refusals` decides about them.
    """

    delivered: bool
    diverged: dict[int, Diverged]
    refused: Ints


class Window(PendingTimesteps):
    """The messages in flight, and the rules that say what is sent next.

    Attributes:
        window: how many timesteps of a stream may be in flight.
        one_in_flight: send one timestep at a time, to find the one that breaks the server; see `PoisonDetector`.

    """

    def __init__(self, buffer_max: int, deliver: Deliver = deliver) -> None:
        super().__init__(buffer_max, deliver)
        self.window = 1
        self.one_in_flight = False
        self._repeats: deque[Repeat] = deque()
        self._messages: deque[Message] = deque()
        self._messages_made = 0
        self._current: Message | None = None  # the message whose answer is being handled
        self._released: deque[tuple[int, Ints]] = deque()  # indices, free once the message of that number is answered

    def __repr__(self) -> str:
        rows = sum(len(buffer) for buffer in self._buffers)
        return f"<Window: {np.count_nonzero(self.usable)} streams, {rows} rows kept, {len(self._messages)} messages in flight>"

    def release_indices(self, streams: Ints) -> None:
        """Releases the indices of streams that have left. They must not be usable."""
        assert not self.usable[streams].any()
        for stream in streams.tolist():
            self.errors.pop(stream, None)
        self.handles[streams] = 0
        if self._messages:
            self._released.append((self._messages_made, streams))
        else:
            self._free_indices += streams.tolist()

    def add_repeat(self, repeat: Repeat) -> None:
        """Requests the answer to an answered timestep again, unless the caller was cancelled or has an error."""
        assert 0 < repeat.step <= self.answered[repeat.stream]
        if not repeat.waiter.done():
            self._repeats.append(repeat)

    def mark_opened(self, streams: Ints, next_steps: Ints, durable_steps: Ints, window: int) -> None:
        """Marks streams as open, for the first time or again. The server continues at `next_steps`.

        A stream that is opened again was sent with `first_kept`. The server has refused it when it lacks earlier timesteps, or
        when another client has written to it.
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
            buffer.unsent_from = 0  # any row may have to be sent again

    def end_call(self) -> None:
        """Marks all messages as not in flight, and all streams as not open."""
        for message in reversed(self._messages):
            # A repeat without a caller is dropped: its stream may be lost, and the index used by another one.
            self._repeats.extendleft(repeat for repeat in reversed(message.repeats) if not repeat.waiter.done())
        self._messages.clear()
        self._recycle_indices()
        self._in_flight[:] = 0
        self.open[:] = False

    # Sending -----------------------------------------------------------------------------------------------------------

    def idle(self, streams: Ints) -> Bools:
        """Whether all timesteps of each stream have been sent and answered."""
        idle: Bools = (self._in_flight[streams] == 0) & (self._cursor[streams] >= self.next_steps[streams])
        if self._repeats:
            idle &= ~np.isin(streams, [repeat.stream for repeat in self._repeats])
        return idle

    def has_waiters(self, streams: Ints) -> Bools:
        """Whether a caller waits for an answer of each stream."""
        waited: Bools = self.next_steps[streams] > self.answered[streams] + 1
        return waited | np.isin(streams, [repeat.stream for repeat in self._pending_repeats()])

    def _pending_repeats(self) -> list[Repeat]:
        """The repeats with a caller: unsent, in flight, and those of the message being handled."""
        sent = self._messages if self._current is None else (self._current, *self._messages)
        repeats = (*self._repeats, *(repeat for message in sent for repeat in message.repeats))
        return [repeat for repeat in repeats if not repeat.waiter.done()]

    @property
    def in_flight(self) -> bool:
        """Whether any message is in flight."""
        return bool(self._messages)

    @property
    def drained(self) -> bool:
        """Whether nothing is in flight and nothing is left to send."""
        return not (self._messages or self.has_unsent)

    @property
    def has_unsent(self) -> bool:
        """Whether timesteps or repeats may be left to send."""
        return bool(self._repeats) or any([buffer.has_unsent for buffer in self._buffers])  # noqa: C419  a generator is slower

    def next_message(self) -> Message | None:
        """The next message to send, None when nothing may be sent."""
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
                # Round robin, so that no buffer starves behind a busy one.
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
        # Skip the leading rows that are removed or sent the next time.
        if len(at) == len(steps):
            buffer.unsent_from = len(buffer)
        else:
            unsent = steps >= self._cursor[streams]
            buffer.unsent_from += int(unsent.argmax()) if unsent.any() else len(unsent)
        return message

    def _next_single_row(self, buffer: ResendBuffer) -> Message | None:
        """The fast path for one queued timestep: a fifth of the time of `_next_rows`. None when it cannot be used."""
        stream = buffer.lone_stream
        if stream is None or not self._open_at[stream] or self._held_at[stream]:
            return None
        step = self._next_at[stream] - 1
        if self._cursor_at[stream] != step or self._in_flight_at[stream] >= self.window:
            return None
        ((_, values, _, _),) = singles = buffer.take_singles()
        waiter_id = self._register(singles)
        place = buffer.append(SINGLE_TIMESTEPS, waiter_id, stream, step, np.frombuffer(values, buffer.layout.row_dtype))
        buffer.unsent_from = len(buffer)
        self._cursor_at[stream] = step + 1
        self._in_flight_at[stream] += 1
        self._messages_made += 1
        message = SingleRowMessage(self._messages_made, buffer, stream, step, values, place, waiter_id)
        self._messages.append(message)
        return message

    def _next_repeats(self, buffer: ResendBuffer) -> Message | None:
        """The repeats that may be sent now.

        Only for timesteps that the server is known to have applied: any other would be applied with the values of the repeat.
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
        values = np.frombuffer(b"".join(packed), buffer.layout.row_dtype).reshape(len(repeats), -1)
        message = self._make_message(buffer, np.array(streams), np.array(steps), values, np.full(len(repeats), -1))
        message.repeats = repeats
        return message

    def _make_message(self, buffer: ResendBuffer, streams: Ints, steps: Ints, values: Array, at: Ints) -> Message:
        self._messages_made += 1
        message = Message(self._messages_made, buffer, streams, steps, values, at)
        self._messages.append(message)
        np.add.at(self._in_flight, streams, 1)
        return message

    # Answers -----------------------------------------------------------------------------------------------------------

    def match_answer(self, number: int) -> Message:
        """Returns the message that an answer of this number belongs to.

        Raises:
            StreamLost: it is not the next message to be answered.

        """
        if not self._messages:
            raise StreamLost(f"the server answered block {number}, but nothing was in flight", "WRONG_ORDER")
        message = self._current = self._messages.popleft()
        if message.number != number:
            raise StreamLost(f"the server answered block {number}, expected {message.number}", "WRONG_ORDER")
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
        """The fast path of `settle` for one timestep: a fifth of the time. False when the answer needs `settle`."""
        stream, number = message.stream, message.step
        if message.ignored or int.from_bytes(step, "little") != number or number <= self._answered_at[stream]:
            return False
        if durable_step > STEP_MAX or not message.buffer.set_answer(message.place, outputs):
            return False  # the answer is malformed; the slow path reports how
        self._durable_at[stream] = max(durable_step, self._durable_at[stream])
        self._applied_at[stream] = max(number, self._applied_at[stream])
        self._answered_at[stream] = number
        _, _, waiter, _ = self._singles.pop(message.waiter_id)
        deliver([(waiter, Prediction(number, message.buffer.model.outputs, outputs, durable_step, duplicate=False))])
        return True

    def settle(self, message: Message, answers: Answers) -> BlockOutcome:
        """Delivers answers. Where the model promises equal bits, a replayed answer must equal the delivered one.

        Raises:
            StreamLost: an answer does not have the number of its timestep.

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
        # An ignored answer still shows what was applied. After a refused repeat of an applied timestep, the later timesteps are not
        # refused as a gap; they must keep their numbers.
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
                    f"timestep {step}, sent again, got a different answer than before", self.durable_steps.item(stream)
                )
            undelivered &= ~np.isin(streams, list(diverged))
        rows, at = rows[undelivered], at[undelivered]
        kept["check"][at] = checks[undelivered]
        kept["checked"][at] = notified[undelivered]
        np.maximum.at(self.answered, streams[undelivered], steps[undelivered])
        self._settle_rows(message, at, rows, answers)
        return BlockOutcome(bool(len(rows)), diverged, refused)

    def mark_refused(self, message: Message, rows: Ints, next_steps: Ints) -> None:
        """Notes refused rows, the first of each stream, and the step that the server expects; 0 when it does not say.

        For each row, one of `resend`, `drop`, `skip_applied` and `mark_lost` must follow.
        """
        streams, steps = message.streams[rows], message.steps[rows]
        ahead = next_steps > steps
        self._applied[streams[ahead]] = np.maximum(self._applied[streams[ahead]], next_steps[ahead] - 1)

    def is_applied(self, message: Message, rows: Ints) -> Bools:
        """Whether the server is known to have applied each of these rows."""
        return message.steps[rows] <= self._applied[message.streams[rows]]

    def resend(self, message: Message, rows: Ints) -> None:
        """Sends refused rows, and the later rows of their streams, again."""
        self._ignore_answers(message.streams[rows])
        self._cursor[message.streams[rows]] = message.steps[rows]
        for buffer in self._buffers:
            buffer.unsent_from = 0  # any row may have to be sent again

    def drop(self, message: Message, rows: Ints, errors: Sequence[ClientError]) -> None:
        """Removes refused rows with their groups. Later rows of the streams move up."""
        buffer, touched = message.buffer, message.streams[rows]
        self._flush_singles(buffer)
        self.resend(message, rows)
        for at, error in zip(message.at[rows].tolist(), errors, strict=True):
            for dropped in self._dropped_rows(buffer, at):
                self._fail(buffer, dropped, error)
                buffer["step"][dropped] = 0
        self._renumber(buffer, touched)

    def skip_applied(self, message: Message, rows: Ints, errors: Sequence[ClientError]) -> None:
        """Fails refused rows that had been applied. They keep their numbers, and their streams continue behind them."""
        self.resend(message, rows)
        streams, steps = message.streams[rows], message.steps[rows]
        for at, step, error in zip(message.at[rows].tolist(), steps.tolist(), errors, strict=True):
            self._fail(message.buffer, at, error, step)
        self.answered[streams] = steps
        self._cursor[streams] = steps + 1

    def mark_lost(self, errors: Mapping[int, ClientError], *, shared: bool = False) -> set[int]:
        """Marks streams as unusable, and fails their timesteps. Returns the streams whose caller got the error.

        With `shared` all streams end together: the caller of a block gets the error as an exception.
        """
        notified: set[int] = set()
        streams = np.fromiter(errors, np.int64, len(errors))
        self.errors.update(errors)
        for buffer in self._buffers:
            self._flush_singles(buffer)
            theirs = np.isin(buffer["stream"], streams) & (buffer["step"] > self.answered[buffer["stream"]])
            for at in np.flatnonzero(theirs).tolist():
                stream = int(buffer["stream"][at])
                if self._fail(buffer, at, errors[stream], shared=shared):
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
        """Marks streams as closed. All their timesteps are stored, or were forgotten on request."""
        error = StreamLost("the stream is closed; open it again to continue")
        self.mark_lost(dict.fromkeys(streams, error))

    def reset(self, streams: Sequence[int] | Ints) -> None:
        """Forgets the history of streams: their next open is like the first one."""
        self._remove(streams)
        self.ever_opened[streams] = False
        self.durable_steps[streams] = 0

    def _remove(self, streams: Sequence[int] | Ints) -> None:
        """Removes all timesteps of these streams from the buffers."""
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
        """Ignores the answers to timesteps of these streams that are in flight."""
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
        """Removes the rows that are no longer needed."""
        moved = buffer.compact(buffer["step"] >= self.first_kept(buffer["stream"]))
        for message in self._messages if self._current is None else (self._current, *self._messages):
            if message.buffer is buffer:
                accepted = message.at >= 0
                message.at[accepted] = moved[message.at[accepted]]
                if isinstance(message, SingleRowMessage):
                    message.place = int(message.at[0])

    def _recycle_indices(self) -> None:
        """Makes indices free that no message in flight refers to."""
        while self._released and (not self._messages or self._messages[0].number > self._released[0][0]):
            self._free_indices += self._released.popleft()[1].tolist()


def first_of_each(message: Message, rows: Ints) -> Ints:
    """The first of these rows of each stream, in ascending order."""
    _, first = np.unique(message.streams[rows], return_index=True)
    first.sort()
    return rows[first]
