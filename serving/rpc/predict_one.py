"""`PredictOne` of `protos/tidegate/v1`: one timestep and one answer in a unary call.

The stream stays in memory as an idle stream, so that the next call for it is fast: it continues without asking the
store. Another server may have opened the stream meanwhile, and then the state here is old. So no result that a caller
could act on is sent before the store has confirmed it. When such a try fails, it is repeated from the store.
"""

import asyncio
from time import perf_counter
from weakref import WeakValueDictionary

from tidegate.core.access import Caller
from tidegate.core.errors import InvalidField, LeaseEnded, StepGap, StreamNotFound, StreamRefused, ValuesDiffer
from tidegate.core.spec import Key, Prediction
from tidegate.core.stream_id import check_stream_id
from tidegate.core.streams import Existence, Lease, OpenOptions
from tidegate.core.swap_policy import Moved
from tidegate.rpc import wire
from tidegate.rpc.backend import Access, OpenResult, StreamBackend
from tidegate.rpc.stream_quota import StreamQuota
from tidegate.v1 import tidegate_pb2 as pb

# Every try but the first claims the stream. They all fail only if others claim it within the milliseconds of each.
TRIES = 4


class PredictOneHandler:
    """Answers single timesteps."""

    def __init__(self, backend: StreamBackend, access: Access) -> None:
        self._backend = backend
        self._access = access
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    async def predict(self, request: pb.PredictOneRequest, caller: Caller, quota: StreamQuota) -> pb.PredictOneResponse:
        """The answer to one timestep. Raises TidegateError when it was not applied, or could not be stored."""
        started = perf_counter()
        check_stream_id(request.stream_id)
        key = Key(caller.tenant.name, request.stream_id)
        self._access.take_steps(caller, 1)
        sync = wire.decode_sync(request.durability, default=True)
        output_format = wire.decode_output_format(request.output_format)
        # A client that times out sends its timestep again, perhaps while the first one is still being stored.
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            prediction, lease, moved = await self._answer(key, request, caller, quota, sync=sync)
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

    async def _answer(
        self, key: Key, request: pb.PredictOneRequest, caller: Caller, quota: StreamQuota, *, sync: bool
    ) -> tuple[Prediction, Lease, Moved]:
        """The answer, durable if the client wants that; the lease under which it was computed; whether the stream has moved.

        The lease is over.
        """
        moved = Moved.NOT
        # An open compares the inputs of a stream with those that it has.
        lease = None if request.stream_inputs else self._backend.acquire_idle(key, request.model, request.version)
        for tries_left in range(TRIES, 0, -1):
            reused = lease is not None  # and the store was not asked whether it is still valid
            if lease is None:
                opened = await self._open(key, request, caller, quota)
                lease, moved = opened.lease, moved if opened.moved is Moved.NOT else opened.moved
            quota.leases.add(lease)
            try:
                timestep = wire.decode_timestep(request, lease.stream.slots.layout)
                prediction = await self._backend.queue(lease).submit(lease, timestep)
                if sync:
                    await self._backend.wait_durable(lease, prediction.step)
            except (LeaseEnded, StreamRefused) as error:
                if lease.ended is None or isinstance(error, InvalidField) or tries_left == 1:
                    raise
            except (StepGap, ValuesDiffer):
                if not reused:
                    raise
            else:
                return prediction, lease, moved
            finally:
                quota.leases.discard(lease)
                self._backend.release_to_idle(lease, opened=not reused)
            lease = None
        raise AssertionError("the last try returns or raises")

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
