"""All streams of a client on one call that survives it: timesteps go out, each prediction comes back once and in order.

What to send and whose an answer is, `serving.client.window` decides; which streams are open, `serving.client.members` knows;
`serving.client.call` speaks; here the call is kept open. Streams join and leave it at any time.

Laws:
1. One task a session reads, opens again and decides. A caller that is cancelled touches no call.
2. What concerns one stream touches no other: it is refused, held back or lost alone.
3. What concerns the call (it breaks, or the server does not keep to the protocol) concerns all.
4. The task never dies in silence: whatever ends it is raised to all who wait, to the next `step`, or by `close`.
5. What callers submit in one turn of the loop leaves in one message. While one is being written, the next gathers. There is no timer.
6. Everything has a bound: a first open `timeout_s`, breaks and refusals `reconnect_s` (a try that began within it may finish),
   timesteps that are kept `buffer_max`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client.breaks import Breaks
from serving.client.buffer import Buffer
from serving.client.call import Call, CallEnded
from serving.client.closing import Closing
from serving.client.connection import Connection
from serving.client.errors import (
    AGAIN,
    ClientError,
    ModelMismatch,
    ServerUnavailable,
    StreamLost,
    StreamNotFound,
    StreamRefused,
    TakenOver,
    ending_of,
    lost_by,
)
from serving.client.members import Member, Members, Opened, View
from serving.client.message import SingleMessage
from serving.client.refusals import Decision, Refusals
from serving.client.results import Delivery, Group, Waiter, deliver
from serving.client.retry import Backoff, Limits, Retry, Shortage, tried_for
from serving.client.types import difference, model_of
from serving.client.window import Window
from serving.client.wire import decode_answers, decode_durable, encode_block, encode_single, rows_max
from serving.core.spec import Ints

log = logging.getLogger("tidegate.client")

# A message costs both sides as much as some tens of rows. Measured with a server on another core: 128 streams make 1.35 times the
# steps so, 1,000 streams 1.7 times.
HALVED_ROWS_MIN = 32
# A call never gives a handle twice, and has 2 ** 20 of them; one that has given so many is replaced.
HANDLES_A_CALL_MAX = 1_000_000


class Session:
    """The streams of a client that share a call.

    Attributes:
        window: the books.

    """

    def __init__(self, connection: Connection, limits: Limits, backoff: Backoff) -> None:
        self.window = Window(limits.buffer_max, self._deliver)
        self.limits = limits
        self.backoff = backoff
        self._connection = connection
        self._members = Members(self.window)
        self._retry = Retry(limits, backoff, connection.may_be_up)
        self._shortage = Shortage(backoff)
        self._refusals = Refusals(self.window, self._shortage, limits.reconnect_s)
        self._freed: set[asyncio.Future[None]] = set()  # who waits for room
        self._closing = Closing(self.window, self._members, self._shortage, limits.reconnect_s)
        self._breaks = Breaks(self.window)
        self._waits: set[asyncio.Task[None]] = set()
        self._calls = 0
        # A method that is looked up once: the running loop costs more to find than a future to make.
        self._loop = asyncio.get_running_loop()
        self.future: Callable[[], asyncio.Future[Any]] = self._loop.create_future
        self._call: Call | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Session of {len(self._members)} streams, {self._calls} calls, {self.window!r}>"

    # What views want ---------------------------------------------------------------------------------------------------

    def join(self, ask: pb.OpenStreams, stream_ids: Sequence[str], view: View) -> Ints:
        """Opens streams; gives their indices. `view` is told what becomes of each."""
        streams = self.window.join(len(stream_ids))
        until = self.backoff.clock() + self.limits.open_s
        for place, (stream, stream_id) in enumerate(zip(streams.tolist(), stream_ids, strict=True)):
            self._members.all[stream] = Member(stream, stream_id, ask, view, place, until)
        self._members.open(streams.tolist())
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self.wake()
        return streams

    def check(self) -> None:
        """Raises WrongProcess in a process that was forked from the one that made the client."""
        self._connection.check()

    def has(self, stream_id: str) -> bool:
        """Whether a stream of that name is open."""
        return stream_id in self._members.by_name

    def member(self, stream: int) -> Member:
        """What is known of a stream."""
        return self._members[stream]

    def add(self, buffer: Buffer, stream: int, values: bytes, waiter: Waiter, group: Group | None = None) -> None:
        """Sends a timestep of a usable stream for which there is room."""
        self.window.add_single(buffer, stream, values, waiter, group)
        if self._call is not None:
            self._call.wake()

    def wake(self) -> None:
        """Something was put into the books."""
        if self._call is not None:
            self._call.wake()

    async def room(self) -> None:
        """Waits until there may be room for more, or something has ended."""
        freed: asyncio.Future[None] = self.future()
        self._freed.add(freed)
        try:
            await freed
        finally:
            self._freed.discard(freed)

    def close(self, members: Sequence[Member], *, forget: bool) -> None:
        """Closes streams as soon as everything of them is answered; their view is told. Does nothing with those that were left."""
        for member in members:
            member.forget = forget
        self._closing.add(members)
        self.wake()

    def leave(self, members: Sequence[Member]) -> None:
        """Nobody uses these streams any more. Those that are open are closed in the background, and parked by the server."""
        streams = np.array([member.stream for member in members if self._members.is_ours(member)], np.int64)
        handles = self._members.handles(streams)
        self._closing.leave(handles[handles > 0].tolist())
        usable = streams[self.window.usable[streams]].tolist()
        left = StreamLost("the stream was left; open it again to go on")
        self.window.lose(dict.fromkeys(usable, left), whole=True)
        self._closing.discard(streams.tolist())
        for stream in streams.tolist():
            self._shortage.over(stream)  # another will have its index
            self._breaks.forget(stream)
        self._members.drop(streams.tolist())
        self.window.leave(streams)
        self._free()
        if (len(handles.nonzero()[0]) or self._members.opening) and not self.window.in_use and self._call is not None:
            # With the call the server parks all that it has open. Whoever joins before it has ended is opened on the next.
            self._call.cut(ServerUnavailable("all streams of the call were left", "CANCELLED"))
        self.wake()

    async def end(self) -> None:
        """Ends the call and the task; streams that are open are parked by the server."""
        if self._call is not None:
            self._call.cut(StreamLost("the streams were left"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail(StreamLost("the client was closed; make another one to go on"), self._usable())

    # The task ----------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keeps a call open for as long as there are streams."""
        while self.window.in_use:
            try:
                await self._speak()
            except CallEnded as ended:
                if self.window.in_use:
                    await self._try_again(ended.error)
            except asyncio.CancelledError:
                self._fail(
                    StreamLost("the client's task was cancelled; open the stream again to go on"), self._usable()
                )
                raise
            except ClientError as error:
                self._fail(error, self._usable())
            except Exception as bug:  # noqa: BLE001 - whatever it is, nobody may wait for ever
                self._fail(lost_by(bug), self._usable())
            finally:
                self._end_call()
        self._task = None

    async def _speak(self) -> None:
        """One call from its open to its end.

        Raises:
            CallEnded: it ended with streams that can still be used.

        """
        self._calls += 1
        self._closing.begin_call(self._usable())
        self.window.cut()
        self._members.begin()
        again = any(member.kind for member in self._members.all.values())
        call = self._call = Call(self._connection.stub.PredictBlocks, self._next_request, again=again)
        try:
            while self.window.in_use or self._closing.in_flight:
                self._take_in(call, await call.read())
        except CallEnded as ended:
            call.cut(ended.error)  # it may be this side that will have no more of it
            raise
        await call.finish(self.limits.timeout_s)

    def _end_call(self) -> None:
        if self._call is not None:
            self._call.cut(StreamLost("the call has ended"))
            self._call = None
        for task in self._waits:
            task.cancel()
        self._closing.end_call()
        self._members.end_call()

    async def _try_again(self, error: ClientError) -> None:
        """Waits before the next call; those for which that is of no use are lost."""
        late = self._breaks.note(self.backoff.clock(), self._retry.tries, self.limits.reconnect_s)
        self._fail(tried_for(error, self.limits.reconnect_s), np.array(late, np.int64))
        asks = {id(member.ask) for member in self._members.opening if not member.kind}
        self.window.cut()
        if error.action not in AGAIN and asks:
            # The server ended the call for what was asked about these; the others try again at once.
            asked = [
                member.stream for member in self._members.all.values() if id(member.ask) in asks and not member.kind
            ]
            self._fail(error, np.array(asked, np.int64))
            return
        self._end_call()
        try:
            await self._retry.wait(error, repr(self), self._give_up)
        except ClientError as final:
            usable = self._usable()
            lost = usable
            if error.action in AGAIN:
                now = self.backoff.clock()
                lost = np.array(
                    [
                        stream
                        for stream in usable.tolist()
                        if self._members[stream].kind or self._members[stream].until <= now
                    ],
                    np.int64,
                )
            self._fail(final, lost)
            self._retry.rest()

    def _get_on(self) -> None:
        """There was an answer that somebody waited for."""
        self._retry.get_on()
        self._breaks.get_on()

    def _give_up(self, error: ClientError, now: float) -> float:
        """Gives up on first opens that were tried for too long; gives when the next is to be given up, `now` when nothing is left."""
        waiting = {s: self._members[s].until for s in self._usable().tolist() if not self._members[s].kind}
        late = [stream for stream, until in waiting.items() if until <= now]
        if late:
            self._fail(tried_for(error, self.limits.open_s), np.array(late, np.int64))
        if not self.window.in_use:
            return now
        return min((until for until in waiting.values() if until > now), default=float("inf"))

    def _usable(self) -> Ints:
        """The streams that are in use."""
        return np.array([stream for stream in self._members.all if self.window.usable[stream]], np.int64)

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        """Does something after a while, unless the call has ended by then."""

        async def wait() -> None:
            await self.backoff.sleep(seconds)
            then()
            self.wake()

        self._keep(asyncio.create_task(wait()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        """Keeps a task until it has ended, or the call has."""
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    def _deliver(self, delivery: Delivery) -> None:
        """Gives callers their predictions.

        When there are many and nothing else is in flight, half of them go first: what those submit is on its way to the server, which
        would have nothing to do, while the others go on.
        """
        if len(delivery) >= HALVED_ROWS_MIN and not self.window.in_flight:
            half = len(delivery) // 2
            deliver(delivery[:half])
            self._loop.call_soon(deliver, delivery[half:])
        else:
            deliver(delivery)

    def _free(self) -> None:
        """Has those look again who wait for room."""
        for freed in self._freed:
            if not freed.done():
                freed.set_result(None)

    # What is sent ------------------------------------------------------------------------------------------------------

    def _next_request(self) -> pb.PredictBlocksRequest | None:
        """What to send now."""
        assert self._call is not None
        if self._members.to_open and (ask := self._members.take()) is not None:
            self._call.cut_after(self.limits.timeout_s, "answer to open")
            return pb.PredictBlocksRequest(open=ask)
        if self.window.unsent and (message := self.window.take()) is not None:
            if isinstance(message, SingleMessage):
                return encode_single(message, self._members.handle(message.stream))
            return encode_block(message, self._members.handles(message.streams))
        if self._closing.due and (close := self._closing.take()) is not None:
            self._call.cut_after(self.limits.timeout_s, "answer to close")
            return pb.PredictBlocksRequest(close=close)
        return None

    # What comes back ---------------------------------------------------------------------------------------------------

    def _take_in(self, call: Call, response: pb.PredictBlocksResponse) -> None:
        """One response. Kinds that this client does not know mean nothing to it."""
        kind = response.WhichOneof("kind")
        if kind == "block":
            self._answered(response.block)
        elif kind == "durable":
            handles, durable_steps = decode_durable(response.durable)
            ours, streams = self._members.streams(handles)
            self.window.durable(streams, durable_steps[ours])
        elif kind == "opened":
            self._opened(response.opened)
        elif kind == "ended":
            self._ended(response.ended)
        elif kind == "closed":
            self._closed(response.closed)
        elif kind == "move":
            log.info("%r is asked to move: %s", self, response.move.message)
            call.half_close()
            call.cut_after(self.limits.timeout_s, "end of the call after move")
        if kind in ("opened", "closed") and not (self._members.opening or self._closing.in_flight or call.over):
            call.spare()
        if self._freed:
            self._free()
        if self.window.unsent or self._closing.due or self._members.to_open:
            call.wake()  # an answer makes room for what is next

    def _answered(self, block: pb.PredictedBlock) -> None:
        message = self.window.due(block.block)
        if block.HasField("refused"):
            self._follow(self._refusals.of_all(message, block.refused))
            return
        if isinstance(message, SingleMessage) and not (block.errors or block.forgotten_rows or block.duplicate_rows):
            durable_step = int.from_bytes(block.durable_steps, "little")
            if self.window.predicted_alone(message, block.steps, block.outputs, durable_step):
                self._shortage.over(message.stream, message.step)
                self._get_on()
                return
        answers = decode_answers(message, message.buffer.model.outputs, block)
        if message.repeats:
            errors = {row.row: row.error for row in block.errors}
            self._follow(self._refusals.of_repeats(message, answers, errors))
            return
        heard = self.window.predicted(message, answers)
        self._lose(heard.diverged)
        if self._shortage.short:
            applied = (message.at >= 0) & ~answers.refused
            for stream, step in zip(message.streams[applied].tolist(), message.steps[applied].tolist(), strict=True):
                self._shortage.over(stream, step)
        if len(rows := heard.refused[self.window.usable[message.streams[heard.refused]]]):
            errors = {row.row: row.error for row in block.errors}
            self._follow(self._refusals.of_rows(message, rows, [errors[row] for row in rows.tolist()]))
        if heard.fresh or self.window.quiet:
            self._get_on()

    def _follow(self, decision: Decision) -> None:
        """Does what was decided about refused timesteps."""
        self._lose(decision.lost, whole=decision.whole)
        if len(decision.held):
            wait_s = self.backoff.not_before_s(decision.retry_after_s)
            self._later(wait_s, lambda: self.window.release(decision.held))
        if decision.told:
            self._get_on()

    def _ended(self, message: pb.EndedStreams) -> None:
        """The server says that streams no longer belong to this call."""
        error = ending_of(message.error, StreamLost)
        if error.action in AGAIN:
            raise CallEnded(error)
        _, streams = self._members.streams(np.array(message.handles, np.int64))
        self._members.let_go(streams)
        self._lose(dict.fromkeys(streams.tolist(), error))

    # Opening -----------------------------------------------------------------------------------------------------------

    def _opened(self, message: pb.OpenedStreams) -> None:
        opened = self._members.opened(message)
        self._closing.leave(opened.left)
        if len(opened.streams):
            self._begin(message, opened)
        self._not_opened(opened.refused)
        if not self._members.to_open:
            self._retry.opened()
            if self.window.quiet and not self._closing.waiting:
                self._retry.rest()
        if self._members.handles_given > HANDLES_A_CALL_MAX:
            raise CallEnded(ServerUnavailable("the call has given out all its handles", "OK"))

    def _begin(self, message: pb.OpenedStreams, opened: Opened) -> None:
        """Streams are open."""
        model = model_of(message.model)
        streams = opened.streams
        wrong: dict[int, ClientError] = {}
        for stream in streams[self.window.begun[streams]].tolist():
            member = self._members[stream]
            if (error := difference(f"stream '{member.stream_id}'", member.view.model, model)) is not None:
                wrong[stream] = error
        self.window.opened(streams, opened.next_steps, opened.durable_steps, message.answers_remembered)
        if held := self._breaks.to_hold(streams):
            self.window.hold(np.array(held, np.int64))
            self._later(self.backoff.longest_s, lambda: self.window.release(np.array(held, np.int64)))
        self._lose(wrong, whole=True)
        if len(wrong) == len(streams):
            return
        buffer = self.window.buffer_of(model, rows_max(model, message.message_bytes_max))
        for stream in streams.tolist():
            if stream in wrong:
                continue
            member = self._members[stream]
            self._shortage.over(stream, 0)
            member.ask.model, member.ask.version = model.name, model.version
            member.view.on_opened(member.place, buffer, self._calls)
            self._end_older(stream, member)

    def _end_older(self, stream: int, member: Member) -> None:
        """Another stream of this session under the same name has lost it to this one."""
        older = self._members.by_name.get(member.stream_id)
        self._members.by_name[member.stream_id] = stream
        if older is not None and older != stream and older in self._members.all and self.window.usable[older]:
            error = TakenOver(f"stream '{member.stream_id}' was opened again by this client", "TAKEN_OVER")
            self._lose({older: error})

    def _not_opened(self, refused: Mapping[int, pb.Error]) -> None:
        """Decides about streams whose open was refused: to wait, or to do without."""
        errors = {stream: ending_of(error, StreamRefused) for stream, error in refused.items()}
        waiting: list[int] = []
        lost: dict[int, ClientError] = {}
        for stream, error in errors.items():
            if error.action == pb.Error.ACTION_REOPEN:
                raise CallEnded(error)
            limit_s = self.limits.reconnect_s if self._members[stream].kind else self.limits.open_s
            if error.action == pb.Error.ACTION_RETRY and self._shortage.may_wait(stream, 0, limit_s):
                waiting.append(stream)
            elif isinstance(error, StreamNotFound) and self._members.forgetting(stream):
                self._finish(stream)
            elif (
                isinstance(error, ModelMismatch)
                and self._members[stream].view.alone
                and not self._members[stream].ask.version
            ):
                self._find_version(self._members[stream], error)
            else:
                lost[stream] = error
        if waiting:
            wait_s = self.backoff.not_before_s(max(errors[stream].retry_after_s for stream in waiting))
            self._later(wait_s, lambda: self._members.open([s for s in waiting if s in self._members.all]))
        self._lose(lost)

    def _find_version(self, member: Member, error: ClientError) -> None:
        """Opens a stream under the version that it runs under, since none was asked for."""

        async def find() -> None:
            request = pb.DescribeStreamRequest(stream_id=member.stream_id)
            try:
                found = (await self._connection.ask("DescribeStream", request, self.limits.timeout_s)).stream
            except ClientError:
                found = pb.Stream()
            if not self._members.is_ours(member) or not self.window.usable[member.stream]:
                return
            if found.version and member.ask.model in ("", found.model):
                member.ask.model, member.ask.version = found.model, found.version
                self._members.open([member.stream])
                self.wake()
            else:
                self._lose({member.stream: error})

        self._keep(asyncio.create_task(find()))

    # The end of streams ------------------------------------------------------------------------------------------------

    def _closed(self, message: pb.ClosedStreams) -> None:
        """Streams were closed, or could not be."""
        closed = self._closing.closed(message)
        for stream in closed.finished:
            self._finish(stream)
        self._lose(closed.lost)
        for member, error in closed.again.items():
            self._later(self.backoff.not_before_s(error.retry_after_s), partial(self._closing.add, [member]))
        if closed.behind:
            raise CallEnded(
                ServerUnavailable(
                    f"the server closed the streams, and {closed.behind} of them are not stored as far as they were answered",
                    "STORE_UNAVAILABLE",
                )
            )

    def _finish(self, stream: int) -> None:
        """A stream is closed as was asked."""
        self.window.closed(np.array([stream]))
        self._closing.discard([stream])
        self._members[stream].view.on_closed(self._members[stream].place)

    def _lose(self, errors: Mapping[int, ClientError], *, whole: bool = False) -> None:
        """These streams can no longer be used; the others go on."""
        errors = {stream: error for stream, error in errors.items() if self.window.usable[stream]}
        if not errors:
            return
        told = self.window.lose(errors, whole=whole)
        stream, error = next(iter(errors.items()))
        log.warning("%r: %d streams are lost; %s: %s", self, len(errors), self._members[stream].stream_id, error)
        for stream, error in errors.items():
            self._closing.discard([stream])
            member = self._members[stream]
            member.view.on_lost(member.place, error, told=stream in told, whole=whole)
        self._free()

    def _fail(self, error: ClientError, streams: Ints) -> None:
        """These streams can no longer be used, because the call cannot."""
        self._lose(dict.fromkeys(streams.tolist(), error), whole=True)
