"""`PredictOne` of `protos/tidegate/v1`: one timestep and one answer in a unary call; see `rpc.idle_steps`."""

from functools import partial
from time import perf_counter

from tidegate.core.access import Caller
from tidegate.core.errors import StreamNotFound
from tidegate.core.spec import Key, Prediction
from tidegate.core.stream_id import check_stream_id
from tidegate.core.streams import Existence, Lease, OpenOptions
from tidegate.core.swap_policy import Moved
from tidegate.rpc import wire
from tidegate.rpc.backend import Access, OpenResult, StreamBackend
from tidegate.rpc.idle_steps import IdleSteps
from tidegate.rpc.stream_quota import StreamQuota
from tidegate.v1 import tidegate_pb2 as pb


class PredictOneHandler:
    """Answers single timesteps."""

    def __init__(self, backend: StreamBackend, access: Access) -> None:
        self._backend = backend
        self._access = access
        self._steps = IdleSteps(backend)

    async def predict(self, request: pb.PredictOneRequest, caller: Caller, quota: StreamQuota) -> pb.PredictOneResponse:
        """The answer to one timestep. Raises TidegateError when it was not applied, or could not be stored."""
        started = perf_counter()
        check_stream_id(request.stream_id)
        key = Key(caller.tenant.name, request.stream_id)
        self._access.take_steps(caller, 1)
        sync = wire.decode_sync(request.durability, default=True)
        output_format = wire.decode_output_format(request.output_format)
        # An open compares the inputs of a stream with those that it has.
        prediction, lease, moves = await self._steps.run(
            key,
            quota,
            lambda: None if request.stream_inputs else self._backend.acquire_idle(key, request.model, request.version),
            partial(self._open, key, request, caller, quota),
            partial(self._step, request, sync=sync),
        )
        moved = Moved.NOT
        for latest in moves:
            moved = moved if latest is Moved.NOT else latest
        spec = lease.stream.slots.spec
        self._backend.queue(lease).observe_step(perf_counter() - started)
        return pb.PredictOneResponse(
            prediction=wire.make_prediction(
                prediction, lease.durable_step, spec, numbers=wire.as_numbers(output_format, bool(request.numbers))
            ),
            model=spec.name,
            version=spec.version,
            new_state=wire.NEW_STATES[moved],
        )

    async def _open(self, key: Key, request: pb.PredictOneRequest, caller: Caller, quota: StreamQuota) -> OpenResult:
        self._access.take_open(caller)
        existence = Existence.MUST_EXIST if request.step > 1 else Existence.ANY
        inputs = wire.decode_named(request.stream_inputs)
        options = OpenOptions(existence, inputs=inputs, move_now=not request.version)
        try:
            with quota.reserve():
                return await self._backend.open(key, request.model, request.version, options)
        except StreamNotFound:
            raise StreamNotFound(key.stream_id, hint="a stream begins with step 1") from None

    async def _step(self, request: pb.PredictOneRequest, lease: Lease, *, sync: bool) -> Prediction:
        timestep = wire.decode_timestep(request, lease.stream.slots.layout)
        prediction = await self._backend.queue(lease).submit(lease, timestep)
        if sync:
            await self._backend.wait_durable(lease, prediction.step)
        return prediction
