"""Moves streams to the default version of their model.

A stream moves at its next open, or between two of its timesteps: then its own call moves it, so no other waits. The
rules of this file:
1. Whoever moves a stream holds its lock. Its call sends no timestep meanwhile.
2. A move is claimed like a take-over: the epoch rises, so what is still on its way to the store under the old version is
   refused. Then one write replaces the state, and with it the fingerprint. Before that write the stream is on the old
   version, after it on the new one; no timestep runs on the new version earlier.
3. A move that has begun is completed, whether or not anybody waits for it.
4. A move that cannot be done now (no slot is free, the store lags) leaves the stream where it is, and is tried again
   later. A replay also waits until enough timesteps of the stream are kept: a restart forgets those before it. A move
   that can never be done is not tried again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from time import monotonic

from tidegate.core.errors import ModelFailed, StoreUnavailable, TidegateError
from tidegate.core.spec import Arrays, Checkpoint
from tidegate.core.streams import Lease, Phase, Stream, checkpoint_rows
from tidegate.core.swap import raw_rows, stream_inputs, with_state
from tidegate.core.swap_policy import Moved, MoveRequest, SwapPolicy, difference, may_move
from tidegate.rpc.background_queue import wait_for_end
from tidegate.rpc.time_slice import TimeSlice
from tidegate.runtime.crash_points import crash_point
from tidegate.runtime.replayer import Replayer
from tidegate.runtime.repository import Repository, ServedModel
from tidegate.runtime.span import Span
from tidegate.runtime.spans import SPANS
from tidegate.runtime.stream_log import log_event
from tidegate.runtime.stream_registry import StreamRegistry
from tidegate.store import Store

log = logging.getLogger("tidegate.moves")

# How long no move is tried after one for which there was no room, in seconds: each try costs a timestep some microseconds.
PAUSE_SECONDS = 1.0


class StreamMover:
    """Moves streams between versions.

    Args:
        repository: the models.
        store: where checkpoints are kept.
        registry: the streams of this process.

    """

    def __init__(
        self,
        repository: Repository,
        store: Store,
        registry: StreamRegistry,
    ) -> None:
        self._repository = repository
        self._store = store
        self._registry = registry
        self._paused_until = 0.0
        # Called before a move: another process may have chosen another default a moment ago, and moved the stream.
        self.look: Callable[[], Awaitable[None]] = _nothing
        self.replayer = Replayer()

    def __repr__(self) -> str:
        return f"<StreamMover {self.replayer!r}>"

    async def mark(self, name: str) -> int:
        """Marks the live streams of a model that are to move to its default version, at their next timestep.

        Returns how many. Called whenever the default version or the policy has changed.
        """
        default = self._repository.default(name)
        policy = self._repository.settings(name).swap_policy
        marked = 0
        time_slice = TimeSlice()
        for served in [served for served in self._repository if served.spec.name == name]:
            why_not = "" if default is None else difference(served.spec, default.spec)
            moves = default not in (None, served) and policy is not SwapPolicy.PIN and not why_not
            served.slots.draining = moves
            if why_not and policy is not SwapPolicy.PIN:
                log.warning("streams stay on %s: %s", served.spec.title, why_not)
            for stream in list(self._registry.streams.by_slot(served.slots)) if moves else ():
                if stream is not None and stream.lease is not None and stream.lease.accept_move:
                    stream.needs_wake = True
                    marked += 1
                await time_slice.maybe_yield()
        return marked

    async def move(self, lease: Lease, *, allowed: bool) -> Moved:
        """Moves the live stream of a call to the default version of its model, if it is to move.

        Call it with the stream's lock held. `allowed` tells whether the client accepts a move now.

        Raises what ended the lease meanwhile: another server has the stream, or the store did not say whether it has
        accepted the move.
        """
        stream = lease.stream
        old = self._repository.of(stream.slots)
        new = self._repository.default(old.spec.name)
        stream.needs_wake = False
        if new is None or new is old or not old.slots.draining:
            return Moved.NOT
        policy = self._repository.settings(old.spec.name).swap_policy
        if not may_move(old.spec, new.spec, MoveRequest(policy, allowed, stream.step, lease.answered)):
            stream.needs_wake = lease.accept_move and stream.step < lease.answered  # then it moves a little later
            return Moved.NOT
        if policy is SwapPolicy.REWARM and not _is_recorded(stream):
            stream.needs_wake = lease.accept_move and old.slots.raw is not None
            return Moved.NOT
        await self.look()
        if self._repository.default(old.spec.name) is not new:
            return await self.move(lease, allowed=allowed)
        if not self._has_room(stream, old, new):
            stream.needs_wake = lease.accept_move
            return Moved.NOT
        slot = new.slots.acquire(stream.key)  # at once: others look for room too
        task = asyncio.create_task(self._move(stream, old, new, slot, policy))
        await wait_for_end(task)
        if (moved := task.result()) is Moved.NOT and lease.ended is not None:
            raise lease.ended
        return moved

    def _has_room(self, stream: Stream, old: ServedModel, new: ServedModel) -> bool:
        """Whether a move can be tried now."""
        if monotonic() < self._paused_until or old.batcher.has_queued(stream):
            return False
        if new.slots.full or not self._registry.checkpointer.ready:
            self._paused_until = monotonic() + PAUSE_SECONDS
            return False
        return True

    async def _move(self, stream: Stream, old: ServedModel, new: ServedModel, slot: int, policy: SwapPolicy) -> Moved:
        """Moves a stream to a slot. Returns NOT when it stays; then its lease may have ended."""
        with SPANS.span("swap", previous_version=old.spec.version) as span:
            try:
                [checkpoint] = await old.batcher.run_between(lambda: checkpoint_rows([stream]))
                state, how = await self._new_state(checkpoint, old, new, policy)
                moved = await self._store_move(stream, with_state(checkpoint, old.slots, new.spec, state))
                if moved is None:
                    span.fail("another server has the stream")
                    new.slots.release(slot)
                    return Moved.NOT
                self._registry.mark_in_use(stream)
                await old.batcher.run_between(
                    partial(self._registry.streams.change_version, stream, moved, new.slots, slot)
                )
            except ModelFailed as error:
                log.error("stream %s stays on %s: %s", stream.key.stream_id, old.spec.title, error)
                _count_failure(stream, new, slot, span, error)
                return Moved.NOT
            except TidegateError as error:  # the store may have the stream on either version: the next open finds out
                _count_failure(stream, new, slot, span, error)
                await self._registry.drop(stream, error)
                return Moved.NOT
            new.metrics.moves[how.value] += 1
            log_event("moved", stream.key, new.spec, span, step=stream.step, epoch=stream.epoch, state=how.value)
        if stream.lease is not None and stream.lease.on_durable is not None:
            stream.lease.on_durable()
        return how

    async def _new_state(
        self, checkpoint: Checkpoint, old: ServedModel, new: ServedModel, policy: SwapPolicy
    ) -> tuple[Arrays, Moved]:
        """The state of a stream under the new version, and how it came to it. Raises ModelFailed."""
        rows = raw_rows(checkpoint, old.slots)
        if policy is SwapPolicy.RESET:
            return tuple(tensor.initial for tensor in new.spec.state), Moved.RESET
        # Other bits than alone are no worse for a stream that begins here, but they would not be the same twice.
        together = new.metrics.batch_invariant
        inputs = stream_inputs(checkpoint, old.slots)
        return await self.replayer.state_after(
            new.batcher.engine.model, rows, inputs, together=together
        ), Moved.REWARMED

    async def _store_move(self, stream: Stream, checkpoint: Checkpoint) -> Checkpoint | None:
        """Claims the stream and stores it under the new version. Returns None when another server has it; then it is gone here.

        Raises StoreUnavailable.
        """
        crash_point("before-move")
        record = await self._store.claim(stream.key, stream.epoch, checkpoint.model, stream.owner)
        crash_point("during-move")
        if record is None or not record.metadata.is_ours:
            await self._registry.drop(stream, self._registry.gone_error(stream, await self._store.load(stream.key)))
            return None
        # The stream keeps its old epoch until it has moved: the checkpointer may still store it, and must be refused.
        moved = replace(checkpoint, epoch=record.metadata.epoch)
        if moved.step:
            [accepted] = await self._store.save([moved])
            if not accepted:
                await self._registry.drop(stream, self._registry.gone_error(stream, await self._store.load(stream.key)))
                return None
        crash_point("after-move")
        if stream.phase is not Phase.LIVE:
            raise StoreUnavailable("", f"stream '{stream.key.stream_id}' was dropped while it moved; try again")
        return moved

    def close(self) -> None:
        """Ends the thread."""
        self.replayer.close()


def _count_failure(stream: Stream, new: ServedModel, slot: int, span: Span, error: TidegateError) -> None:
    """Gives the slot back after a move that has failed, counts it and tells why."""
    new.metrics.moves["failed"] += 1
    new.slots.release(slot)
    span.fail(error)
    log_event("not_moved", stream.key, new.spec, span, reason=str(error))


def _is_recorded(stream: Stream) -> bool:
    """Whether enough timesteps of a live stream are kept to replay it."""
    raw = stream.slots.raw
    return stream.step == 0 or (raw is not None and raw.is_full(stream.slot, stream.step))


async def _nothing() -> None:
    """There is nothing to look at."""
