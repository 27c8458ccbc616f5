"""The streams of a `PredictBlocks` call: how they are opened and closed, and what the client is told about them.

This module does not know blocks. Its rules:
1. `_handles` has every lease of the call until it is released, however the call ends.
2. One task writes at a time. It holds the lock `_writing`.
3. A client that does not have a stream's handle yet is told nothing about the stream but the answer to the open.
4. A handle is removed only while no block is being answered. Both hold the lock `_answering`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from tidegate.core.access import Caller
from tidegate.core.errors import InvalidField, TidegateError, TooManyStreams
from tidegate.core.handle_table import CLIENT_BUFFER_DEFAULT, HANDLES_MAX, HandleTable
from tidegate.core.spec import Ints, Key, ModelId
from tidegate.core.stream_id import check_stream_id
from tidegate.core.streams import Lease
from tidegate.core.swap_policy import Moved
from tidegate.rpc import columns, wire
from tidegate.rpc.backend import Access, CloseReason, ModelInfo, OpenResult, StreamBackend
from tidegate.rpc.background_queue import wait_for_end
from tidegate.rpc.call import Call, Context, log_failure
from tidegate.rpc.status import next_step_of
from tidegate.rpc.stream_quota import StreamQuota
from tidegate.rpc.time_slice import TimeSlice
from tidegate.v1 import tidegate_pb2 as pb

T = TypeVar("T")

# How many streams are opened, woken or closed concurrently. Their claims share commits of the store; more would only
# wait.
CONCURRENT_MAX = 256
# How many streams one message may open or close: as many as a block has rows.
STREAMS_MAX = columns.ROWS_MAX
# No wait is needed: when a call has no handles left, the client opens another call, and a parked stream is woken.
RETRY_AFTER_MS = 1


class MultiStreamCall(Call):
    """A call with many streams. Its live streams count towards the quota of its connection."""

    def __init__(
        self,
        backend: StreamBackend,
        access: Access,
        context: Context,
        caller: Caller,
        quota: StreamQuota,
        message_bytes_max: int,
    ) -> None:
        super().__init__(context, caller)
        self._backend = backend
        self._access = access
        self._message_bytes_max = message_bytes_max
        self._quota = quota
        self._handles = HandleTable()
        self._sync: set[int] = set()  # handles of streams whose answers wait until they are durable
        self._unreported: set[int] = set()  # handles that were assigned and not yet sent to the client
        self._writing = asyncio.Lock()
        self._write_task: asyncio.Task[None] | None = None  # the last write that nobody has waited for
        self._answering = asyncio.Lock()
        self._endings: list[tuple[int, TidegateError]] = []  # not sent yet
        self._moves: list[tuple[int, Moved]] = []  # not sent yet
        # The same objects for all leases: a bound method for each lease would cost 64 bytes.
        self._end_callback = self._on_end
        self._stored_callback = self._on_stored
        self._stored = False  # something was stored since the last notification

    # Streams ----------------------------------------------------------------------------------------------------------

    async def _open(self, message: pb.OpenStreams) -> None:
        """Opens many streams and answers. An invalid message is refused if it is independent; else it ends the call."""
        try:
            sync = wire.decode_sync(message.durability)
            served = await self._backend.model(message.model, message.version)
        except TidegateError as error:
            if not message.independent:
                raise
            refused = pb.OpenedStreams(refused=wire.encode_error(error, of_timestep=False))
            await self._write_shielded(pb.PredictBlocksResponse(opened=refused).SerializeToString())
            return
        opened, errors = await self._open_rows(message, served, sync=sync)
        await self._write_shielded(errors.append_to(pb.PredictBlocksResponse.OPENED_FIELD_NUMBER, opened))
        if message.independent:
            await self._report_missed(opened)

    async def _open_rows(
        self, message: pb.OpenStreams, served: ModelInfo, *, sync: bool
    ) -> tuple[pb.OpenedStreams, wire.RowErrors]:
        """Opens the streams of a message, some of them concurrently.

        Returns the answer and the errors of refused rows.
        """
        count = len(message.stream_ids)
        resume_from, answered = message.resume_from or [0] * count, message.answered or [0] * count
        inputs = columns.InputColumns(message.inputs, count)
        opened = pb.OpenedStreams(
            stream_ids=message.stream_ids,
            handles=[0] * count,
            kinds=[pb.Opened.KIND_UNSPECIFIED] * count,
            next_steps=[0] * count,
            epochs=[0] * count,
            durable_steps=[0] * count,
            model=wire.encode_model(served.spec, batch_invariant=served.batch_invariant),
            message_bytes_max=self._message_bytes_max,
            may_move=message.accept_move and not message.version,
        )
        errors = wire.RowErrors(pb.OpenedStreams.ERRORS_FIELD_NUMBER, of_timesteps=False)
        others: dict[str, list[int]] = {}  # rows whose streams run under another version, by version

        async def open_(row: int) -> None:
            key = Key(self.caller.tenant.name, message.stream_ids[row])
            try:
                if key.stream_id:
                    check_stream_id(key.stream_id, "stream_ids")
                if self._handles.full:
                    raise TooManyStreams("once opened", HANDLES_MAX, RETRY_AFTER_MS, holder="the call")
                self._access.take_open(self.caller)
                options = wire.make_open_options(message, resume_from[row], answered[row], inputs.row(row))
                # A client that knows of one version for all rows gets no other.
                version = message.version if options.accept_move else served.spec.version
                with self._quota.reserve(served.spec):
                    result = await self._backend.open(key, served.spec.name, version, options)
            except TidegateError as error:
                errors.add(row, error, 0, next_step_of(error))
                return
            # No await may come between the open and this: from here on the call releases the lease when it ends.
            lease = result.lease
            handle = self._handles.add(lease, message.kept_max or CLIENT_BUFFER_DEFAULT)
            lease.on_end = self._end_callback
            if message.independent:
                self._unreported.add(handle)
            if sync:
                self._sync.add(handle)
            _fill_row(opened, row, handle, result)
            if (spec := lease.stream.slots.spec) is not served.spec:
                others.setdefault(spec.version, []).append(row)

        await run_concurrently(open_, range(count))
        for version, rows in others.items():
            opened.versions.add(model=await self._describe(served.spec.name, version), rows=sorted(rows))
        return opened, errors

    async def _describe(self, name: str, version: str) -> pb.Model:
        model = await self._backend.model(name, version)
        return wire.encode_model(model.spec, batch_invariant=model.batch_invariant)

    async def _report_missed(self, opened: pb.OpenedStreams) -> None:
        """Sends what has happened to streams before the client had their handles."""
        handles: list[int] = []
        steps: list[int] = []
        time_slice = TimeSlice()
        for handle, step in zip(opened.handles, opened.durable_steps, strict=True):
            self._unreported.discard(handle)
            lease = self._handles[handle]
            if lease is not None and lease.ended is not None:
                self._endings.append((handle, lease.ended))
                self._notify_soon()
            elif lease is not None and lease.durable_step > step:
                handles.append(handle)
                steps.append(lease.durable_step)
            await time_slice.maybe_yield()
        if handles:
            await self._write_shielded(columns.encode_durable(np.array(handles), np.array(steps)))

    async def _close(self, message: pb.CloseStreams) -> None:
        """Closes many streams once they are stored, and answers."""
        count = len(message.handles)
        errors = wire.RowErrors(pb.ClosedStreams.ERRORS_FIELD_NUMBER, of_timesteps=False)
        closed = pb.ClosedStreams(steps=[0] * count, durable_steps=[0] * count)

        async def close(row: int) -> None:
            handle = message.handles[row]
            lease = self._handles[handle]
            try:
                if lease is None:
                    raise InvalidField("handles", f"got {handle}, expected one that is open on this call")
                if lease.ended is not None:
                    raise lease.ended
                if message.forget:
                    closed.steps[row] = lease.stream.step if lease.stream.slot >= 0 else lease.durable_step
                    lease.on_end = None  # the call ends the lease itself
                    await self._backend.delete(lease)
                else:
                    await self._wait_durable(handle)
                    closed.steps[row] = closed.durable_steps[row] = lease.durable_step
            except TidegateError as error:
                errors.add(row, error, 0, 0)
                if lease is None:
                    return
                if lease.ended is None:
                    lease.on_end = self._end_callback  # the stream is still open
                    return
            async with self._answering:
                self._release(handle, "forgotten" if message.forget else "closed")

        if not message.forget:
            await self._request_saves(message.handles)
        await run_concurrently(close, range(count))
        await self._write_shielded(errors.append_to(pb.PredictBlocksResponse.CLOSED_FIELD_NUMBER, closed))

    async def _wait_durable(self, handle: int) -> None:
        """Waits until a stream is stored, if the call still holds it."""
        lease = self._handles[handle]
        if lease is not None and lease.ended is None and lease.stream.slot >= 0:
            await self._backend.wait_durable(lease, lease.stream.step)

    async def _request_saves(self, handles: Iterable[int]) -> None:
        """Asks the store to save streams at once, in one commit, before the call waits for each of them."""
        time_slice = TimeSlice()
        for handle in handles:
            lease = self._handles[handle]
            if lease is not None:
                self._backend.request_save(lease)
            await time_slice.maybe_yield()

    def _release(self, handle: int, reason: CloseReason) -> None:
        self._sync.discard(handle)
        lease = self._handles.remove(handle)
        if lease is not None:
            lease.on_end = lease.on_durable = None
            self._backend.release(lease, "taken_over" if lease.ended is not None and reason != "forgotten" else reason)

    # Notifications ----------------------------------------------------------------------------------------------------

    def _on_end(self, lease: Lease) -> None:
        assert lease.ended is not None
        if lease.handle not in self._unreported:  # else `_report_missed` sends it
            self._endings.append((lease.handle, lease.ended))
            self._notify_soon()

    async def _report_moves(self) -> None:
        """Sends which streams have moved to another version, before the answer that comes from there."""
        moves, self._moves = self._moves, []
        groups: dict[tuple[ModelId, Moved], list[int]] = {}
        for handle, moved in moves:
            lease = self._handles[handle]
            if lease is not None and handle not in self._unreported:
                groups.setdefault((lease.stream.slots.spec.id, moved), []).append(handle)
        for (model, moved), handles in groups.items():
            await self._write(columns.encode_moved(handles, await self._describe(model.name, model.version), moved))

    def _on_stored(self) -> None:
        self._stored = True
        self._notify_soon()

    def _notify_soon(self) -> None:
        if self.reading and self.notification is None:
            self.start_notification(self._send_notifications())

    @property
    def has_notifications(self) -> bool:
        """Whether `_send_notifications` would send any."""
        return self._stored or bool(self._endings)

    async def _send_notifications(self) -> None:
        """Sends which streams have ended and which are durable, since the last notification."""
        while self.has_notifications:
            endings, self._endings = self._endings, []
            for group in columns.by_reason(endings).values():
                await self._write(columns.encode_ended([handle for handle, _ in group], group[0][1]))
            self._stored = False
            handles, steps = self._durable_updates()
            for first in range(0, len(handles), columns.ROWS_MAX):
                rows = slice(first, first + columns.ROWS_MAX)
                await self._write(columns.encode_durable(handles[rows], steps[rows]))

    def _durable_updates(self) -> tuple[Ints, Ints]:
        """The reported streams whose durable step has risen since the last report, and these steps."""
        handles, steps = self._handles.durable_updates()
        if self._unreported:
            is_reported = ~np.isin(handles, np.fromiter(self._unreported, np.int64, len(self._unreported)))
            handles, steps = handles[is_reported], steps[is_reported]
        return handles, steps

    async def _write(self, response: bytes) -> None:
        """Writes a response when no other task writes."""
        async with self._writing:
            self._check_written()
            await self.context.write(response)

    async def _write_behind(self, response: bytes) -> None:
        """Starts to write a response when no other task writes. The next write waits for it, and raises its error."""
        await self._writing.acquire()
        try:
            self._check_written()
        except BaseException:
            self._writing.release()
            raise
        self._write_task = asyncio.create_task(self._write_and_release(response))

    async def _write_and_release(self, response: bytes) -> None:
        try:
            await self.context.write(response)
        finally:
            self._writing.release()

    def _check_written(self) -> None:
        """Raises the error of the last `_write_behind`."""
        if self._write_task is not None and self._write_task.done():
            task, self._write_task = self._write_task, None
            task.result()

    async def _wait_for_write(self) -> None:
        """Waits until the last `_write_behind` has ended, even when the call is cancelled again."""
        if self._write_task is not None:
            self._write_task.add_done_callback(log_failure)
            await wait_for_end(self._write_task)

    async def _write_shielded(self, response: bytes) -> None:
        """Writes a response. A caller that is cancelled meanwhile waits until it is written.

        gRPC does not allow another write beside one that was cancelled.
        """
        writing = asyncio.create_task(self._write(response))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(log_failure)
            await asyncio.wait([writing])
            raise


def _fill_row(opened: pb.OpenedStreams, row: int, handle: int, result: OpenResult) -> None:
    """Writes how a stream was opened into its row of the answer."""
    lease = result.lease
    opened.stream_ids[row] = lease.stream.key.stream_id
    opened.handles[row] = handle
    opened.kinds[row] = wire.OPEN_KINDS[result.kind]
    opened.next_steps[row] = result.next_step
    opened.epochs[row] = lease.stream.epoch
    opened.durable_steps[row] = lease.durable_step
    opened.answers_remembered = result.answers_remembered
    if result.owner_changed:
        opened.owner_changed_rows.append(row)
    if result.moved is not Moved.NOT:
        (opened.rewarmed_rows if result.moved is Moved.REWARMED else opened.reset_rows).append(row)


def check_open(message: pb.OpenStreams) -> None:
    """Raises InvalidField when a client may not send such a message."""
    count = len(message.stream_ids)
    if count > STREAMS_MAX:
        raise InvalidField("stream_ids", f"got {count}, expected at most {STREAMS_MAX}; send several messages")
    for field, column in {"resume_from": message.resume_from, "answered": message.answered}.items():
        if column and len(column) != count:
            raise InvalidField(field, f"got {len(column)}, expected none or {count}")
    for part in message.inputs:
        if len(part.values) % max(1, count):
            got = f"'{part.name}' has {len(part.values)} bytes"
            raise InvalidField("inputs", f"{got}, expected as many for each of {count} streams")


def check_close(message: pb.CloseStreams) -> None:
    """Raises InvalidField when a client may not send such a message."""
    count = len(message.handles)
    if count > STREAMS_MAX:
        raise InvalidField("handles", f"got {count}, expected at most {STREAMS_MAX}; send several messages")


async def run_concurrently(action: Callable[[T], Awaitable[None]], items: Sequence[T]) -> None:
    """Calls `action` for each item, some of them concurrently, started in order."""
    iterator = iter(items)
    time_slice = TimeSlice()

    async def work() -> None:
        for item in iterator:
            await action(item)
            await time_slice.maybe_yield()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(CONCURRENT_MAX, len(items))):
            group.create_task(work())
