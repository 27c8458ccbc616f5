"""A client's window and its decisions about refusals, against a model of a server: every interleaving that Hypothesis finds."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.client.window_server import Server, answer
from tests.client.window_streams import Stream, Timestep
from tests.client.windows import MODEL, OTHER, ROWS_MAX, Block, Caller, add_single_row, contents, ints, packed
from tests.examples import examples
from tidegate.client.errors import (
    AnswerLost,
    ClientError,
    DataLost,
    Diverged,
    InvalidTimestep,
    Overloaded,
    ServerUnavailable,
    StreamLost,
    TakenOver,
)
from tidegate.client.message import Repeat, SingleRowMessage
from tidegate.client.refusals import Decision, RefusalHandler
from tidegate.client.results import Answers, Group
from tidegate.client.retry import Backoff, RetryDeadlines
from tidegate.client.window import Window
from tidegate.v1 import tidegate_pb2 as pb

STREAMS_MAX = 5
RETRY_TIMEOUT_S = 10.0


class World(RuleBasedStateMachine):
    """A window and a server, with streams that come and go, disconnects, crashes, refusals, losses and checkpoints."""

    @initialize(remembered=st.integers(1, 5), retry_timeout_s=st.sampled_from([0.0, RETRY_TIMEOUT_S]))
    def begin(self, remembered: int, retry_timeout_s: float) -> None:
        """Opens some streams, so that rules apply from the start."""
        self.now = 0.0
        self.values = 0
        self.server = Server(remembered)
        self.window = Window(100)
        self.retry_deadlines = RetryDeadlines(Backoff(clock=lambda: self.now, dice=lambda: 0.0))
        self.refusals = RefusalHandler(self.window, self.retry_deadlines, retry_timeout_s)
        self.buffers = [self.window.buffer_of(model, ROWS_MAX) for model in (MODEL, OTHER)]
        self.streams: list[Stream] = []
        self.answers_may_be_lost = not retry_timeout_s
        # Messages since the last break, and since the last end of a stream: else most of a run would be spent without any.
        self.sent_since = {"break": 0, "end": 0}
        self.join([0, 0, 1], before=0, opened=True)

    # Streams -----------------------------------------------------------------------------------------------------------

    @property
    def live(self) -> list[Stream]:
        """Streams that were not detached."""
        return [stream for stream in self.streams if not stream.left]

    @property
    def usable(self) -> list[Stream]:
        """Streams that were opened and are usable."""
        window = self.window
        return [stream for stream in self.live if window.usable[stream.index] and window.ever_opened[stream.index]]

    @property
    def to_open(self) -> list[Stream]:
        """Streams that are not open and should be."""
        return [s for s in self.live if self.window.usable[s.index] and not self.window.open[s.index]]

    @precondition(lambda self: len(self.live) < STREAMS_MAX)
    @rule(models=st.lists(st.integers(0, 1), min_size=1, max_size=2), before=st.integers(0, 2), opened=st.booleans())
    def join(self, models: list[int], before: int, opened: bool) -> None:
        """Adds streams, which may be opened at once; the server may know them."""
        indices = self.window.add_streams(len(models)).tolist()
        assert not {stream.index for stream in self.live} & set(indices)
        for index, model in zip(indices, models, strict=True):
            history = [self.value() for _ in range(before)]
            self.streams.append(Stream(len(self.server.applied), index, self.buffers[model], history))
            self.server.applied.append(list(history))
            self.server.durable.append(0)
            self.server.forgotten.append(0)
        if opened:
            self.open(STREAMS_MAX)

    def value(self) -> float:
        """A value that no other timestep has."""
        self.values += 1
        return float(self.values)

    @precondition(lambda self: self.to_open)
    @rule(count=st.integers(1, STREAMS_MAX))
    def open(self, count: int) -> None:
        """Opens some streams, again or for the first time."""
        window, server = self.window, self.server
        opened: list[Stream] = []
        for stream in self.to_open[:count]:
            first, applied = window.first_kept(ints(stream.index)).item(), len(server.applied[stream.name])
            if stream.name in server.taken:
                self.lose({stream.index: TakenOver("by another client")})
            elif window.ever_opened[stream.index] and first > applied + 1:
                assert applied < len(stream.before), "what is not stored can be sent again, but for what was before"
                self.lose({stream.index: DataLost("it is gone")})
            else:
                opened.append(stream)
        if not opened:
            return
        window.mark_opened(
            ints(*(stream.index for stream in opened)),
            ints(*(len(server.applied[stream.name]) + 1 for stream in opened)),
            ints(*(server.durable[stream.name] for stream in opened)),
            server.remembered,
        )
        for stream in opened:
            if not stream.timesteps and not window.has_waiters(ints(stream.index)):
                stream.before = list(server.applied[stream.name])

    def lose(self, errors: dict[int, ClientError]) -> None:
        """Loses streams as the session does."""
        errors = {index: error for index, error in errors.items() if self.window.usable[index]}
        self.window.mark_lost(errors)
        for stream in self.live:
            stream.lost = errors.get(stream.index, stream.lost)

    @precondition(lambda self: self.usable and self.sent_since["end"])
    @rule(pick=st.integers(0, 9), how=st.sampled_from(["taken over", "taken over unseen", "closed", "forgotten"]))
    def end(self, pick: int, how: str) -> None:
        """Ends a stream."""
        self.sent_since["end"] = 0
        if how == "closed":
            self.close(pick)
        elif how == "forgotten":
            self.usable[pick % len(self.usable)].forgetting = True  # as soon as everything of it is answered
        else:
            self.take_over(self.usable[pick % len(self.usable)], notified=how == "taken over")

    def take_over(self, stream: Stream, *, notified: bool) -> None:
        """Another client opens a stream. This one is notified at once, or gets the error of a refused row."""
        self.server.taken.add(stream.name)
        if notified:
            self.lose({stream.index: TakenOver("by another client")})

    @precondition(lambda self: self.live and self.sent_since["end"])
    @rule(pick=st.integers(0, 9), count=st.integers(1, 2), replaced=st.booleans())
    def leave(self, pick: int, count: int, replaced: bool) -> None:
        """Detaches some streams; others may join at once."""
        self.sent_since["end"] = 0
        pick %= len(self.live)
        streams = self.live[pick : pick + count]
        self.lose({stream.index: StreamLost("left") for stream in streams})
        self.window.release_indices(ints(*(stream.index for stream in streams)))
        for stream in streams:
            stream.left = True
            self.retry_deadlines.clear(stream.index)
        if replaced:
            self.join([self.buffers.index(stream.buffer) for stream in streams], before=0, opened=True)

    def close(self, pick: int) -> None:
        """Closes a stream of which everything is answered: all of it is stored."""
        streams = [s for s in self.usable if self.window.open[s.index] and self.window.idle(ints(s.index)).all()]
        streams = [stream for stream in streams if stream.name not in self.server.taken]
        if streams:
            stream = streams[pick % len(streams)]
            self.store(stream)
            self.notify(stream)
            self.window.mark_closed([stream.index])
            stream.lost = self.window.errors[stream.index]

    # Timesteps ---------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.live)
    @rule(picks=st.lists(st.integers(0, 9), max_size=6), bad=st.integers(0, 9), sent=st.booleans())
    def add_rows(self, picks: list[int], bad: int, sent: bool) -> None:
        """Submits timesteps of many streams of one model. The server refuses a bad one."""
        known = [s for s in self.live if (self.window.ever_opened[s.index] or s.lost is not None) and not s.forgetting]
        streams = [known[pick % len(known)] for pick in picks] if known else []
        streams = [stream for stream in streams if stream.buffer is streams[0].buffer]
        block = Block(len(streams))
        values = [self.value() * (-1 if place == bad else 1) for place in range(len(streams))]
        for place, (stream, value) in enumerate(zip(streams, values, strict=True)):
            stream.timesteps.append(Timestep(value, None, block, place))
        if streams:
            column = np.array(values, np.float32).reshape(-1, 1)
            self.window.add(streams[0].buffer, block, 0, ints(*(stream.index for stream in streams)), column)
        if sent:
            self.send(ROWS_MAX)

    @precondition(lambda self: self.usable)
    @rule(
        pick=st.integers(0, 9),
        bad=st.sampled_from([False] * 3 + [True]),
        grouped=st.sampled_from([None, 0, 1]),
        sent=st.booleans(),
    )
    def add_single(self, pick: int, bad: bool, grouped: int | None, sent: bool) -> None:
        """Submits a timestep of a stream, alone or in a group."""
        stream = self.usable[pick % len(self.usable)]
        if stream.forgetting:
            return
        stream.groups = [Group() if group.failed else group for group in stream.groups]
        group = stream.groups[grouped] if grouped is not None else None
        value = self.value() * (-1 if bad else 1)
        caller = add_single_row(self.window, stream.index, value, group, stream.buffer)
        stream.timesteps.append(Timestep(value, caller))
        stream.timesteps[-1].group = group
        if sent:
            self.send(ROWS_MAX)

    @precondition(lambda self: self.usable)
    @rule(pick=st.integers(0, 9), back=st.integers(0, 9), wrong=st.booleans(), sent=st.booleans())
    def ask_again(self, pick: int, back: int, wrong: bool, sent: bool) -> None:
        """Requests an old answer, perhaps with wrong values."""
        stream = self.usable[pick % len(self.usable)]
        if stream.forgetting or stream.begun_again:
            return
        history = self.history(stream)
        begin = len(stream.before)
        if len(history) == begin:
            return
        step = begin + 1 + back % (len(history) - begin)
        caller = Caller()
        stream.repeats.append((step, wrong, caller))
        value = history[step - 1] + (0.5 if wrong else 0.0)
        self.window.add_repeat(Repeat(stream.buffer, stream.index, step, packed(value), caller))
        if sent:
            self.send(ROWS_MAX)

    @rule(pick=st.integers(0, 9))
    def stop_asking(self, pick: int) -> None:
        """Cancels the caller of a repeat."""
        callers = [caller for stream in self.live for _, _, caller in stream.repeats if not caller.done()]
        if callers:
            callers[pick % len(callers)].cancelled = True

    # The call ----------------------------------------------------------------------------------------------------------

    @rule(rows_max=st.integers(1, 6), one_in_flight=st.sampled_from([False] * 5 + [True]))
    def send(self, rows_max: int, one_in_flight: bool = False) -> None:
        """Sends a message; with `careful` the only one in flight, and of one timestep."""
        self.window.one_in_flight = one_in_flight
        for buffer in self.buffers:
            buffer.rows_max = rows_max
        message = self.window.next_message()
        if message is None:
            return
        self.sent_since = {what: count + 1 for what, count in self.sent_since.items()}
        assert not one_in_flight or (len(self.window._messages) == 1 and (len(message.steps) == 1 or message.repeats))
        by_index = {stream.index: stream for stream in self.usable if self.window.open[stream.index]}
        assert all(by_index[index].buffer is message.buffer for index in message.streams.tolist())
        rows = [(by_index[index].name, step, value) for index, step, value in contents(message)]
        if message.repeats:
            assert all(step <= len(self.server.applied[name]) for name, step, _ in rows), "it would be applied"
        else:
            for index in set(message.streams.tolist()):
                theirs = message.steps[message.streams == index]
                assert theirs.tolist() == list(range(theirs[0], theirs[0] + len(theirs)))
        self.server.requests.append((message, rows))

    @precondition(lambda self: self.server.requests)
    @rule(
        full=st.sampled_from([False] * 5 + [True]),
        busy=st.lists(st.sampled_from(["", "", "busy", "late"]), max_size=4),
        outcome=st.booleans(),
    )
    def run(self, full: bool, busy: list[str], outcome: bool) -> None:
        """The server answers a message."""
        self.server.run(full=full, busy=lambda: busy.pop() if busy else "")
        if outcome:
            self.respond()

    @precondition(lambda self: self.server.responses)
    @rule()
    def respond(self) -> None:
        """The client handles an answer, as the session does."""
        sent, answers, errors = self.server.responses.popleft()
        message = self.window.match_answer(sent.number)
        assert message is sent
        if answers is None:
            self.apply(self.refusals.handle_message(message, errors[0]))
            return
        if message.repeats:
            self.apply(self.refusals.handle_repeats(message, answers, errors))
            return
        if isinstance(message, SingleRowMessage) and answers.plain and self.settle_single_row(message, answers):
            self.retry_deadlines.clear(message.stream, message.step)
            return
        outcome = self.window.settle(message, answers)
        assert not outcome.diverged
        applied = (message.at >= 0) & ~answers.refused
        for stream, step in zip(message.streams[applied].tolist(), message.steps[applied].tolist(), strict=True):
            self.retry_deadlines.clear(stream, step)
        rows = outcome.refused[self.window.usable[message.streams[outcome.refused]]]
        notified = [errors[row] for row in rows.tolist()]
        assert all(error.reason != pb.Error.REASON_STEP_GAP for error in notified), "the first refused cannot be a gap"
        if len(rows):
            self.apply(self.refusals.handle_rows(message, rows, notified))

    def settle_single_row(self, message: SingleRowMessage, answers: Answers) -> bool:
        """A single row may be settled on the fast path."""
        outputs = [column.tobytes() for column in answers.outputs]
        return self.window.settle_single_row(message, answers.steps.tobytes(), outputs, int(answers.durable_steps[0]))

    def apply(self, decision: Decision) -> None:
        """Refused streams may be lost; others are held."""
        for error in decision.lost.values():
            assert isinstance(error, TakenOver | ServerUnavailable), error
            assert not isinstance(error, Diverged)
        self.lose(decision.lost)

    @rule(seconds=st.sampled_from([0.0, 0.0, RETRY_TIMEOUT_S]))
    def release(self, seconds: float) -> None:
        """The waits are over. What was refused for too long fails, and its answer may be lost."""
        self.now += seconds
        self.answers_may_be_lost |= seconds > 0
        self.window.release(ints(*(stream.index for stream in self.live)))

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 9), notified=st.booleans(), swept=st.booleans())
    def store_and_notify(self, pick: int, notified: bool, swept: bool) -> None:
        """The server stores a stream, and may send the durable step before an answer. The client may compact at any moment."""
        stream = self.live[pick % len(self.live)]
        self.store(stream)
        if notified:
            self.notify(stream)
        if swept:
            self.sweep()

    def store(self, stream: Stream) -> None:
        """The server stores a stream."""
        self.server.durable[stream.name] = len(self.server.applied[stream.name])

    def notify(self, stream: Stream) -> None:
        """The server sends the durable step."""
        if self.window.open[stream.index]:
            self.window.mark_durable(ints(stream.index), ints(self.server.durable[stream.name]))

    def sweep(self) -> None:
        """The client compacts its buffers."""
        for buffer in self.buffers:
            self.window._compact(buffer)

    @rule(stored=st.booleans())
    def round_trip(self, stored: bool) -> None:
        """The client sends a message, and everything in flight is answered."""
        self.send(ROWS_MAX)
        self.answer_all()
        for stream in self.live if stored else ():
            self.store(stream)
            self.notify(stream)

    def answer_all(self) -> None:
        """Everything in flight is answered."""
        while self.server.requests:
            self.server.run(full=False, busy=str)
        while self.server.responses:
            self.respond()

    @precondition(lambda self: self.sent_since["break"])
    @rule(
        crashed=st.dictionaries(st.integers(0, 9), st.integers(1, 4), max_size=4),
        forgets=st.booleans(),
        asked=st.booleans(),
    )
    def stop(self, crashed: dict[int, int], forgets: bool, asked: bool) -> None:
        """The call breaks. A server that crashed continues anywhere between its stored and its applied timesteps."""
        self.sent_since["break"] = 0
        server = self.server
        server.requests.clear()
        server.responses.clear()
        for pick, count in crashed.items():
            if self.live:
                name = self.live[pick % len(self.live)].name
                applied = server.applied[name]
                del applied[max(server.durable[name], len(applied) - count) :]
        if forgets and crashed:
            server.forgotten = [len(applied) for applied in server.applied]
            self.answers_may_be_lost = True
        for stream in self.usable:
            if stream.forgetting and not self.window.has_waiters(ints(stream.index)).any():
                self.window.reset(ints(stream.index))
                stream.begun_again = True
        self.window.end_call()
        for pick in range(len(self.usable) if asked else 0):
            self.ask_again(pick, -1, wrong=True, sent=False)  # for the last, which the server may have lost

    @precondition(lambda self: self.sent_since["break"])
    @rule()
    def move(self) -> None:
        """The server sends Move: the client sends nothing more, and everything in flight is answered."""
        self.answer_all()
        self.stop({}, forgets=False, asked=False)

    # What is always true -----------------------------------------------------------------------------------------------

    @invariant()
    def settled_in_order(self) -> None:
        """A timestep is settled after all earlier ones of its stream, except those of a group, which fail together."""
        for stream in self.streams:
            steps = [timestep for timestep in stream.timesteps if not isinstance(timestep.error, InvalidTimestep)]
            settled = [timestep.settled for timestep in steps if not isinstance(timestep.error, Overloaded)]
            assert settled == sorted(settled, reverse=True)

    @invariant()
    def few_in_flight(self) -> None:
        """No stream has more in flight than the server remembers answers for."""
        for stream in self.live:
            messages = [message for message in self.window._messages if not message.repeats]
            count = sum(np.count_nonzero(message.streams == stream.index) for message in messages)
            assert count <= self.server.remembered

    @invariant()
    def no_more_applied(self) -> None:
        """The client never takes a timestep for applied that is not; it would be skipped, or repeated too early."""
        for stream in self.usable:
            if self.window.open[stream.index]:
                assert self.window._applied[stream.index] <= len(self.server.applied[stream.name])

    @invariant()
    def all_kept(self) -> None:
        """Timesteps that a server may still need are in the buffer, in order and without a gap."""
        for stream in self.usable:
            for buffer in self.buffers:
                first = self.window.first_kept(ints(stream.index)).item()
                kept = (buffer["stream"] == stream.index) & (buffer["step"] >= first)
                steps = buffer["step"][kept].tolist() if buffer is stream.buffer else None
                if steps is None:
                    assert not kept.any()
                    continue
                end = self.window.next_steps.item(stream.index) - sum(
                    single[0] == stream.index for single in buffer._singles
                )
                assert steps == list(range(first, end))

    @invariant()
    def counted(self) -> None:
        """Each index belongs to one stream, and the count of usable streams is right."""
        indices = [stream.index for stream in self.live]
        assert len({*indices, *self.window._free_indices}) == len(indices) + len(self.window._free_indices)
        assert self.window.usable_count == sum(self.window.usable[index] for index in indices)

    def teardown(self) -> None:
        """Without further events, every good timestep is applied and answered once, with the answer of its history."""
        if not hasattr(self, "window"):
            return
        rounds_max = 4 * self.values + 4 * sum(len(stream.repeats) for stream in self.streams) + 4
        while (self.to_open or not self.window.drained) and (rounds_max := rounds_max - 1):
            while self.to_open:
                self.open(STREAMS_MAX)
            self.release(0.0)
            self.round_trip(stored=False)
        assert self.window.drained
        assert not self.window._blocks
        assert not self.window._singles
        assert not self.window._in_flight.any()
        assert not self.window._pending_repeats()
        assert all(self.window.idle(ints(stream.index)).all() for stream in self.usable)
        for stream in self.streams:
            self.check(stream)
            assert all(caller.done() for _, _, caller in stream.repeats)
        while self.live:
            self.leave(0, 1, replaced=False)
        assert sorted(self.window._free_indices) == list(range(self.window._count))
        self.sweep()
        assert not any(len(buffer) for buffer in self.buffers)

    def history(self, stream: Stream) -> list[float]:
        """The timesteps of a stream that were answered, or are known to have been applied, from what its user got."""
        settled = [timestep for timestep in stream.timesteps if timestep.settled]
        applied = [step.value for step in settled if step.error is None or isinstance(step.error, AnswerLost)]
        return [*stream.before, *applied]

    def check(self, stream: Stream) -> None:
        """Checks the history of a stream, and every answer."""
        history = list(stream.before)
        for timestep in stream.timesteps:
            assert timestep.settled
            error = timestep.error
            if error is not None and error is stream.lost:
                continue
            assert not isinstance(error, StreamLost), error
            if isinstance(error, InvalidTimestep | Overloaded):
                same = [other for other in stream.timesteps if other.error is error]
                assert timestep.value < 0 or isinstance(error, Overloaded) or same[0].value < 0
                assert len(same) == 1 or (timestep.group is not None and {t.group for t in same} == {timestep.group})
                continue
            history.append(timestep.value)
            if isinstance(error, AnswerLost):
                assert self.answers_may_be_lost
                continue
            assert error is None
            assert timestep.value > 0
            assert timestep.answer == (len(history), *answer(history))
        if self.window.usable[stream.index] and not stream.left and not stream.begun_again:
            assert self.server.applied[stream.name] == history
        for step, wrong, caller in stream.repeats:
            if caller.result is not None:
                assert not wrong
                assert caller.result.step == step
                total, seen = answer(history[:step])
                assert not len(caller.result) or caller.result["sum"].item() == total
                assert not len(caller.result) or caller.result["seen"].tolist() == seen


World.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=80)
TestWorld = World.TestCase
