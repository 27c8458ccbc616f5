"""`PredictBlocks` of `protos/tidegate/v1`: many streams over one call.

The rules of this file:
1. The call reads a message, handles it and answers. Meanwhile it reads one message ahead and writes the answer before,
   and no more. So answers come in order. A client that floods or reads slowly is throttled by flow control, and harms
   nobody else.
2. Only opens and closes that are `independent` are handled in the background, opens in one queue and closes in another.
   When the call ends, they are cancelled before its streams are released. When the client half-closes, they are
   answered first.
3. Notifications (which streams are durable, which have ended) are sent between messages, never beside an answer.
4. An error in a row is reported in that row. A message is refused only when it is invalid as a whole. The call ends
   only when the client breaks the protocol.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from tidegate.core.access import Caller
from tidegate.core.block import Block
from tidegate.core.engine import RowStatus
from tidegate.core.errors import (
    InvalidField,
    Stopping,
    StoreBehind,
    TidegateError,
    TimestepRefused,
)
from tidegate.core.handle_table import Selection
from tidegate.core.mixed_block import MixedBlock
from tidegate.core.spec import Ints
from tidegate.core.swap_policy import Moved
from tidegate.rpc import columns, wire
from tidegate.rpc.backend import Access, CloseReason, StreamBackend
from tidegate.rpc.background_queue import BackgroundQueue
from tidegate.rpc.call import OPEN_SECONDS, Context
from tidegate.rpc.multi_stream_call import MultiStreamCall, check_close, check_open, run_concurrently
from tidegate.rpc.row_errors import collect_row_errors
from tidegate.rpc.single_row import SingleRow, read_single_row
from tidegate.rpc.stream_quota import StreamQuota
from tidegate.rpc.time_slice import TimeSlice
from tidegate.v1 import tidegate_pb2 as pb

# Streams of a block are woken concurrently, and none is parked again before `--park-after`: one try is nearly always
# enough.
WAKE_TRIES = 3
# How many live streams move to another version before a block runs; the others move before the next blocks. Each takes two
# writes to the store, and the block waits for all of them.
MOVED_AT_ONCE_MAX = 32
# A refused block is answered after this delay. A client that retried at once would keep the event loop busy with
# reading blocks, and delay small calls. A full queue is worked off in about the same time.
REFUSAL_DELAY_SECONDS = 0.25
# A client that sends ahead gets its answers written while the next block is read and run. A client that waits for each
# answer gains nothing, and a read ahead costs a task. So the call writes behind for this many blocks after it has found
# a message waiting, and after as many blocks without one it reads ahead only once in as many.
READ_AHEAD_TRIES = 16


class PredictBlocksCall(MultiStreamCall):
    """One call of `PredictBlocks`. Others may ask it to end."""

    def __init__(
        self,
        backend: StreamBackend,
        access: Access,
        context: Context,
        caller: Caller,
        quota: StreamQuota,
        message_bytes_max: int,
    ) -> None:
        super().__init__(backend, access, context, caller, quota, message_bytes_max)
        self._opens: BackgroundQueue[pb.OpenStreams] = BackgroundQueue(self._open, self.end)
        self._closes: BackgroundQueue[pb.CloseStreams] = BackgroundQueue(self._close, self.end)
        self._began = False  # whether there was a message
        # the handles of the last block; its selection is reused when they come again
        self._last_handles: bytes | None = None
        self._selections: list[tuple[Ints, Selection]]  # one for each version, with its rows
        self._empty_read_aheads = 0  # consecutive blocks behind which no message was waiting
        self._blocks_to_write_behind = 0

    async def serve(self) -> None:
        """Answers until the client half-closes. Releases every stream, whatever happens.

        Raises:
            TidegateError: the call was asked to end, or the client broke the protocol.

        """
        unwatch = self._backend.add_listener(self._on_stored)
        self._quota.tables.add(self._handles)
        reason: CloseReason = "disconnected"
        try:
            while (message := await self._next_message()) is not None:
                if not await self._answer_single_row(message):
                    await self._handle(wire.decode_blocks_request(message))
            await self._wait_for_background(self._opens.join)
            await self._wait_for_background(self._closes.join)
            # The client may open its streams at another server, which must find what was answered.
            if errors := await self._wait_all_durable():
                raise errors[0]
        except Stopping as error:
            reason = "stopping"
            self._cancel_background()
            self.left_unsaved = len(await self._wait_all_durable())
            await self._write(pb.PredictBlocksResponse(move=pb.Move(message=str(error))).SerializeToString())
            raise
        except TidegateError:
            reason = "protocol"
            raise
        finally:
            unwatch()
            self.stop_reading()
            self._cancel_background()
            try:
                await self._wait_background_stopped()
            finally:
                await self._release_all(reason)
                self._quota.tables.discard(self._handles)

    async def _next_message(self) -> bytes | None:
        """The bytes of the next request, None when the client has half-closed."""
        if self.has_notifications:
            await self._send_notifications()
        message: bytes | None = await (self.read() if self._began else self.read_within(OPEN_SECONDS, "open"))
        self._began = True
        return message

    async def _handle(self, request: pb.PredictBlocksRequest) -> None:
        """Handles a request, now or in the background."""
        if request.HasField("block"):
            await self._handle_block(request.block)
        elif request.HasField("open"):
            check_open(request.open)
            if request.open.independent:
                await self._wait_for_background(partial(self._opens.put, request.open))
            else:
                await self._wait_until_idle(self._opens)
                await self._open(request.open)
        elif request.HasField("close"):
            check_close(request.close)
            if request.close.independent:
                await self._wait_for_background(partial(self._closes.put, request.close))
            else:
                await self._wait_until_idle(self._closes)
                await self._close(request.close)
        else:
            raise InvalidField("kind", "got a request without one, expected block, open or close")

    async def _wait_for_background(self, begin: Callable[[], Awaitable[None]]) -> None:
        """Waits for the background. Meanwhile notifications are sent, and the call may be asked to end."""
        await self._send_notifications()
        await self.wait_interruptibly(begin)

    async def _wait_until_idle(self, queue: BackgroundQueue[Any]) -> None:
        """Waits until a background queue is empty, before a message that is not independent."""
        if not queue.idle:
            await self._wait_for_background(queue.join)

    def _cancel_background(self) -> None:
        """Cancels the background. An answer that is being written is completed."""
        self._opens.cancel()
        self._closes.cancel()

    async def _wait_background_stopped(self) -> None:
        """Waits until the background adds no more streams to the call, even when the call is cancelled again."""
        try:
            await self._opens.wait_stopped()
        finally:
            try:
                await self._closes.wait_stopped()
            finally:
                await self._wait_for_write()

    # Blocks -----------------------------------------------------------------------------------------------------------

    async def _answer_single_row(self, message: bytes) -> bool:
        """Answers a block of one row without protobuf and without locks. Returns False when it needs them.

        Only what runs in the background can need the locks meanwhile, and only this coroutine starts it.
        """
        if not (self._opens.idle and self._closes.idle and self._write_task is None):
            return False
        started = perf_counter()
        row = read_single_row(message, self._handles)
        if row is None or row.lease.handle in self._sync or self.caller.tenant.limits_steps:
            return False
        answer = await self._predict_single_row(row, lambda: wire.decode_blocks_request(message).block, started)
        await self.context.write(answer)
        return True

    async def _handle_block(self, block: pb.Block) -> None:
        """Answers a block, and reads ahead meanwhile where that may help.

        A block of one row is batched with others anyway.
        """
        read_ahead = len(block.handles) > columns.HANDLE.itemsize and (
            self._empty_read_aheads < READ_AHEAD_TRIES or self._empty_read_aheads % READ_AHEAD_TRIES == 0
        )
        if read_ahead:
            self.read_ahead()
        async with self._answering:
            answer = await self._predict(block)
        if self._moves:
            await self._report_moves()
        # The answer to a short block is ready before the next message is looked for, so one that was found counts for more.
        if self.has_next:
            self._blocks_to_write_behind = READ_AHEAD_TRIES
        if self._blocks_to_write_behind:
            self._blocks_to_write_behind -= 1
            await self._write_behind(answer)
        else:
            await self._write(answer)
            if self.has_next:
                self._blocks_to_write_behind = READ_AHEAD_TRIES
        self._empty_read_aheads = 0 if self._blocks_to_write_behind else self._empty_read_aheads + 1

    async def _predict(self, message: pb.Block) -> bytes:
        """The answer to a block."""
        started = perf_counter()
        failed: dict[int, TidegateError] = {}
        if self.caller.tenant.limits_steps:
            try:
                self._access.take_steps(self.caller, len(message.handles) // columns.HANDLE.itemsize)
            except TimestepRefused as error:
                return await self._refuse(message, error)
        row = columns.decode_single_row(message, self._handles)
        if row is not None and row.lease.handle not in self._sync:
            return await self._predict_single_row(row, lambda: message, started)
        try:
            block = self._decode(message)
            if not block.all_live or block.draining:
                failed = await self._wake(block)
                if self._moves:
                    self._last_handles = None
                    block = self._decode(message)
            await (self._backend.submit_block(block) if isinstance(block, Block) else self._submit_parts(block))
        except (TimestepRefused, InvalidField) as error:
            return await self._refuse(message, error)
        unsaved = await self._wait_for_sync(block) if self._sync else {}
        return await self._answer_block(message, block, failed, unsaved, started)

    async def _answer_block(
        self,
        message: pb.Block,
        block: "Block | MixedBlock",
        failed: dict[int, TidegateError],
        unsaved: dict[int, TidegateError],
        started: float,
    ) -> bytes:
        """The answer to a block that has run.

        Counts its timesteps. `failed` and `unsaved` as for `collect_row_errors`.
        """
        errors = (
            None
            if block.all_applied and not unsaved
            else await collect_row_errors(self._handles, message, block, failed, unsaved)
        )
        durable_steps = block.report_durable()
        half_full = self._handles.half_full_buffers(block.handles, block.steps, durable_steps)
        if half_full.size:
            await self._save_at_once(half_full.tolist())
        if errors is None:
            steps, outputs = columns.pack_steps(block.steps), [part.tobytes() for part in block.outputs]
            response = columns.encode_applied(message.block, steps, outputs, columns.pack_steps(durable_steps))
        else:
            duplicates = block.statuses == RowStatus.DUPLICATE
            response = columns.encode_predicted(
                message.block, block.steps, block.outputs, durable_steps, duplicates, block.forgotten, errors
            )
        for part in block.pieces:
            self._backend.observe_block(part, perf_counter() - started)
        return response

    async def _refuse(self, message: pb.Block, error: TidegateError) -> bytes:
        """The answer to a block that is invalid, or for which the queue has no room."""
        if isinstance(error, TimestepRefused):
            await asyncio.sleep(REFUSAL_DELAY_SECONDS)
        return columns.encode_refused(message.block, error)

    async def _predict_single_row(self, row: SingleRow, decode: Callable[[], pb.Block], started: float) -> bytes:
        """The answer to a block of one row, which `decode` returns. It takes the path of a timestep of `Predict`."""
        number, lease, timestep = row
        queue = self._backend.queue(lease)
        try:
            predicting = queue.submit(lease, timestep)
        except TimestepRefused as error:
            return await self._refuse(decode(), error)
        try:
            prediction = await predicting
        except TidegateError as error:
            if not isinstance(error, TimestepRefused) and error is not lease.ended:
                raise
            message = decode()
            block = self._decode(message)
            if timestep.step == 0:
                block.steps = block.next_steps(np.zeros(1, np.int64))
            return await self._answer_block(message, block, {}, {0: error}, started)
        durable_step = self._handles.report_durable_one(lease)
        if self._handles.is_buffer_half_full(lease, prediction.step, durable_step):
            await self._save_at_once([lease.handle])
        durable = columns.pack_step(durable_step)
        response = columns.encode_applied(number, columns.pack_step(prediction.step), prediction.outputs, durable)
        queue.observe_step(perf_counter() - started)
        return response

    def _decode(self, message: pb.Block) -> "Block | MixedBlock":
        if message.handles != self._last_handles:  # a client usually sends the same streams again
            handles = columns.decode_handles(message)
            self._selections = [
                (rows, self._handles.select(handles[rows])) for rows in self._handles.by_version(handles)
            ]
            self._last_handles = message.handles
        count = len(message.handles) // columns.HANDLE.itemsize
        steps = columns.decode_steps(message, count)
        _, selection = self._selections[0]
        values = columns.decode_rows(message, count, selection.slots.layout)
        if len(self._selections) == 1:
            return Block(selection, steps, values)
        parts = [(rows, Block(selection, steps[rows], values[rows])) for rows, selection in self._selections]
        return MixedBlock(parts)

    async def _submit_parts(self, block: MixedBlock) -> None:
        """Runs the parts of a block. Raises TimestepRefused when the queue has no room for them."""
        running: list[asyncio.Future[Block]] = []
        try:
            for _, part in block.parts:
                running.append(self._backend.submit_block(part))
            for future in running:
                await future
        finally:
            for future in running:
                future.cancel()
        block.merge()

    async def _wake(self, block: "Block | MixedBlock") -> dict[int, TidegateError]:
        """Wakes the parked streams of a block, and moves those that are to move to another version.

        Returns the errors of those that could not be woken, by handle.
        """
        failed: dict[int, TidegateError] = {}

        async def wake(handle: int) -> None:
            lease = self._handles[handle]
            assert lease is not None
            try:
                with self._quota.reserve_wake(lease):
                    moved = await self._backend.wake(lease)
                if moved is not Moved.NOT:
                    self._moves.append((handle, moved))
            except TidegateError as error:
                failed[handle] = error
            self._handles.refresh(handle)

        for try_ in range(WAKE_TRIES):
            # A stream that cannot move now stays awake where it is, and needs no other try.
            not_live = block.handles if block.draining and not try_ else block.not_live
            parked = [handle for handle in await self._to_wake(not_live) if handle not in failed]
            if not parked:
                break
            # The first ones may be parked again before the last is awake.
            await run_concurrently(wake, parked)
        return failed

    async def _to_wake(self, handles: Ints) -> list[int]:
        """Those streams that are parked, and some of those that are live and to move, which the call still holds."""
        found, moving = [], 0
        time_slice = TimeSlice()
        for handle in np.unique(handles).tolist():
            lease = self._handles.refresh(handle)
            if lease is not None and lease.ended is None and lease.stream.needs_wake:
                moving += lease.stream.slot >= 0
                if lease.stream.slot < 0 or moving <= MOVED_AT_ONCE_MAX:
                    found.append(handle)
            await time_slice.maybe_yield()
        return found

    async def _wait_for_sync(self, block: "Block | MixedBlock") -> dict[int, TidegateError]:
        """Waits until the applied timesteps of SYNC streams are stored.

        Returns the errors of those that are not, by row.
        """
        errors: dict[int, TidegateError] = {}
        await self._request_saves(handle for handle in block.handles.tolist() if handle in self._sync)
        time_slice = TimeSlice()
        for row, handle in enumerate(block.handles.tolist()):
            await time_slice.maybe_yield()
            lease = self._handles[handle]
            if handle not in self._sync or lease is None or block.statuses[row] > RowStatus.DUPLICATE:
                continue
            try:
                await self._backend.wait_durable(lease, int(block.steps[row]))
            except TidegateError as error:
                errors[row] = error
                for column in block.outputs:
                    column[row] = 0  # no client may see it before it is stored
        return errors

    # Streams ----------------------------------------------------------------------------------------------------------

    async def _wait_all_durable(self) -> list[StoreBehind]:
        """Waits until all streams of the call are stored, and tells the client.

        Returns an error for each stream that the store did not save in time.
        """
        await self._request_saves(self._handles)
        errors = []
        time_slice = TimeSlice()
        for handle in self._handles:
            try:
                await self._wait_durable(handle)
            except StoreBehind as error:
                errors.append(error)
            except TidegateError:
                lease = self._handles[handle]
                if lease is None or lease.ended is None:
                    raise
                # Else `_send_notifications` tells the client.
            await time_slice.maybe_yield()
        self._stored = True
        await self._send_notifications()
        return errors

    async def _save_at_once(self, handles: Sequence[int]) -> None:
        """Has streams saved at once, because their clients' buffers are half full, and tells the client."""
        for handle in handles:
            if (lease := self._handles[handle]) is not None:
                lease.on_durable = self._stored_callback
        await self._request_saves(handles)

    async def _release_all(self, reason: CloseReason) -> None:
        """Releases every stream, even when the call is cancelled again."""
        time_slice = TimeSlice()
        handles = iter(self._handles)
        try:
            for handle in handles:
                self._release(handle, reason)
                await time_slice.maybe_yield()
        finally:
            for handle in handles:
                self._release(handle, reason)
