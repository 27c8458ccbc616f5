"""`PredictBlocks` of `protos/tidegate/v1`: many streams over one call.

The laws of this file:
1. The call reads a message, has it done, and answers. While it does, the next one is read and the answer before is written, and
   no more. So answers come in order, and a client that floods or reads slowly is held back by the network, at nobody else's cost.
2. Only opens and closes whose client wants that are done in the background, each kind in a line of its own. When the call ends
   they are broken off before its streams are let go; when its client has sent its last they are answered first.
3. What nobody asked for, what is stored and which streams have ended, is told between messages, never beside an answer.
4. What is wrong with a row is told in its row. Only what makes no sense as a whole refuses a message, and only what breaks
   the protocol ends the call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core.block import Block
from serving.core.engine import Verdict
from serving.core.errors import (
    InvalidField,
    Stopping,
    StoreBehind,
    TidegateError,
    TimestepRefused,
)
from serving.core.handles import Selection
from serving.core.spec import Timestep
from serving.core.streams import Lease
from serving.rpc import columns
from serving.rpc.background import Background
from serving.rpc.call import Context
from serving.rpc.desk import CloseReason, Desk
from serving.rpc.many import ManyStreams, check_close, check_open
from serving.rpc.many import together as _together
from serving.rpc.share import Share
from serving.rpc.slices import Slices
from serving.rpc.verdicts import told_errors

# Streams of a block are woken side by side, and none sleeps again before `--park-after`: once is nearly always enough.
WAKE_TRIES = 3
# A block for which there is no room is told so after this time: one that came back at once, again and again, would keep the loop
# busy with reading what is refused, and small calls waiting. What fills the line is done in about as long.
REFUSED_SECONDS = 0.25
# A client that sends ahead gets its answers written while the next block runs, which doubles what blocks of some tens of rows make.
# One that waits for each answer gains nothing, and the read costs a task: after so many blocks with nothing behind them,
# it tries again once in as many.
READ_AHEAD_TRIES = 16


class BlockCall(ManyStreams):
    """One call of `PredictBlocks`; others may ask it to end."""

    def __init__(self, desk: Desk, context: Context, share: Share, message_bytes_max: int) -> None:
        super().__init__(desk, context, share, message_bytes_max)
        self._opens: Background[pb.OpenStreams] = Background(self._open, self.end)
        self._closes: Background[pb.CloseStreams] = Background(self._close, self.end)
        self._asked: bytes | None = None  # the handles of the last block, and the streams that they stand for
        self._streams: Selection
        self._nothing_ahead = 0  # blocks in a row behind which no message was waiting

    async def serve(self) -> None:
        """Answers until the client has sent its last; lets go of every stream, whatever happens.

        Raises:
            TidegateError: the call was asked to end, or the client broke the protocol.

        """
        unwatch = self._desk.watch(self._on_stored)
        self._share.handles.add(self._held)
        reason: CloseReason = "disconnected"
        try:
            while (request := await self._next()) is not None:
                await self._do(request)
            await self._until(self._opens.finish)
            await self._until(self._closes.finish)
            # The streams may go on elsewhere: what was answered is to be found there.
            if behind := await self._settle():
                raise behind[0]
        except Stopping as error:
            reason = "stopping"
            self._break_off()
            self.left_unsaved = len(await self._settle())
            await self._write(pb.PredictBlocksResponse(move=pb.Move(message=str(error))).SerializeToString())
            raise
        except TidegateError:
            reason = "protocol"
            raise
        finally:
            unwatch()
            self.read_no_more()
            self._break_off()
            try:
                await self._background_ended()
            finally:
                await self._let_go_of_all(reason)
                self._share.handles.discard(self._held)

    async def _next(self) -> pb.PredictBlocksRequest | None:
        """The next message, None when the client has sent its last."""
        await self._tell()
        message = await self.read()
        try:
            return None if message is None else pb.PredictBlocksRequest.FromString(message)
        except DecodeError as error:
            raise InvalidField("request", "got bytes that are not a PredictBlocksRequest") from error

    async def _do(self, request: pb.PredictBlocksRequest) -> None:
        """Has a message answered, now or in the background."""
        if request.HasField("block"):
            await self._do_block(request.block)
        elif request.HasField("open"):
            check_open(request.open)
            if request.open.independent:
                await self._until(partial(self._opens.put, request.open))
            else:
                await self._until_idle(self._opens)
                await self._open(request.open)
        elif request.HasField("close"):
            check_close(request.close)
            if request.close.independent:
                await self._until(partial(self._closes.put, request.close))
            else:
                await self._until_idle(self._closes)
                await self._close(request.close)
        else:
            raise InvalidField("kind", "got a request without one, expected block, open or close")

    async def _until(self, begin: Callable[[], Awaitable[None]]) -> None:
        """Waits for what is done in the background; meanwhile news is told, and the call may be asked to end."""
        await self._tell()
        await self.wait(begin)

    async def _until_idle(self, line: Background[Any]) -> None:
        """Has all of a line answered before a message that is not independent."""
        if not line.idle:
            await self._until(line.finish)

    def _break_off(self) -> None:
        """Ends what is done in the background; an answer that is being written is finished."""
        self._opens.cancel()
        self._closes.cancel()

    async def _background_ended(self) -> None:
        """Waits until the background gives the call no more streams, also when the call is cancelled once more."""
        try:
            await self._opens.ended()
        finally:
            try:
                await self._closes.ended()
            finally:
                await self._behind_ended()

    # Blocks -----------------------------------------------------------------------------------------------------------

    async def _do_block(self, block: pb.Block) -> None:
        """Answers a block, and reads ahead meanwhile where that may be of use. Blocks of one row are batched with others anyway."""
        ahead = len(block.handles) > columns.HANDLE.itemsize and (
            self._nothing_ahead < READ_AHEAD_TRIES or self._nothing_ahead % READ_AHEAD_TRIES == 0
        )
        if ahead:
            self.read_ahead()
        async with self._answering:
            answer = await self._predict(block)
        if self.has_next:
            self._nothing_ahead = 0
            await self._write_behind(answer)
        else:
            self._nothing_ahead += 1
            await self._write(answer)

    async def _predict(self, message: pb.Block) -> bytes:
        """The answer to a block."""
        begun = perf_counter()
        failed: dict[int, TidegateError] = {}
        alone = columns.decode_alone(message, self._held)
        if alone is not None and alone[0].handle not in self._sync:
            return await self._predict_alone(message, *alone, begun)
        try:
            block = self._decode(message)
            if not block.streams.live().all():
                failed = await self._wake(block)
            await self._desk.submit_block(block)
        except (TimestepRefused, InvalidField) as error:
            return await self._refuse(message, error)
        unsaved = await self._wait_for_sync(block) if self._sync else {}
        return await self._answer_block(message, block, failed, unsaved, begun)

    async def _answer_block(
        self,
        message: pb.Block,
        block: Block,
        failed: dict[int, TidegateError],
        unsaved: dict[int, TidegateError],
        begun: float,
    ) -> bytes:
        """The answer to a block that was run, and counted here; `failed` and `unsaved` as for `told_errors`."""
        errors = None if block.clean and not unsaved else await told_errors(self._held, message, block, failed, unsaved)
        durable_steps = self._held.durable(block.handles, block.slots)
        crowded = self._held.crowded(block.handles, block.steps, durable_steps)
        if crowded.size:
            await self._make_room(crowded.tolist())
        if errors is None:
            steps, outputs = columns.pack_steps(block.steps), [part.tobytes() for part in block.outputs]
            response = columns.encode_applied(message.block, steps, outputs, columns.pack_steps(durable_steps))
        else:
            duplicates = block.verdicts == Verdict.DUPLICATE
            response = columns.encode_predicted(
                message.block, block.steps, block.outputs, durable_steps, duplicates, block.forgotten, errors
            )
        self._desk.answered_block(block, perf_counter() - begun)
        return response

    async def _refuse(self, message: pb.Block, error: TidegateError) -> bytes:
        """The refusal of a block for which there is no room, or that makes no sense."""
        if isinstance(error, TimestepRefused):
            await asyncio.sleep(REFUSED_SECONDS)
        return columns.encode_refused(message.block, error)

    async def _predict_alone(self, message: pb.Block, lease: Lease, step: int, begun: float) -> bytes:
        """The answer to a block of one row, which goes the way of a timestep of `Predict`, at its price."""
        line = self._desk.line(lease)
        try:
            predicting = line.submit(lease, Timestep(step, message.values))
        except TimestepRefused as error:
            return await self._refuse(message, error)
        try:
            prediction = await predicting
        except TidegateError as error:
            if not isinstance(error, TimestepRefused) and error is not lease.ended:
                raise
            block = self._decode(message)
            if step == 0:
                block.steps = block.next_steps(np.zeros(1, np.int64))
            return await self._answer_block(message, block, {}, {0: error}, begun)
        durable_step = self._held.durable_alone(lease)
        if self._held.is_crowded(lease, prediction.step, durable_step):
            await self._make_room([lease.handle])
        durable = columns.pack_step(durable_step)
        response = columns.encode_applied(
            message.block, columns.pack_step(prediction.step), prediction.outputs, durable
        )
        line.answered(perf_counter() - begun)
        return response

    def _decode(self, message: pb.Block) -> Block:
        asked = message.handles
        if asked != self._asked:  # a client mostly sends the same streams again
            self._streams = self._held.select(columns.decode_handles(message))
            self._asked = asked
        rows = len(self._streams.handles)
        steps = columns.decode_steps(message, rows)
        return Block(self._streams, steps, columns.decode_values(message, rows, len(self._streams.slots.spec.features)))

    async def _wake(self, block: Block) -> dict[int, TidegateError]:
        """Makes the streams of a block live that are parked; gives why some could not be, by handle."""
        failed: dict[int, TidegateError] = {}

        async def wake(handle: int) -> None:
            lease = self._held[handle]
            assert lease is not None
            try:
                with self._share.room(lease.stream.slots.spec):
                    await self._desk.wake(lease)
            except TidegateError as error:
                failed[handle] = error
            self._held.find(handle)

        for _ in range(WAKE_TRIES):
            away = block.handles[~self._held.held(block.handles, block.slots)]
            asleep = []
            if away.size:
                slices = Slices()
                for handle in np.unique(away).tolist():
                    if handle not in failed and self._sleeps(handle):
                        asleep.append(handle)
                    await slices.rest()
            if not asleep:
                break
            # Those that woke first may have fallen asleep again before the last is awake.
            await _together(wake, asleep)
        return failed

    def _sleeps(self, handle: int) -> bool:
        """Whether a stream is the call's own and parked; not one that was closed or has ended."""
        lease = self._held.find(handle)
        return lease is not None and lease.ended is None and lease.stream.slot < 0

    async def _wait_for_sync(self, block: Block) -> dict[int, TidegateError]:
        """Waits until what was applied is stored, where the client wants that; gives why rows are not, by row."""
        errors: dict[int, TidegateError] = {}
        await self._store_soon(handle for handle in block.handles.tolist() if handle in self._sync)
        slices = Slices()
        for row, handle in enumerate(block.handles.tolist()):
            await slices.rest()
            lease = self._held[handle]
            if handle not in self._sync or lease is None or block.verdicts[row] > Verdict.DUPLICATE:
                continue
            try:
                await self._desk.durable(lease, int(block.steps[row]))
            except TidegateError as error:
                errors[row] = error
                for column in block.outputs:
                    column[row] = 0  # it may not be seen before it is stored
        return errors

    # Streams ----------------------------------------------------------------------------------------------------------

    async def _settle(self) -> list[StoreBehind]:
        """Waits until all of the call's streams are stored, and tells so; gives why some are not, if the store is behind."""
        await self._store_soon(self._held)
        behind = []
        slices = Slices()
        for handle in self._held:
            try:
                await self._durable(handle)
            except StoreBehind as error:
                behind.append(error)
            except TidegateError:
                lease = self._held[handle]
                if lease is None or lease.ended is None:
                    raise
                # Else the client is told by `_tell`.
            await slices.rest()
        self._stored = True
        await self._tell()
        return behind

    async def _make_room(self, handles: Sequence[int]) -> None:
        """Has streams stored at once, and told, whose client would soon have to wait for that."""
        for handle in handles:
            if (lease := self._held[handle]) is not None:
                lease.on_durable = self._notice_stored
        await self._store_soon(handles)

    async def _let_go_of_all(self, reason: CloseReason) -> None:
        """Lets go of every stream, also when the call is cancelled once more."""
        slices = Slices()
        handles = iter(self._held)
        try:
            for handle in handles:
                self._let_go(handle, reason)
                await slices.rest()
        finally:
            for handle in handles:
                self._let_go(handle, reason)
