"""`PredictBlocks` of `protos/tidegate/v1`: many streams over one call.

The laws of this file:
1. The call reads a message, has it done, and answers; then it reads the next. So answers come in order, and a client that
   floods or reads slowly is held back by the network, at nobody else's cost.
2. What nobody asked for, what is stored and which streams have ended, is told between messages, never beside an answer.
3. Every lease that the call was given is in `_held` until it is let go, whatever ends the call.
4. What is wrong with a row is told in its row. Only what makes no sense as a whole refuses a block, and only what breaks
   the protocol ends the call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import perf_counter
from typing import TypeVar

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
    TooManyStreams,
)
from serving.core.handles import HANDLES_MAX, KEPT_MAX, Handles, Selection
from serving.core.spec import Key, Timestep
from serving.core.stream_id import check_stream_id
from serving.core.streams import Lease
from serving.rpc import columns, wire
from serving.rpc.call import Call, Context
from serving.rpc.desk import DEFAULT_TENANT, CloseReason, Desk
from serving.rpc.share import Share
from serving.rpc.slices import Slices
from serving.rpc.verdicts import told_errors

T = TypeVar("T")

# Streams that are opened, woken or dropped side by side: their claims share commits of the store. More would only wait.
TOGETHER_MAX = 256
# Streams that one message may open or close: as many as a block has rows.
STREAMS_MAX = columns.ROWS_MAX
# Streams of a block are woken side by side, and none sleeps again before `--park-after`: once is nearly always enough.
WAKE_TRIES = 3
# A block for which there is no room is told so after this time: one that came back at once, again and again, would keep the loop
# busy with reading what is refused, and small calls waiting. What fills the line is done in about as long.
REFUSED_SECONDS = 0.25
# Nothing is waited for: a client that has used up the handles of a call opens another, a stream that fell asleep is woken.
RETRY_AFTER_MS = 1


class BlockCall(Call):
    """One call of `PredictBlocks`; others may ask it to end. Its live streams count for the `share` of its connection."""

    def __init__(self, desk: Desk, context: Context, share: Share, message_bytes_max: int) -> None:
        super().__init__(context)
        self._desk = desk
        self._message_bytes_max = message_bytes_max
        self._share = share
        self._held = Handles()
        self._asked: bytes | None = None  # the handles of the last block, and the streams that they stand for
        self._streams: Selection
        self._sync: set[int] = set()  # handles of streams whose answers wait until they are durable
        self._endings: list[tuple[int, TidegateError]] = []  # not told yet
        # One for all leases: a bound method of its own would cost each 64 bytes.
        self._notice_end = self._on_end
        self._notice_stored = self._on_stored
        self._stored = False  # something was, since the client was last told

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
                await self.context.write(await self._answer(request))
            # The streams may go on elsewhere: what was answered is to be found there.
            if behind := await self._settle():
                raise behind[0]
        except Stopping as error:
            reason = "stopping"
            self.left_unsaved = len(await self._settle())
            await self.context.write(pb.PredictBlocksResponse(move=pb.Move(message=str(error))).SerializeToString())
            raise
        except TidegateError:
            reason = "protocol"
            raise
        finally:
            unwatch()
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

    async def _answer(self, request: pb.PredictBlocksRequest) -> bytes:
        if request.HasField("block"):
            return await self._predict(request.block)
        if request.HasField("open"):
            return await self._open(request.open)
        if request.HasField("close"):
            return await self._close(request.close)
        raise InvalidField("kind", "got a request without one, expected block, open or close")

    # Blocks -----------------------------------------------------------------------------------------------------------

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

    async def _open(self, message: pb.OpenStreams) -> bytes:
        """Opens many streams."""
        count = len(message.stream_ids)
        if count > STREAMS_MAX:
            raise InvalidField("stream_ids", f"got {count}, expected at most {STREAMS_MAX}; send several messages")
        resume_from = message.resume_from or [0] * count
        if len(resume_from) != count:
            raise InvalidField("resume_from", f"got {len(resume_from)}, expected none or {count}")
        sync = wire.decode_sync(message.durability)
        served = self._desk.model(message.model, message.version)
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

        await _together(open_, range(count))
        return errors.append_to(pb.PredictBlocksResponse.OPENED_FIELD_NUMBER, opened)

    async def _close(self, message: pb.CloseStreams) -> bytes:
        """Ends many streams at their client's wish, once everything is stored."""
        count = len(message.handles)
        if count > STREAMS_MAX:
            raise InvalidField("handles", f"got {count}, expected at most {STREAMS_MAX}; send several messages")
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
                if lease is None or lease.ended is None:
                    return  # the stream is still open
            self._let_go(handle, "forgotten" if message.forget else "closed")

        if not message.forget:
            await self._store_soon(message.handles)
        await _together(close, range(count))
        return errors.append_to(pb.PredictBlocksResponse.CLOSED_FIELD_NUMBER, closed)

    async def _durable(self, handle: int) -> None:
        """Waits until all of a stream is stored, if it is still the call's own."""
        lease = self._held[handle]
        if lease is not None and lease.ended is None and lease.stream.slot >= 0:
            await self._desk.durable(lease, lease.stream.step)

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

    async def _store_soon(self, handles: Iterable[int]) -> None:
        """Has streams stored at once, together, that will be waited for one after another."""
        slices = Slices()
        for handle in handles:
            lease = self._held[handle]
            if lease is not None:
                self._desk.store_soon(lease)
            await slices.rest()

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

    def _let_go(self, handle: int, reason: CloseReason) -> None:
        self._sync.discard(handle)
        lease = self._held.drop(handle)
        if lease is not None:
            lease.on_end = lease.on_durable = None
            self._desk.leave(lease, "taken_over" if lease.ended is not None and reason != "forgotten" else reason)

    # News -------------------------------------------------------------------------------------------------------------

    def _on_end(self, lease: Lease) -> None:
        assert lease.ended is not None
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
                await self.context.write(columns.encode_ended([handle for handle, _ in some], some[0][1]))
            self._stored = False
            handles, steps = self._held.news()
            for first in range(0, len(handles), columns.ROWS_MAX):
                rows = slice(first, first + columns.ROWS_MAX)
                await self.context.write(columns.encode_durable(handles[rows], steps[rows]))


async def _together(do: Callable[[T], Awaitable[None]], items: Sequence[T]) -> None:
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
