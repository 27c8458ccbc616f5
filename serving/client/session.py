"""All streams of a client on one call. A session reopens a broken call, and delivers each prediction once and in order.

What to send and whose an answer is, `tidegate.client.window` decides; `tidegate.client.members` opens streams;
`tidegate.client.call` speaks; here the call is kept open, and streams are closed. Streams join and leave it at any time.

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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tidegate.client.buffer import Buffer
from tidegate.client.call import Call, CallEnded
from tidegate.client.connection import Connection
from tidegate.client.errors import AGAIN, ClientError, ServerUnavailable, StreamLost, StreamNotFound, ending_of, lost_by
from tidegate.client.members import FRAME_BYTES, Member, Members, View
from tidegate.client.message import SingleMessage
from tidegate.client.refusals import Decision, Refusals
from tidegate.client.results import Delivery, Group, Waiter, deliver
from tidegate.client.retry import Limits, tried_for
from tidegate.client.wire import decode_answers, decode_durable, encode_block, encode_single
from tidegate.v1 import tidegate_pb2 as pb

log = logging.getLogger("tidegate.client")

# A message costs both sides as much as some tens of rows. Measured with a server on another core: 128 streams make 1.35 times the
# steps so, 1,000 streams 1.7 times.
HALVED_ROWS_MIN = 32
# As many as the protocol allows a message, and what one takes at most.
HANDLES_MAX = 65_536
HANDLE_BYTES = 5
# The number by which `Shortage` knows a stream that could not be closed; others are of timesteps.
CLOSE = -2


class Session(Members):
    """The streams of a client that share a call."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        super().__init__(connection, limits, self._deliver)
        self._refusals = Refusals(self.window, self._shortage, limits.reconnect_s)
        self.check = connection.check
        # A method that is looked up once: the running loop costs more to find than a future to make.
        self._loop = asyncio.get_running_loop()
        self.future: Callable[[], asyncio.Future[Any]] = self._loop.create_future
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Session of {len(self._members)} streams, {self._calls} calls, {self.window!r}>"

    # What views want ---------------------------------------------------------------------------------------------------

    def join(self, ask: pb.OpenStreams, stream_ids: Sequence[str], view: View) -> list[Member]:
        """Opens streams. `view` is told what becomes of each."""
        streams = self.window.join(len(stream_ids))
        until = self._backoff.clock() + self.limits.open_s
        members = [
            Member(stream, stream_id, ask, view, place, until)
            for place, (stream, stream_id) in enumerate(zip(streams.tolist(), stream_ids, strict=True))
        ]
        self._members.update(zip(streams.tolist(), members, strict=True))
        self._to_open.extend(streams.tolist())
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self.wake()
        return members

    def add(self, buffer: Buffer, stream: int, values: bytes, waiter: Waiter, group: Group | None = None) -> None:
        """Sends a timestep of a usable stream for which there is room."""
        self.window.add_single(buffer, stream, values, waiter, group)
        if self._call is not None:
            self._call.wake()

    def close(self, members: Sequence[Member], *, forget: bool) -> None:
        """Closes streams as soon as everything of them is answered; their view is told. Does nothing with those that were left."""
        for member in members:
            member.forget = forget
            self._to_close.update([member.stream] if self._in_use(member) else [])
        self.wake()

    def leave(self, members: Sequence[Member]) -> None:
        """Nobody uses these streams any more. Those that are open are closed in the background, and parked by the server."""
        streams = [member.stream for member in members if self._members.get(member.stream) is member]
        handles = [handle for handle in self.window.handles[streams].tolist() if handle]
        self._left += handles
        left = StreamLost("the stream was left; open it again to go on")
        self.window.lose({stream: left for stream in streams if self.window.usable[stream]}, whole=True)
        for stream in streams:
            self._to_close.discard(stream)
            self._shortage.over(stream)  # another will have its index
            self._breaks.forget(stream)
            name = self._members.pop(stream).stream_id
            if self._by_name.get(name) == stream:
                del self._by_name[name]
        self.window.leave(np.array(streams, np.int64))
        self._free()
        if (handles or self._opening) and not self.window.in_use and self._call is not None:
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
        self._fail(StreamLost("the client was closed; make another one to go on"), self._members)

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
                self._fail(StreamLost("the client's task was cancelled; open the stream again to go on"), self._members)
                raise
            except ClientError as error:
                self._fail(error, self._members)
            except Exception as bug:  # noqa: BLE001 - whatever it is, nobody may wait for ever
                self._fail(lost_by(bug), self._members)
            finally:
                self._end_call()
        self._task = None

    async def _speak(self) -> None:
        """One call from its open to its end.

        Raises:
            CallEnded: it ended with streams that can still be used.

        """
        self._begin_call()
        again = any(member.kind for member in self._members.values())
        call = self._call = Call(self._connection.stub.PredictBlocks, self._next_request, again=again)
        try:
            while self.window.in_use or self._closing:
                self._take_in(call, await call.read())
        except CallEnded as ended:
            call.cut(ended.error)  # it may be this side that will have no more of it
            raise
        await call.finish(self.limits.timeout_s)

    async def _try_again(self, error: ClientError) -> None:
        """Waits before the next call; those for which that is of no use are lost."""
        again = error.action in AGAIN
        late = self._breaks.note(self._backoff.clock(), self._retry.tries, self.limits.reconnect_s)
        self._fail(tried_for(error, self.limits.reconnect_s), late)
        self.window.cut()
        asks = {id(member.ask) for member in self._opening if not member.kind}
        if asks and not again:
            # The server ended the call for what was asked about these; the others try again at once.
            self._fail(error, [m.stream for m in self._members.values() if id(m.ask) in asks and not m.kind])
            return
        self._end_call()
        try:
            await self._retry.wait(error, repr(self), self._give_up)
        except ClientError as final:
            now = self._backoff.clock()
            self._fail(final, [m.stream for m in self._members.values() if not again or m.kind or m.until <= now])
            self._retry.rest()

    def _give_up(self, error: ClientError, now: float) -> float:
        """Gives up on first opens that were tried for too long; gives when the next is to be given up, `now` when nothing is left."""
        waiting = {member.stream: member.until for member in self._usable() if not member.kind}
        late = [stream for stream, until in waiting.items() if until <= now]
        if late:
            self._fail(tried_for(error, self.limits.open_s), late)
        if not self.window.in_use:
            return now
        return min((until for until in waiting.values() if until > now), default=float("inf"))

    def _get_on(self) -> None:
        """There was an answer that somebody waited for."""
        self._retry.get_on()
        self._breaks.get_on()

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

    # What is sent and what comes back ----------------------------------------------------------------------------------

    def _next_request(self) -> pb.PredictBlocksRequest | None:
        """What to send now."""
        assert self._call is not None
        if self._to_open and (ask := self.take()) is not None:
            self._call.cut_after(self.limits.timeout_s, "answer to open")
            return pb.PredictBlocksRequest(open=ask)
        if self.window.unsent and (message := self.window.take()) is not None:
            if isinstance(message, SingleMessage):
                return encode_single(message, self.window.handles.item(message.stream))
            return encode_block(message, self.window.handles[message.streams])
        if (self._to_close or self._left) and (close := self._next_close()) is not None:
            self._call.cut_after(self.limits.timeout_s, "answer to close")
            return pb.PredictBlocksRequest(close=close)
        return None

    def _take_in(self, call: Call, response: pb.PredictBlocksResponse) -> None:
        """One response. Kinds that this client does not know mean nothing to it."""
        kind = response.WhichOneof("kind")
        if kind == "block":
            self._answered(response.block)
        elif kind == "durable":
            handles, durable_steps = decode_durable(response.durable)
            ours, streams = self._streams_of(handles)
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
        if kind in ("opened", "closed") and not (self._opening or self._closing or call.over):
            call.spare()
        if self._freed:
            self._free()
        if self.window.unsent or self._to_close or self._left or self._to_open:
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
        errors = {row.row: row.error for row in block.errors}
        if message.repeats:
            self._follow(self._refusals.of_repeats(message, answers, errors))
            return
        heard = self.window.predicted(message, answers)
        self._lose(heard.diverged)
        if self._shortage.short:
            applied = (message.at >= 0) & ~answers.refused
            for stream, step in zip(message.streams[applied].tolist(), message.steps[applied].tolist(), strict=True):
                self._shortage.over(stream, step)
        if len(rows := heard.refused[self.window.usable[message.streams[heard.refused]]]):
            self._follow(self._refusals.of_rows(message, rows, [errors[row] for row in rows.tolist()]))
        if heard.fresh or self.window.quiet:
            self._get_on()

    def _follow(self, decision: Decision) -> None:
        """Does what was decided about refused timesteps."""
        self._lose(decision.lost, whole=decision.whole)
        if len(decision.held):
            wait_s = self._backoff.not_before_s(decision.retry_after_s)
            self._later(wait_s, lambda: self.window.release(decision.held))
        if decision.told:
            self._get_on()

    def _ended(self, message: pb.EndedStreams) -> None:
        """The server says that streams no longer belong to this call."""
        error = ending_of(message.error, StreamLost)
        if error.action in AGAIN:
            raise CallEnded(error)
        _, streams = self._streams_of(np.array(message.handles, np.int64))
        self.window.handles[streams] = 0
        self._lose(dict.fromkeys(streams.tolist(), error))

    # Closing -----------------------------------------------------------------------------------------------------------

    def _next_close(self) -> pb.CloseStreams | None:
        """The close to send now: of streams of which everything is answered, or that nobody uses any more."""
        handles_max = max(1, min(HANDLES_MAX, (self._message_bytes_max - FRAME_BYTES) // HANDLE_BYTES))
        if self._left:
            handles, self._left = self._left[:handles_max], self._left[handles_max:]
            self._closing.append([])
            return pb.CloseStreams(handles=handles, independent=True)
        streams = np.array(sorted(self._to_close), np.int64)
        idle = [self._members[s] for s in streams[self.window.open[streams] & self.window.idle(streams)].tolist()]
        if not idle:
            return None
        lot = [member for member in idle if member.forget == idle[0].forget][:handles_max]
        streams = np.array([member.stream for member in lot], np.int64)
        self._to_close.difference_update(streams.tolist())
        self._closing.append(lot)
        return pb.CloseStreams(
            handles=self.window.handles[streams].tolist(), forget=bool(lot[0].forget), independent=True
        )

    def _closed(self, message: pb.ClosedStreams) -> None:
        """Everything of some streams is stored, or they were forgotten as was asked, or could not be closed.

        Raises:
            CallEnded: nothing was asked, or some are to be opened again, since less is stored than was answered.
            StreamLost: the answer does not fit what was asked.

        """
        if not self._closing:
            raise CallEnded(ServerUnavailable("the server closed streams without being asked", "OK"))
        members = self._closing.popleft()
        if not members:
            return
        if len(message.durable_steps) != len(members):
            raise StreamLost(
                f"the server closed {len(message.durable_steps)} streams, asked were {len(members)}", "WRONG_ORDER"
            )
        errors = {row.row: ending_of(row.error, StreamLost) for row in message.errors}
        behind = 0
        finished: list[Member] = []
        for row, member in enumerate(members):
            if self._in_use(member):
                self.window.durable(np.array([member.stream]), np.array([message.durable_steps[row]]))
                behind += not self._close_one(member, errors.get(row), finished)
        self._finish(finished)
        if behind:
            raise CallEnded(
                ServerUnavailable(
                    f"the server closed the streams, and {behind} of them are not stored as far as they were answered",
                    "STORE_UNAVAILABLE",
                )
            )

    def _close_one(self, member: Member, error: ClientError | None, finished: list[Member]) -> bool:
        """Does what the answer to the close of a stream says, or puts it to those that are; False when it is to be opened again."""
        stream, reconnect_s = member.stream, self.limits.reconnect_s
        if error is None:
            self.window.handles[stream] = 0
            if not member.forget and self.window.durable_steps[stream] < self.window.answered[stream]:
                return False
            finished.append(member)
        elif member.forget and isinstance(error, StreamNotFound):
            finished.append(member)
        elif error.action == pb.Error.ACTION_REOPEN:
            return False
        elif error.action != pb.Error.ACTION_RETRY:
            self._lose({stream: error})
        elif self._shortage.may_wait(stream, CLOSE, reconnect_s):
            wait_s = self._backoff.not_before_s(error.retry_after_s)
            self._later(wait_s, partial(self.close, [member], forget=bool(member.forget)))
        else:
            self._lose({stream: tried_for(error, reconnect_s)})
        return True
