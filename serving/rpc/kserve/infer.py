"""`ModelInfer`: one timestep of a sequence in a unary call; see `rpc.idle_steps`."""

from functools import partial
from time import perf_counter

from tidegate.core.access import Caller
from tidegate.core.errors import StoreBehind
from tidegate.core.spec import Key, Prediction, Timestep
from tidegate.core.streams import Lease
from tidegate.rpc.backend import OpenResult
from tidegate.rpc.idle_steps import IdleSteps
from tidegate.rpc.kserve.codec import MOVED, RESUMED, encode_parameter
from tidegate.rpc.kserve.decode import Request, SequenceFlags, read_flags
from tidegate.rpc.kserve.errors import NotStored
from tidegate.rpc.kserve.sequences import Sequences, check_stream_inputs, open_options, sequence_key
from tidegate.rpc.stream_quota import StreamQuota


class InferHandler:
    """Answers unary requests."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._backend = sequences.backend
        self._steps = IdleSteps(self._backend)

    async def infer(self, request: Request, caller: Caller, quota: StreamQuota) -> bytes:
        """The answer to one request. Raises TidegateError when its timestep was not applied or could not be stored."""
        started = perf_counter()
        flags = read_flags(request)
        served = await self._sequences.codec_of(request.model_name, request.model_version)
        key = sequence_key(flags.stream_id, served.spec.name, caller)
        self._sequences.access.take_steps(caller, 1)
        if flags.start:  # the old stream is deleted before the new one begins, so check everything first
            served.check_timestep(request)
        prediction, lease, moves = await self._steps.run(
            key,
            quota,
            partial(self._acquire_idle, key, request, flags),
            partial(self._open, key, request, flags, caller, quota),
            partial(self._step, request, flags),
        )
        notes = RESUMED if moves and not flags.start else b""
        for moved in moves:
            notes += MOVED[moved]
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

    def _acquire_idle(self, key: Key, request: Request, flags: SequenceFlags) -> Lease | None:
        if flags.start:
            return None
        return self._backend.acquire_idle(key, request.model_name, request.model_version)

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

    async def _step(self, request: Request, flags: SequenceFlags, lease: Lease) -> Prediction:
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
