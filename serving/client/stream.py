"""A stream that survives its connection: numbered timesteps go out, each prediction comes back once and in order.

What to send and whose an answer is, `serving.client.journal` decides; `serving.client.call` speaks; here a stream is kept open.

Laws:
1. One task a stream reads, opens again and decides. A caller that is cancelled touches no call.
2. The task never dies in silence: whatever ends it is raised to all who wait, to the next `step`, or by `close`.
3. Everything has a bound: an open `timeout_s`, breaks and refusals `reconnect_s` (a try that began within it may finish),
   timesteps that are kept `buffer_max`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client import arguments
from serving.client.backoff import Backoff
from serving.client.call import Call, CallEnded
from serving.client.connection import Connection
from serving.client.errors import (
    AnswerLost,
    ClientError,
    InvalidArgument,
    InvalidTimestep,
    ServerUnavailable,
    StepGap,
    StreamLost,
    StreamNotFound,
    TimestepRefused,
    ValuesDiffer,
    lost_by,
    refusal_of,
)
from serving.client.inputs import Values, pack, rows_in_order
from serving.client.journal import Entry, Group, Journal
from serving.client.nouns import Model, Prediction, check_same, model_of
from serving.client.patience import Limits, Patience
from serving.client.rows import Rows, Source
from serving.core.spec import STEP_MAX
from serving.rpc import wire

log = logging.getLogger("tidegate.client")

Ticket = asyncio.Future[pb.Prediction]


class Stream:
    """An open stream. Made by `Client.open`.

    Attributes:
        stream_id: its name.
        model: what runs it.
        kind: how `Client.open` found it: "new", "resumed" or "taken_over".
        owner: the token by which the server knows that it is the same client who opens it again.
        epoch: rises with every open of the stream, those after a break among them; for logs.
        reconnects: how often it was opened again after a break.

    """

    model: Model

    def __init__(self, connection: Connection, ask: pb.Open, limits: Limits, backoff: Backoff) -> None:
        self.stream_id = ask.stream_id
        self.owner = ask.owner
        self.kind = ""
        self.epoch = 0
        self.reconnects = 0
        connection.check_open()
        self._connection = connection
        self._ask = ask
        self._limits = limits
        self._backoff = backoff
        self._journal = Journal()
        self._room = asyncio.Semaphore(limits.buffer_max)  # first come, first served
        self._comparable = False  # whether this server promises the same bits for the same timesteps
        self._ready = asyncio.Event()  # it was opened, or will never be
        self._closing: pb.Close | None = None
        self._lost: ClientError | None = None
        self._told = False  # whether anybody knows of it
        self._patience = Patience(limits, backoff, connection.may_be_up)
        self._call = self._make_call()
        self._task = asyncio.create_task(self._run())

    def __repr__(self) -> str:
        return f"<Stream {self.stream_id}, next step {self.next_step}, {self.reconnects} reconnects, {self._journal!r}>"

    @property
    def next_step(self) -> int:
        """The number that the next timestep will have."""
        return self._journal.next_step

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored, as far as the server has told."""
        return self._journal.durable_step

    @property
    def window(self) -> int:
        """How many timesteps may be under way; the server says."""
        return self._journal.window

    async def step(self, values: Values, *, step: int | None = None, group: Group | None = None) -> Prediction:
        """Sends one timestep and waits for its prediction. Several may be under way; they are answered in order.

        A break of the connection is mended unseen. Waits for room while `buffer_max` timesteps are kept that the server
        has not stored. When cancelled later than that, the timestep is applied all the same, and its prediction dropped.

        Args:
            values: (features,) numbers in the model's order and units, or a mapping from feature names to numbers; NaN, or a
                name left out, means missing. None does not.
            step: its number, when it is not the next one: an earlier timestep, whose answer is asked for again with the values
                that it had. None or 0 for the next one.
            group: timesteps that belong together; when one is refused, none of them behind it is applied.

        Raises:
            InvalidTimestep: values or step are wrong; what can be seen from here was not sent.
            TimestepRefused: it was not applied; the stream stays usable, and timesteps sent behind it move up.
            AnswerLost: it was applied, but the prediction is gone; the stream stays usable.
            StreamLost, StreamRefused: the stream can no longer be used from here.

        """
        return self._prediction(await (await self._submit(values, step, group)))

    async def predict(self, rows: Rows[Values]) -> AsyncIterator[Prediction]:
        """Sends row after row, as many ahead as the server allows, and yields the predictions in order.

        The quick way to replay history. Rows of an asynchronous iterable may come as slowly as they like: a prediction
        is yielded as soon as it is there. When left early, rows that were read ahead are applied all the same.

        Raises:
            InvalidArgument: `rows` is nothing that can be iterated over.
            TimestepRefused: a row was refused. No row behind it was applied; `next_step` says where to go on.
            StreamLost, StreamRefused: the stream can no longer be used from here.

        """
        group = Group()
        source = Source("rows", rows_in_order(rows, self.model.features))
        tickets: deque[Ticket] = deque()
        try:
            while tickets or not source.ended:
                if tickets and (source.ended or tickets[0].done() or len(tickets) >= self.window):
                    yield self._prediction(await tickets[0])
                    tickets.popleft()
                elif await source.read(unless=tickets[0] if tickets else None):
                    try:
                        tickets.append(await self._submit(source.row, None, group))
                    except InvalidTimestep as error:
                        tickets.append(source.failed(error))
        finally:
            for ticket in tickets:
                if not ticket.cancel() and not ticket.cancelled():
                    ticket.exception()  # raised to the caller for the first of the group
            await source.close()

    async def start(self) -> None:
        """Waits until the stream is open; called by `Client.open`."""
        await self._ready.wait()
        if not self.kind:  # one that was opened and has been lost since is entered: its error comes with its use
            self._check()

    async def close(self, *, forget: bool = False) -> None:
        """Ends the stream. Does nothing the second time.

        Waits until every timestep is answered and the server has stored them all, opening the stream again if need be.

        Args:
            forget: the server drops the stream and its state.

        Raises:
            InvalidArgument: `forget` is not True or False.
            ClientError: what ended the stream before that, unless it was raised to somebody already.

        """
        self._connection.check()
        if self._closing is None:
            self._closing = pb.Close(forget=arguments.flag("forget", forget))
            self._call.wake()
        await asyncio.wait([self._task])
        if not self._told:
            self._check()

    async def leave(self) -> None:
        """Ends the call at once; the server parks the stream. Timesteps under way may be applied or not."""
        if self._connection.elsewhere:
            return  # it is open in the process that opened it
        self._call.cut(StreamLost("the stream was left"))
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _submit(self, values: Values, step: int | None, group: Group | None) -> Ticket:
        """Puts a timestep in line, once there is room; gives a future of its answer."""
        self._connection.check()
        try:
            packed, number = self._read(values, step)
        except InvalidTimestep:
            if group is not None:
                await self._room.acquire()  # those before it in the group come first
                self._room.release()
                group.fallen = True
            raise
        await self._room.acquire()
        try:
            self._check()
            ticket: Ticket = asyncio.get_running_loop().create_future()
            if number and number != self.next_step:
                self._ask_again(packed, ticket, number)
                self._room.release()
            elif group is not None and group.fallen:
                ticket.cancel()
                self._room.release()
            else:
                self._journal.add(Entry(packed, ticket, group))
        except ClientError:
            self._room.release()  # so that the next one who waits for room learns of it too
            raise
        self._call.wake()
        return ticket

    def _ask_again(self, packed: bytes, ticket: Ticket, step: int) -> None:
        if step > self.next_step:
            raise StepGap(
                f"step: got {step}, expected {self.next_step}; send the timesteps from {self.next_step} on",
                "STEP_GAP",
                field="step",
                next_step=self.next_step,
            )
        if step > self._journal.answered:
            raise InvalidTimestep(
                f"step: {step} is under way already; wait for its prediction",
                "INVALID_FIELD",
                field="step",
                next_step=self.next_step,
            )
        self._journal.ask_again(Entry(packed, ticket, repeat=step))

    def _read(self, values: Values, step: int | None) -> tuple[bytes, int]:
        """What a caller gives, packed values and a number, 0 for none; raises InvalidTimestep."""
        try:
            number = 0 if step is None else arguments.whole("step", step, 0, STEP_MAX)
            return pack(values, self.model.features), number
        except InvalidArgument as error:
            raise InvalidTimestep(str(error), error.reason, field=error.field, next_step=self.next_step) from None

    def _prediction(self, answer: pb.Prediction) -> Prediction:
        arrays = wire.decode_arrays(self.model.outputs, answer.outputs)
        return Prediction(answer.step, arrays, answer.durable_step, answer.duplicate)

    def _check(self) -> None:
        """Raises what has ended the stream, if anything has."""
        if self._lost is not None:
            self._told = True
            raise self._lost.with_traceback(None)  # or it would grow with every call that is made in vain
        if self._closing is not None:
            raise StreamLost("the stream is being closed; open it again to go on")

    # The task ----------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keeps the stream open until it is closed; then says why to all that are left."""
        lost: ClientError = StreamLost("the stream is closed; open it again to go on")
        try:
            while not await self._speak():
                self._call = self._make_call()
            self._told = True
        except asyncio.CancelledError:
            self._told = True  # by whoever left
        except ClientError as error:
            lost = error
        except Exception as bug:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            lost = lost_by(bug)
        self._lost = lost
        self._call.cut(lost)
        for entry in self._journal.clear():
            if not entry.ticket.done():
                entry.ticket.set_exception(lost)
                self._told = True
        self._room.release()
        self._ready.set()

    def _make_call(self) -> Call:
        ask = pb.Open()
        ask.CopyFrom(self._ask)
        if self._ready.is_set():
            ask.stream_id, ask.model, ask.version = self.stream_id, self.model.name, self.model.version
            # Only to be forgotten it must be there: that it is not means that it has been.
            ask.existence = pb.EXISTENCE_MUST_EXIST if self._forgetting else pb.EXISTENCE_UNSPECIFIED
            ask.resume_from = 1 if self._forgetting else self._journal.first_step
        return Call(
            self._connection.stub.Predict,
            pb.PredictRequest(open=ask),
            self._next_request,
            self._backoff.sleep,
            again=self._ready.is_set(),
        )

    async def _speak(self) -> bool:
        """One call from its open to its end; True when the stream is closed, False when it shall be opened again."""
        call = self._call
        call.cut_after(self._limits.timeout_s, "answer to open")
        try:
            while not self._take_in(call, await call.read()):
                pass
            await call.finish(self._limits.timeout_s)
        except CallEnded as ended:
            if self._forgetting and isinstance(ended.error, StreamNotFound):
                return True
            call.cut(ended.error)  # it may be this side that will have no more of it
            await self._patience.wait(ended.error, f"stream {self.stream_id}", opened=self._ready.is_set())
            return False
        return True

    def _take_in(self, call: Call, response: pb.PredictResponse) -> bool:
        """One response; True when it is the last. Kinds that this client does not know mean nothing to it."""
        kind = response.WhichOneof("kind")
        if kind == "prediction":
            self._predicted(response.prediction)
        elif kind == "error":
            self._refused(call, response.error)
        elif kind == "opened":
            self._opened(call, response.opened)
        elif kind == "durable":
            self._durable(response.durable.durable_step)
        elif kind == "move":
            log.info("stream %s is asked to move: %s", self.stream_id, response.move.message)
            call.half_close()
            call.cut_after(self._limits.timeout_s, "end of the call after move")
        elif kind == "closed":
            return self._closed(response.closed)
        if self._journal.unsent or self._closing is not None:
            call.wake()  # an answer makes room for the next timestep
        return False

    def _opened(self, call: Call, opened: pb.Opened) -> None:
        first = not self._ready.is_set()
        if first or self._forgetting:
            self._journal.begin(opened.next_step, opened.durable_step, opened.answers_remembered)
        else:
            check_same(f"stream '{self.stream_id}'", self.model, opened.model)
            self._journal.resume(opened.next_step, opened.answers_remembered)
            self._durable(opened.durable_step)
            self.reconnects += 1
            log.info("stream %s is open again, %r", self.stream_id, self._journal)
        self.epoch = opened.epoch
        self._comparable = opened.model.batch_invariant
        self._patience.opened()
        call.opened = True
        call.spare()
        if first:
            self.stream_id = opened.stream_id
            self.model = model_of(opened.model)
            self.kind = pb.Opened.Kind.Name(opened.kind).removeprefix("KIND_").lower()
            self._ready.set()
        if first or (self._journal.idle and self._closing is None):
            self._patience.rest()

    def _predicted(self, answer: pb.Prediction) -> None:
        entry = self._journal.predicted(answer.step, answer.outputs, comparable=self._comparable)
        if entry is not None or self._journal.idle:
            self._patience.get_on()
        if entry is not None:
            if answer.outputs or entry.repeat:
                _settle(entry, answer)
            else:
                _settle(
                    entry,
                    AnswerLost(
                        f"timestep {answer.step} was applied, but the server no longer remembers its answer",
                        "ANSWER_LOST",
                    ),
                )
        self._durable(answer.durable_step)

    def _refused(self, call: Call, error: pb.Error) -> None:
        """Does what the server says about a timestep that it refused."""
        entry = self._journal.refused(error.step, error.next_step)
        if entry is None:
            return
        refusal = refusal_of(error)
        if entry.repeat and isinstance(refusal, ValuesDiffer):
            # Whoever asks for an old answer may have it wrong; what this stream has sent stands.
            self._give_up(entry, error.step, InvalidTimestep(str(refusal), refusal.reason, field="values"))
        elif not isinstance(refusal, TimestepRefused):
            if entry.repeat:
                self._journal.ask_again(entry)
            raise CallEnded(refusal)
        elif refusal.action == pb.Error.ACTION_RETRY and self._may_wait(entry):
            call.pause(self._backoff.not_before_s(refusal.retry_after_s))
            if entry.repeat:
                self._journal.ask_again(entry)
            else:
                self._journal.send_again(error.step)
        else:
            self._give_up(entry, error.step, refusal)

    def _may_wait(self, entry: Entry) -> bool:
        """Whether there is time to send a timestep again; the time runs from its first refusal."""
        now = self._backoff.clock()
        if entry.until is None:
            entry.until = now + self._limits.reconnect_s
        return now < entry.until

    def _give_up(self, entry: Entry, step: int, refusal: TimestepRefused) -> None:
        """Tells the caller of a timestep, and those who fall with it, that it was refused."""
        kept = step <= self._journal.answered and not entry.repeat
        if kept and refusal.action == pb.Error.ACTION_RETRY:
            raise ServerUnavailable(
                f"timestep {step} could not be sent again for {self._limits.reconnect_s:g} s: {refusal}", refusal.reason
            )
        what: ClientError = refusal
        if not entry.repeat and self._journal.had_been_applied(step):
            what = AnswerLost(f"timestep {step} was applied, but could not be answered: {refusal}", refusal.reason)
        self._patience.get_on()
        for fallen in self._journal.give_up(step, entry):
            if fallen.ticket.cancelled():
                log.warning(
                    "stream %s: timestep %d, whose caller has gone, was refused: %s", self.stream_id, step, what
                )
            _settle(fallen, what)
            if not (fallen.repeat or isinstance(what, AnswerLost)):
                self._room.release()

    def _durable(self, step: int) -> None:
        for _ in range(self._journal.durable(step)):
            self._room.release()

    def _closed(self, closed: pb.Closed) -> bool:
        """Whether that is the end: everything is stored, or forgotten as was asked."""
        if self._closing is None:
            raise CallEnded(ServerUnavailable("the server closed the stream without being asked", "OK"))
        self._durable(closed.durable_step)
        if not self._closing.forget and self._journal.durable_step < self._journal.answered:
            raise CallEnded(
                ServerUnavailable(
                    f"the server closed the stream with timesteps stored up to {self._journal.durable_step} of "
                    f"{self._journal.answered}",
                    "STORE_UNAVAILABLE",
                )
            )
        return True

    def _next_request(self) -> pb.PredictRequest | None:
        """What to send now."""
        taken = self._journal.take()
        if taken is not None:
            return pb.PredictRequest(timestep=pb.Timestep(step=taken[0], values=taken[1]))
        if self._closing is not None and self._journal.idle:
            self._call.half_close()  # nothing may follow
            return pb.PredictRequest(close=self._closing)
        return None

    @property
    def _forgetting(self) -> bool:
        """Whether only the drop of an open stream is left to do: then it matters no more what the server still has."""
        return self._ready.is_set() and self._closing is not None and self._closing.forget and not self._journal.waiting


def _settle(entry: Entry, answer: pb.Prediction | ClientError) -> None:
    """Gives the caller of a timestep what it waits for, unless it has gone."""
    ticket: Ticket = entry.ticket
    entry.ticket = None
    if ticket.done():
        return
    if isinstance(answer, ClientError):
        ticket.set_exception(answer)
    else:
        ticket.set_result(answer)
