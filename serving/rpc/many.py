"""What a call of many streams holds: how streams join and leave it, and what its client is told of them.

It does not know of blocks. Its laws:
1. Every lease that the call was given is in `_held` until it is let go, whatever ends the call.
2. One at a time writes: whoever does has `_writing`.
3. Of a stream whose handle the client does not have yet, it is told nothing but the answer to the open.
4. A handle is dropped only while no block is being answered: whoever does either has `_answering`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core.errors import InvalidField, TidegateError, TooManyStreams
from serving.core.handles import HANDLES_MAX, KEPT_MAX, Handles
from serving.core.spec import Ints, Key
from serving.core.stream_id import check_stream_id
from serving.core.streams import Lease
from serving.rpc import columns, wire
from serving.rpc.background import end_of
from serving.rpc.call import Call, Context, look_at
from serving.rpc.desk import DEFAULT_TENANT, CloseReason, Desk, ServedModel
from serving.rpc.share import Share
from serving.rpc.slices import Slices

T = TypeVar("T")

# Streams that are opened, woken or dropped side by side: their claims share commits of the store. More would only wait.
TOGETHER_MAX = 256
# Streams that one message may open or close: as many as a block has rows.
STREAMS_MAX = columns.ROWS_MAX
# Nothing is waited for: a client that has used up the handles of a call opens another, a stream that fell asleep is woken.
RETRY_AFTER_MS = 1


class ManyStreams(Call):
    """One call that holds many streams. Its live streams count for the `share` of its connection."""

    def __init__(self, desk: Desk, context: Context, share: Share, message_bytes_max: int) -> None:
        super().__init__(context)
        self._desk = desk
        self._message_bytes_max = message_bytes_max
        self._share = share
        self._held = Handles()
        self._sync: set[int] = set()  # handles of streams whose answers wait until they are durable
        self._unknown: set[int] = set()  # handles that are given, and not yet in the client's hands
        self._writing = asyncio.Lock()
        self._behind: asyncio.Task[None] | None = None  # the write that nobody waited for yet
        self._answering = asyncio.Lock()
        self._endings: list[tuple[int, TidegateError]] = []  # not told yet
        # One for all leases: a bound method of its own would cost each 64 bytes.
        self._notice_end = self._on_end
        self._notice_stored = self._on_stored
        self._stored = False  # something was, since the client was last told

    # Streams ----------------------------------------------------------------------------------------------------------

    async def _open(self, message: pb.OpenStreams) -> None:
        """Opens many streams, and answers. An independent message that makes no sense is refused; another ends the call."""
        try:
            sync = wire.decode_sync(message.durability)
            served = self._desk.model(message.model, message.version)
        except TidegateError as error:
            if not message.independent:
                raise
            refused = pb.OpenedStreams(refused=wire.encode_error(error, of_timestep=False))
            await self._write_whole(pb.PredictBlocksResponse(opened=refused).SerializeToString())
            return
        opened, errors = await self._open_rows(message, served, sync=sync)
        await self._write_whole(errors.append_to(pb.PredictBlocksResponse.OPENED_FIELD_NUMBER, opened))
        if message.independent:
            await self._catch_up(opened)

    async def _open_rows(
        self, message: pb.OpenStreams, served: ServedModel, *, sync: bool
    ) -> tuple[pb.OpenedStreams, wire.RowErrors]:
        """Opens the streams of a message, some side by side; gives the answer, and the rows that were refused."""
        count = len(message.stream_ids)
        resume_from = message.resume_from or [0] * count
        opened = pb.OpenedStreams(
            stream_ids=message.stream_ids,
            handles=[0] * count,
            kinds=[pb.Opened.KIND_UNSPECIFIED] * count,
            next_steps=[0] * count,
            epochs=[0] * count,
            durable_steps=[0] * count,
            model=wire.encode_model(served.spec, batch_invariant=served.batch_invariant),
            message_bytes_max=self._message_bytes_max,
        )
        errors = wire.RowErrors(pb.OpenedStreams.ERRORS_FIELD_NUMBER, of_timesteps=False)

        async def open_(row: int) -> None:
            key = Key(DEFAULT_TENANT, message.stream_ids[row])
            try:
                if key.stream_id:
                    check_stream_id(key.stream_id, "stream_ids")
                if self._held.full:
                    raise TooManyStreams("once opened", HANDLES_MAX, RETRY_AFTER_MS, holder="the call")
                ask = wire.make_ask(message.existence, message.owner, resume_from[row])
                with self._share.room(served.spec):
                    opening = await self._desk.open(key, served.spec.name, served.spec.version, ask)
            except TidegateError as error:
                errors.add(row, error, 0, 0)
                return
            # Nothing may come between: from here on the call lets go of what it holds.
            lease = opening.lease
            handle = self._held.add(lease, message.kept_max or KEPT_MAX)
            lease.on_end = self._notice_end
            if message.independent:
                self._unknown.add(handle)
            if sync:
                self._sync.add(handle)
            opened.stream_ids[row] = lease.stream.key.stream_id
            opened.handles[row] = handle
            opened.kinds[row] = wire.OPEN_KINDS[opening.kind]
            opened.next_steps[row] = opening.next_step
            opened.epochs[row] = lease.stream.epoch
            opened.durable_steps[row] = lease.durable_step
            opened.answers_remembered = opening.answers_remembered
            if opening.owner_changed:
                opened.owner_changed_rows.append(row)

        await together(open_, range(count))
        return opened, errors

    async def _catch_up(self, opened: pb.OpenedStreams) -> None:
        """Tells what has happened to streams before the client had their handles."""
        handles: list[int] = []
        steps: list[int] = []
        slices = Slices()
        for handle, step in zip(opened.handles, opened.durable_steps, strict=True):
            self._unknown.discard(handle)
            lease = self._held[handle]
            if lease is not None and lease.ended is not None:
                self._endings.append((handle, lease.ended))
                self._tell_soon()
            elif lease is not None and lease.durable_step > step:
                handles.append(handle)
                steps.append(lease.durable_step)
            await slices.rest()
        if handles:
            await self._write_whole(columns.encode_durable(np.array(handles), np.array(steps)))

    async def _close(self, message: pb.CloseStreams) -> None:
        """Ends many streams at their client's wish, once everything is stored, and answers."""
        count = len(message.handles)
        errors = wire.RowErrors(pb.ClosedStreams.ERRORS_FIELD_NUMBER, of_timesteps=False)
        closed = pb.ClosedStreams(steps=[0] * count, durable_steps=[0] * count)

        async def close(row: int) -> None:
            handle = message.handles[row]
            lease = self._held[handle]
            try:
                if lease is None:
                    raise InvalidField("handles", f"got {handle}, expected one that is open on this call")
                if lease.ended is not None:
                    raise lease.ended
                if message.forget:
                    closed.steps[row] = lease.stream.step if lease.stream.slot >= 0 else lease.durable_step
                    lease.on_end = None  # what ends it is the call's own doing
                    await self._desk.forget(lease)
                else:
                    await self._durable(handle)
                    closed.steps[row] = closed.durable_steps[row] = lease.durable_step
            except TidegateError as error:
                errors.add(row, error, 0, 0)
                if lease is None:
                    return
                if lease.ended is None:
                    lease.on_end = self._notice_end  # the stream is still open
                    return
            async with self._answering:
                self._let_go(handle, "forgotten" if message.forget else "closed")

        if not message.forget:
            await self._store_soon(message.handles)
        await together(close, range(count))
        await self._write_whole(errors.append_to(pb.PredictBlocksResponse.CLOSED_FIELD_NUMBER, closed))

    async def _durable(self, handle: int) -> None:
        """Waits until all of a stream is stored, if it is still the call's own."""
        lease = self._held[handle]
        if lease is not None and lease.ended is None and lease.stream.slot >= 0:
            await self._desk.durable(lease, lease.stream.step)

    async def _store_soon(self, handles: Iterable[int]) -> None:
        """Has streams stored at once, together, that will be waited for one after another."""
        slices = Slices()
        for handle in handles:
            lease = self._held[handle]
            if lease is not None:
                self._desk.store_soon(lease)
            await slices.rest()

    def _let_go(self, handle: int, reason: CloseReason) -> None:
        self._sync.discard(handle)
        lease = self._held.drop(handle)
        if lease is not None:
            lease.on_end = lease.on_durable = None
            self._desk.leave(lease, "taken_over" if lease.ended is not None and reason != "forgotten" else reason)

    # News -------------------------------------------------------------------------------------------------------------

    def _on_end(self, lease: Lease) -> None:
        assert lease.ended is not None
        if lease.handle not in self._unknown:  # else `_catch_up` tells it
            self._endings.append((lease.handle, lease.ended))
            self._tell_soon()

    def _on_stored(self) -> None:
        self._stored = True
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self.reading and self.telling is None:
            self.tell_beside(self._tell())

    async def _tell(self) -> None:
        """Tells what has happened since the client was last told."""
        while self._stored or self._endings:
            endings, self._endings = self._endings, []
            for some in columns.by_reason(endings).values():
                await self._write(columns.encode_ended([handle for handle, _ in some], some[0][1]))
            self._stored = False
            handles, steps = self._news()
            for first in range(0, len(handles), columns.ROWS_MAX):
                rows = slice(first, first + columns.ROWS_MAX)
                await self._write(columns.encode_durable(handles[rows], steps[rows]))

    def _news(self) -> tuple[Ints, Ints]:
        """Handles that the client has, of whose streams more is stored than it was told, and up to which timestep."""
        handles, steps = self._held.news()
        if self._unknown:
            known = ~np.isin(handles, np.fromiter(self._unknown, np.int64, len(self._unknown)))
            handles, steps = handles[known], steps[known]
        return handles, steps

    async def _write(self, response: bytes) -> None:
        """Writes a response when nobody else does."""
        async with self._writing:
            self._check_written()
            await self.context.write(response)

    async def _write_behind(self, response: bytes) -> None:
        """Begins to write a response when nobody else does; who writes next waits, and raises what this one did."""
        await self._writing.acquire()
        try:
            self._check_written()
        except BaseException:
            self._writing.release()
            raise
        self._behind = asyncio.create_task(self._write_and_release(response))

    async def _write_and_release(self, response: bytes) -> None:
        try:
            await self.context.write(response)
        finally:
            self._writing.release()

    def _check_written(self) -> None:
        """Raises what the last `_write_behind` raised."""
        if self._behind is not None and self._behind.done():
            behind, self._behind = self._behind, None
            behind.result()

    async def _behind_ended(self) -> None:
        """Waits until nothing is being written behind, also when the call is cancelled once more."""
        if self._behind is not None:
            self._behind.add_done_callback(look_at)
            await end_of(self._behind)

    async def _write_whole(self, response: bytes) -> None:
        """As `_write`; who is cancelled meanwhile waits until it is written: gRPC bears no write beside one that was given up."""
        writing = asyncio.create_task(self._write(response))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(look_at)
            await asyncio.wait([writing])
            raise


def check_open(message: pb.OpenStreams) -> None:
    """Raises InvalidField when a message is none that a client may send."""
    count = len(message.stream_ids)
    if count > STREAMS_MAX:
        raise InvalidField("stream_ids", f"got {count}, expected at most {STREAMS_MAX}; send several messages")
    if message.resume_from and len(message.resume_from) != count:
        raise InvalidField("resume_from", f"got {len(message.resume_from)}, expected none or {count}")


def check_close(message: pb.CloseStreams) -> None:
    """Raises InvalidField when a message is none that a client may send."""
    count = len(message.handles)
    if count > STREAMS_MAX:
        raise InvalidField("handles", f"got {count}, expected at most {STREAMS_MAX}; send several messages")


async def together(do: Callable[[T], Awaitable[None]], items: Sequence[T]) -> None:
    """Does something for each, some side by side, begun in their order."""
    left = iter(items)
    slices = Slices()

    async def work() -> None:
        for item in left:
            await do(item)
            await slices.rest()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(TOGETHER_MAX, len(items))):
            group.create_task(work())
