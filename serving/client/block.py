"""Many streams on one call that survive it: blocks of timesteps go out, each prediction comes back once and in order.

What to send and whose an answer is, `serving.client.ledger` decides; which streams are open, `serving.client.roster` knows;
`serving.client.call` speaks; here the call is kept open.

Laws, beside those of `serving.client.stream`:
1. What concerns one stream touches no other: it is refused, held back or lost alone, and its rows say so.
2. What concerns the call (it breaks, or the server does not keep to the protocol) concerns them all.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client import arguments
from serving.client.backoff import Backoff
from serving.client.call import Call, CallEnded
from serving.client.columns import decode_answers, decode_durable, encode_block, rows_max
from serving.client.connection import Connection
from serving.client.errors import (
    AGAIN,
    ClientError,
    InvalidTimestep,
    ServerUnavailable,
    StreamLost,
    StreamNotFound,
    StreamRefused,
    ending_of,
    lost_by,
)
from serving.client.inputs import Some, Timesteps, columns, parts_of
from serving.client.ledger import Ledger
from serving.client.nouns import Model, Predictions, check_same, model_of
from serving.client.parcel import Order
from serving.client.patience import Limits, Patience, Shortage
from serving.client.refusals import Decision, Refusals
from serving.client.roster import Roster
from serving.client.rows import Rows, Source
from serving.core.spec import Ints

log = logging.getLogger("tidegate.client")

Ticket = asyncio.Future[Order]


class Block:
    """Many open streams. Made by `Client.block`. Streams go by their index, from 0 in the order they were named.

    Attributes:
        model: what runs them.
        owner: the token by which the server knows that it is the same client who opens them again.
        refused: of the streams that could not be opened, why not.
        lost: of the streams that can no longer be used, why not.
        reconnects: how often they were opened again after a break.

    """

    model: Model

    def __init__(
        self, connection: Connection, stream_ids: Sequence[str], ask: pb.OpenStreams, limits: Limits, backoff: Backoff
    ) -> None:
        self.refused: dict[int, ClientError] = {}
        self.lost: dict[int, ClientError] = {}
        self.reconnects = 0
        self.owner = ask.owner
        connection.check_open()
        self._connection = connection
        self._limits = limits
        self._backoff = backoff
        self._ledger = Ledger(len(stream_ids), limits.buffer_max)
        self._roster = Roster(stream_ids, ask, self._ledger)
        self._patience = Patience(limits, backoff, connection.may_be_up)
        self._rows_max = 1
        self._comparable = False  # whether this server promises the same bits for the same timesteps
        self._ready = asyncio.Event()  # every stream was opened or refused
        self._door = asyncio.Lock()  # callers put their rows in line one after the other
        self._freed = asyncio.Event()  # there may be room for more
        self._close_asked = asyncio.Event()
        self._forget = False
        self._closes: deque[Ints] = deque()  # under way on this call
        self._to_close: deque[Ints] | None = None  # on this call; None before it is time
        self._lost: ClientError | None = None
        self._told = False  # whether anybody knows of it
        self._resumed = False  # whether all were opened on this call
        self._shortage = Shortage(len(stream_ids), backoff)
        self._refusals = Refusals(self._ledger, self._shortage, limits.reconnect_s)
        self._waits: set[asyncio.Task[None]] = set()
        self._call = self._make_call()
        self._task = asyncio.create_task(self._run())

    def __repr__(self) -> str:
        return f"<Block, {self.reconnects} reconnects, {self._ledger!r}>"

    @property
    def stream_ids(self) -> list[str]:
        """The streams' names."""
        return list(self._roster.stream_ids)

    @property
    def kinds(self) -> list[str]:
        """How each was found: "new", "resumed" or "taken_over"; empty where it was refused."""
        return list(self._roster.kinds)

    @property
    def next_steps(self) -> Ints:
        """The number that the next timestep of each stream will have."""
        return self._ledger.next_steps.copy()

    @property
    def durable_steps(self) -> Ints:
        """Of each stream, the last timestep whose state is stored, as far as the server has told."""
        return self._ledger.durable_steps.copy()

    @property
    def window(self) -> int:
        """How many timesteps of a stream may be under way; the server says."""
        return self._ledger.window

    async def step(self, x: Timesteps, rows: Sequence[int] | Ints | None = None) -> Predictions:
        """Sends timesteps of many streams and waits for their predictions. Several calls may be under way.

        What becomes of a row concerns its stream alone: it raises nothing, and is in `errors`. A row that was refused was not
        applied, and timesteps of its stream behind it move up. Breaks of the connection are mended unseen. Waits for room
        while a stream has `buffer_max` timesteps that the server has not stored. When cancelled, rows that had room are
        applied all the same, and `next_steps` has counted them.

        Args:
            x: (streams, features) the next timestep of every stream; NaN means missing, None does not. Rows of streams that are refused or
                lost say so in `errors`.
            rows: (n,) the indices of the streams that the rows of x are for, when not of all; then x is (n, features). A
                stream may stand there several times: its timesteps in the order they stand.

        Raises:
            InvalidTimestep: x or rows are no numbers, do not have these shapes, or name streams that there are not; nothing was sent.
            StreamLost, StreamRefused: none of the streams can be used any longer from here.

        """
        return self._predictions(await (await self._submit(x, rows)))

    async def predict(self, blocks: Rows[Timesteps | Some]) -> AsyncIterator[Predictions]:
        """Sends block after block, as many ahead as the server remembers answers for, and yields the answers in order.

        A block is what `step` takes: x, or a tuple (x, rows). Blocks of an asynchronous iterable may come as slowly as they
        like: an answer is yielded as soon as it is there. When left early, blocks that were read ahead are applied all the same.

        Raises:
            InvalidArgument: `blocks` is nothing that can be iterated over.
            InvalidTimestep: a block does not have the shape that it should. Nothing of it was sent, and no block behind it was read.
            StreamLost, StreamRefused: none of the streams can be used any longer from here.

        """
        source = Source("blocks", blocks)
        tickets: deque[Ticket] = deque()
        try:
            while tickets or not source.ended:
                if tickets and (source.ended or tickets[0].done() or len(tickets) >= self.window):
                    yield self._predictions(await tickets[0])
                    tickets.popleft()
                elif await source.read(unless=tickets[0] if tickets else None):
                    try:
                        tickets.append(await self._submit(*parts_of(source.row)))
                    except InvalidTimestep as error:
                        tickets.append(source.failed(error))
        finally:
            for ticket in tickets:
                if not ticket.cancel() and not ticket.cancelled():
                    ticket.exception()  # the same for all, and raised to the caller for the first
            await source.close()

    async def start(self) -> None:
        """Waits until every stream is open or refused; called by `Client.block`.

        Raises:
            StreamRefused: none could be opened; the reason of the first.

        """
        await self._ready.wait()
        if not any(self._roster.kinds):
            self._check()
            raise next(iter(self.refused.values()))

    async def close(self, *, forget: bool = False) -> None:
        """Ends the streams. Does nothing the second time.

        Waits until every timestep is answered and the server has stored them all, opening the streams again if need be.

        Args:
            forget: the server drops the streams and their state.

        Raises:
            InvalidArgument: `forget` is not True or False.
            ClientError: what ended them all before that, unless it was raised to somebody already. What ended one of them is in `lost`.

        """
        self._connection.check()
        if not self._close_asked.is_set():
            self._forget = arguments.flag("forget", forget)
            self._close_asked.set()
            self._call.wake()
        await asyncio.wait([self._task])
        if not self._told:
            self._check()

    async def leave(self) -> None:
        """Ends the call at once; the server parks the streams. Timesteps under way may be applied or not."""
        if self._connection.elsewhere:
            return  # they are open in the process that opened them
        self._call.cut(StreamLost("the streams were left"))
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _submit(self, x: Timesteps, rows: Sequence[int] | Ints | None) -> Ticket:
        """Puts timesteps in line, as there is room; gives a future of their answers."""
        self._connection.check()
        values, streams = columns(x, rows, self._ledger.streams, self.model.features)
        async with self._door:
            self._check()
            ticket: Ticket = asyncio.get_running_loop().create_future()
            order = self._ledger.order(len(streams), self.model.outputs, ticket)
            place = 0
            try:
                while place < len(streams):
                    room = self._ledger.room(streams[place:])
                    if room:
                        part = slice(place, place + room)
                        self._ledger.add(order, place, streams[part], values[part])
                        place += room
                        self._call.wake()
                    else:
                        self._freed.clear()
                        await self._freed.wait()
                        self._check()
            except BaseException:
                if not ticket.cancel():
                    ticket.exception()  # it is being raised
                self._ledger.leave(order, place)
                self._settle()
                raise
        self._settle()
        return ticket

    def _predictions(self, order: Order) -> Predictions:
        names = (output.name for output in self.model.outputs)
        outputs = dict(zip(names, order.outputs, strict=True))
        return Predictions(order.steps, outputs, order.durable_steps, order.duplicates, order.errors)

    def _check(self) -> None:
        """Raises what has ended the block, if anything has."""
        if self._lost is not None:
            self._told = True
            raise self._lost.with_traceback(None)  # or it would grow with every call that is made in vain
        if self._close_asked.is_set():
            raise StreamLost("the streams are being closed; open them again to go on")

    # The task ----------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keeps the streams open until they are closed; then says why to all that are left."""
        lost: ClientError = StreamLost("the streams are closed; open them again to go on")
        try:
            while not await self._speak():
                if not self._ledger.usable.any():
                    await self._close_asked.wait()
                    break
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
        self._stop_waits()
        for order in self._ledger.clear():
            if not order.ticket.done():
                order.ticket.set_exception(lost)
                self._told = True
        self._freed.set()
        self._ready.set()

    def _make_call(self) -> Call:
        self._to_close = None
        self._closes.clear()
        self._resumed = False
        self._ledger.cut()
        if self._forgetting:
            self._ledger.begin_again(np.flatnonzero(self._ledger.usable))
        self._roster.begin(forgetting=self._forgetting)
        return Call(self._connection.stub.PredictBlocks, None, self._next_request, self._backoff.sleep)

    async def _speak(self) -> bool:
        """One call from its open to its end; True when the streams are closed, False when they shall be opened again."""
        call = self._call
        call.cut_after(self._limits.timeout_s, "answer to open")
        try:
            while not self._take_in(call, await call.read()):
                pass
            await call.finish(self._limits.timeout_s)
        except CallEnded as ended:
            call.cut(ended.error)  # it may be this side that will have no more of it
            self._stop_waits()
            if not self._ledger.usable.any():
                return False
            await self._patience.wait(ended.error, repr(self), opened=self._ready.is_set())
            return False
        return True

    def _take_in(self, call: Call, response: pb.PredictBlocksResponse) -> bool:
        """One response; True when it is the last. Kinds that this client does not know mean nothing to it."""
        kind = response.WhichOneof("kind")
        over = False
        if kind == "block":
            self._answered(call, response.block)
        elif kind == "durable":
            handles, durable_steps = decode_durable(response.durable)
            self._ledger.durable(self._roster.streams(handles), durable_steps)
        elif kind == "opened":
            self._opened(call, response.opened)
        elif kind == "ended":
            streams = self._roster.streams(np.array(response.ended.handles, np.int64))
            self._ended(streams, ending_of(response.ended.error, StreamLost))
        elif kind == "move":
            log.info("%r is asked to move: %s", self, response.move.message)
            call.half_close()
            call.cut_after(self._limits.timeout_s, "end of the call after move")
        elif kind == "closed":
            over = self._closed(response.closed)
        self._settle()
        self._freed.set()
        if self._ledger.unsent or self._roster.opening or self._close_asked.is_set():
            call.wake()  # an answer makes room for what is next
        return over

    def _settle(self) -> None:
        """Gives callers what they wait for, unless they have gone."""
        done, self._ledger.done = self._ledger.done, []
        for order in done:
            if not order.ticket.done():
                order.ticket.set_result(order)
            elif order.errors:
                row, error = next(iter(order.errors.items()))
                log.warning(
                    "%d of %d timesteps, whose caller has gone, were refused; row %d: %s",
                    len(order.errors), len(order.steps), row, error,
                )  # fmt: skip

    def _lose(self, errors: Mapping[int, ClientError]) -> None:
        """These streams can no longer be used; the others go on."""
        errors = {stream: error for stream, error in errors.items() if self._ledger.usable[stream]}
        if not errors:
            return
        self._ledger.lose(errors)
        for stream, error in errors.items():
            (self.lost if self._roster.kinds[stream] else self.refused)[stream] = error
        stream, error = next(iter(errors.items()))
        log.warning("%r: %d streams are lost; %s: %s", self, len(errors), self._roster.stream_ids[stream], error)

    def _ended(self, streams: Ints, error: ClientError) -> None:
        """The server says that streams no longer belong to this call."""
        if error.action in AGAIN:
            raise CallEnded(error)
        self._lose(dict.fromkeys(streams.tolist(), error))

    def _next_request(self) -> pb.PredictBlocksRequest | None:
        """What to send now."""
        if (ask := self._roster.take()) is not None:
            self._call.cut_after(self._limits.timeout_s, "answer to open")
            return pb.PredictBlocksRequest(open=ask)
        if (parcel := self._ledger.take(self._rows_max)) is not None:
            return pb.PredictBlocksRequest(block=encode_block(parcel, self._roster.handles(parcel.streams)))
        return self._next_close()

    def _later(self, call: Call, seconds: float, then: Callable[[], None]) -> None:
        """Does something after a while, unless the call has ended by then."""

        async def wait() -> None:
            await self._backoff.sleep(seconds)
            then()
            call.wake()

        task = asyncio.create_task(wait())
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    def _stop_waits(self) -> None:
        for task in self._waits:
            task.cancel()

    # Opening -----------------------------------------------------------------------------------------------------------

    @property
    def _forgetting(self) -> bool:
        """Whether only the drop of open streams is left to do: then it matters no more what the server still has."""
        return self._ready.is_set() and self._close_asked.is_set() and self._forget and not self._ledger.waiting

    def _opened(self, call: Call, message: pb.OpenedStreams) -> None:
        call.spare()
        opened = self._roster.opened(message)
        if len(opened.streams):
            self._check_model(message)
            self._ledger.opened(opened.streams, opened.next_steps, opened.durable_steps, message.answers_remembered)
            self._shortage.over(opened.streams, np.zeros(len(opened.streams), np.int64))
        self._not_opened(call, opened.refused)
        if not (self._roster.opening or self._resumed):
            self._all_opened()
        if not self._ready.is_set() and np.all(self._ledger.begun | ~self._ledger.usable):
            self._ready.set()

    def _all_opened(self) -> None:
        """Every stream has been asked for on this call."""
        self._resumed = True
        self._patience.opened()
        if self._ready.is_set():
            self.reconnects += 1
            log.info("%r is open again", self)
        if not self._ready.is_set() or (self._ledger.idle and not self._close_asked.is_set()):
            self._patience.rest()

    def _check_model(self, message: pb.OpenedStreams) -> None:
        """Takes in what runs the streams; raises when it is not what ran them before."""
        model = model_of(message.model)
        if not hasattr(self, "model"):
            self.model = model
            self._roster.ask.model, self._roster.ask.version = model.name, model.version
        else:
            check_same("the streams", self.model, message.model)
        self._comparable = model.batch_invariant
        self._rows_max = rows_max(model, message.message_bytes_max)

    def _not_opened(self, call: Call, refused: Mapping[int, pb.Error]) -> None:
        """Decides about streams whose open was refused: to wait, or to do without."""
        if not refused:
            return
        errors = {stream: ending_of(error, StreamRefused) for stream, error in refused.items()}
        for error in errors.values():
            if error.action == pb.Error.ACTION_REOPEN:
                raise CallEnded(error)
        again = [stream for stream, error in errors.items() if error.action == pb.Error.ACTION_RETRY]
        streams = np.array(again, np.int64)
        limit_s = self._limits.reconnect_s
        if not self._ready.is_set():
            limit_s = min(limit_s, self._limits.timeout_s)
        patient = self._shortage.may_wait(streams, np.zeros(len(streams), np.int64), limit_s)
        if len(waiting := streams[patient]):
            wait_s = self._backoff.not_before_s(max(errors[stream].retry_after_s for stream in waiting.tolist()))
            self._later(call, wait_s, lambda: self._roster.open_again(waiting))
        gone = set(errors) - set(waiting.tolist())
        forgotten = {stream for stream in gone if self._forgetting and isinstance(errors[stream], StreamNotFound)}
        self._ledger.closed(np.array(sorted(forgotten), np.int64))
        self._lose({stream: errors[stream] for stream in sorted(gone - forgotten)})

    # Answers -----------------------------------------------------------------------------------------------------------

    def _answered(self, call: Call, answer: pb.PredictedBlock) -> None:
        parcel = self._ledger.due(answer.block)
        if answer.HasField("refused"):
            self._follow(call, self._refusals.of_all(parcel, answer.refused))
            return
        answers = decode_answers(parcel, self.model, answer)
        heard = self._ledger.predicted(parcel, answers, comparable=self._comparable)
        self._lose(heard.diverged)
        applied = (parcel.at >= 0) & ~answers.refused
        self._shortage.over(parcel.streams[applied], parcel.steps[applied])
        if len(rows := heard.refused[self._ledger.usable[parcel.streams[heard.refused]]]):
            errors = {row.row: row.error for row in answer.errors}
            self._follow(call, self._refusals.of_rows(parcel, rows, [errors[row] for row in rows.tolist()]))
        if heard.fresh or self._ledger.idle:
            self._patience.get_on()

    def _follow(self, call: Call, decision: Decision) -> None:
        """Does what was decided about refused timesteps."""
        self._lose(decision.lost)
        if len(decision.held):
            wait_s = self._backoff.not_before_s(decision.retry_after_s)
            self._later(call, wait_s, lambda: self._ledger.release(decision.held))
        if decision.told:
            self._patience.get_on()

    # Closing -----------------------------------------------------------------------------------------------------------

    def _next_close(self) -> pb.PredictBlocksRequest | None:
        """Closes what is open, once there is nothing else to do."""
        if not self._close_asked.is_set() or self._roster.opening or not self._ledger.idle:
            return None
        if self._to_close is None:
            streams = np.flatnonzero(self._ledger.usable)
            if len(self._ledger.open) < len(streams):
                return None  # some wait to be opened
            lot = self._roster.handles_max
            self._to_close = deque(streams[place : place + lot] for place in range(0, len(streams), lot))
        if len(self._to_close) < 2:
            self._call.half_close()  # nothing may follow
        if not self._to_close:
            self._call.cut_after(self._limits.timeout_s, "end of the call")
            return None
        self._closes.append(self._to_close.popleft())
        handles = self._roster.handles(self._closes[-1]).tolist()
        return pb.PredictBlocksRequest(close=pb.CloseStreams(handles=handles, forget=self._forget))

    def _closed(self, message: pb.ClosedStreams) -> bool:
        """Whether that is the end: everything is stored, or forgotten as was asked."""
        if not self._closes:
            raise CallEnded(ServerUnavailable("the server closed streams without being asked", "OK"))
        streams = self._closes.popleft()
        durable_steps = np.array(message.durable_steps, np.int64)
        if len(durable_steps) != len(streams):
            raise StreamLost(
                f"the server closed {len(durable_steps)} streams, asked were {len(streams)}", "WRONG_ORDER"
            )
        errors = {int(streams[row.row]): ending_of(row.error, StreamLost) for row in message.errors}
        self._ledger.durable(streams, durable_steps)
        stored = (self._ledger.durable_steps[streams] >= self._ledger.answered[streams]) | self._forget
        gone = [stream for stream, error in errors.items() if self._forget and isinstance(error, StreamNotFound)]
        closed = (stored & ~np.isin(streams, list(errors))) | np.isin(streams, gone)
        self._ledger.closed(streams[closed & self._ledger.usable[streams]])
        self._lose({stream: error for stream, error in errors.items() if error.action not in AGAIN})
        if self._closes or self._to_close:
            return False
        if left := np.count_nonzero(self._ledger.usable):
            raise CallEnded(
                ServerUnavailable(
                    f"the server closed the streams, and {left} of them are not stored as far as they were answered",
                    "STORE_UNAVAILABLE",
                )
            )
        return True
