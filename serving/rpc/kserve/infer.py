"""`ModelInfer`: one timestep of a sequence in a unary call.

It works like `rpc.predict_one`: the stream stays in memory as an idle stream, and nothing that a caller could act on is
sent before the store has confirmed that the stream is still ours.
"""

import asyncio
from time import perf_counter
from weakref import WeakValueDictionary

from tidegate.core.access import Caller
from tidegate.core.errors import InvalidField, LeaseEnded, StepGap, StoreBehind, StreamRefused, ValuesDiffer
from tidegate.core.spec import Key, Prediction, Timestep
from tidegate.core.streams import Lease
from tidegate.rpc.backend import OpenResult
from tidegate.rpc.kserve.codec import MOVED, RESUMED, encode_parameter
from tidegate.rpc.kserve.decode import Request, SequenceFlags, read_flags
from tidegate.rpc.kserve.errors import NotStored
from tidegate.rpc.kserve.sequences import Sequences, check_stream_inputs, open_options, sequence_key
from tidegate.rpc.stream_quota import StreamQuota

# Every try but the first claims the stream. They all fail only if others claim it within the milliseconds of each.
TRIES = 4


class InferHandler:
    """Answers unary requests."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._backend = sequences.backend
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    async def infer(self, request: Request, caller: Caller, quota: StreamQuota) -> bytes:
        """The answer to one request. Raises TidegateError when its timestep was not applied or could not be stored."""
        started = perf_counter()
        flags = read_flags(request)
        served = await self._sequences.codec_of(request.model_name, request.model_version)
        key = sequence_key(flags.stream_id, served.spec.name, caller)
        self._sequences.access.take_steps(caller, 1)
        if flags.start:  # the old stream is deleted before the new one begins, so check everything first
            served.check_timestep(request)
        # A client that times out sends its request again, perhaps while the first one is still being stored.
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            prediction, lease, notes = await self._answer(key, request, flags, caller, quota)
        codec = self._sequences.codec(lease.stream.slots.spec)
        self._backend.queue(lease).observe_step(perf_counter() - started)
        return codec.encode(
            request.id,
            prediction,
            codec.select(request),
            stream=encode_parameter("stream_id", string_param=key.stream_id),
            durable_step=lease.durable_step,
            notes=notes,
        )

    async def _answer(
        self, key: Key, request: Request, flags: SequenceFlags, caller: Caller, quota: StreamQuota
    ) -> tuple[Prediction, Lease, bytes]:
        """The answer, the lease under which it was computed, which is over, and further parameters."""
        idle, notes = None, b""
        if not flags.start:
            idle = self._backend.acquire_idle(key, request.model_name, request.model_version)
        for tries_left in range(TRIES, 0, -1):
            reused = idle is not None  # and the store was not asked whether it is still valid
            if idle is None:
                opened = await self._open(key, request, flags, caller, quota)
                notes += MOVED[opened.moved]
                lease = opened.lease
            else:
                lease = idle
            quota.leases.add(lease)
            try:
                prediction = await self._step(lease, request, flags)
            except (LeaseEnded, StreamRefused) as error:
                if lease.ended is None or isinstance(error, InvalidField) or tries_left == 1:
                    raise
            except (StepGap, ValuesDiffer):
                if not reused:
                    raise
            else:
                return prediction, lease, notes if reused or flags.start else RESUMED + notes
            finally:
                quota.leases.discard(lease)
                self._backend.release_to_idle(lease, opened=not reused)
            idle = None
        raise AssertionError("the last try returns or raises")

    async def _open(
        self, key: Key, request: Request, flags: SequenceFlags, caller: Caller, quota: StreamQuota
    ) -> OpenResult:
        model, version = request.model_name, request.model_version
        served = await self._sequences.codec_of(model, version)
        inputs = served.decode_stream_inputs(request, start=flags.start)
        options = open_options(version, flags, inputs, sync=flags.sync is not False)
        if flags.start:
            return await self._sequences.begin(key, served.spec, caller, quota, options)
        return await self._sequences.resume(key, model, version, caller, quota, options)

    async def _step(self, lease: Lease, request: Request, flags: SequenceFlags) -> Prediction:
        """Applies the timestep, and stores it or ends the sequence."""
        codec = self._sequences.codec(lease.stream.slots.spec)
        codec.select(request)
        check_stream_inputs(lease, codec.decode_stream_inputs(request, start=False))
        prediction = await self._backend.queue(lease).submit(lease, Timestep(flags.step, codec.decode_row(request)))
        if flags.end:
            await self._backend.delete(lease)
        elif flags.sync is not False:
            try:
                await self._backend.wait_durable(lease, prediction.step)
            except StoreBehind as error:
                raise NotStored(prediction.step, error) from error
        return prediction
