"""`PredictOne` of `protos/tidegate/v1`: one timestep, one answer, and nothing held in between but what makes the next one fast.

A stream that an earlier call has left in memory is gone on with as it stands, without asking the store. Somebody else may have
opened it meanwhile, and what is here is old: so nothing that a caller could act on leaves before the store has confirmed it, and
whatever else comes of such a try is tried again from the store.
"""

import asyncio
from time import perf_counter
from weakref import WeakValueDictionary

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core.errors import InvalidField, StepGap, StreamEnded, StreamNotFound, StreamRefused, ValuesDiffer
from serving.core.spec import Key, Prediction, Timestep
from serving.core.stream_id import check_stream_id
from serving.core.streams import Ask, Existence, Lease
from serving.rpc import wire
from serving.rpc.desk import DEFAULT_TENANT, Desk
from serving.rpc.share import Share

# Each try but the first claims the stream. Others would have to claim it within the milliseconds of each.
TRIES = 4


class One:
    """Answers single timesteps for a desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    async def predict(self, request: pb.PredictOneRequest, share: Share) -> pb.PredictOneResponse:
        """The answer to one timestep; raises TidegateError when it was not applied, or could not be stored."""
        begun = perf_counter()
        check_stream_id(request.stream_id)
        key = Key(DEFAULT_TENANT, request.stream_id)
        timestep = wire.decode_timestep(request)
        sync = wire.decode_sync(request.durability, default=True)
        form = wire.decode_output_format(request.output_format)
        # A client that waits no longer sends its timestep again, maybe while the first is still being stored.
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            prediction, lease = await self._answer(key, request, timestep, share, sync=sync)
        spec = lease.stream.slots.spec
        self._desk.line(lease).answered(perf_counter() - begun)
        return pb.PredictOneResponse(
            prediction=wire.make_prediction(
                prediction, lease.durable_step, spec, numbers=wire.as_numbers(form, bool(request.numbers))
            ),
            model=spec.name,
            version=spec.version,
        )

    async def _answer(
        self, key: Key, request: pb.PredictOneRequest, timestep: Timestep, share: Share, *, sync: bool
    ) -> tuple[Prediction, Lease]:
        """The answer, as sure as the client wants it, and the hold on the stream by which it came, which is over."""
        lease = self._desk.go_on(key, request.model, request.version)
        for left in range(TRIES, 0, -1):
            known = lease is not None  # and nobody asked the store whether it is still so
            if lease is None:
                lease = await self._open(key, request, timestep, share)
            share.singles.add(lease)
            try:
                prediction = await self._desk.line(lease).submit(lease, timestep)
                if sync:
                    await self._desk.durable(lease, prediction.step)
            except (StreamEnded, StreamRefused) as error:
                if lease.ended is None or isinstance(error, InvalidField) or left == 1:
                    raise
            except (StepGap, ValuesDiffer):
                if not known:
                    raise
            else:
                return prediction, lease
            finally:
                share.singles.discard(lease)
                self._desk.rest(lease, opened=not known)
            lease = None
        raise AssertionError("the last try returns or raises")

    async def _open(self, key: Key, request: pb.PredictOneRequest, timestep: Timestep, share: Share) -> Lease:
        ask = Ask(Existence.MUST_EXIST if timestep.step > 1 else Existence.ANY)
        try:
            with share.room():
                return (await self._desk.open(key, request.model, request.version, ask)).lease
        except StreamNotFound:
            raise StreamNotFound(key.stream_id, hint="a stream begins with step 1") from None
