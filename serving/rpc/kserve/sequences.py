"""Opens the streams of sequences.

A sequence is a stream of the tenant that calls. Its id is the sequence id; a number is written in decimal digits.
1. The START flag begins a new stream. A stream of that id and model is deleted first, whoever has it open.
2. Without the flag, a sequence continues where its stream is: also after silence, a restart of the server, or a step
   over another connection. An unknown id is refused.
3. The END flag deletes the stream once its timestep has run: the client says that the sequence is over.
"""

from tidegate.core.access import Caller
from tidegate.core.errors import ModelMismatch, StreamExists, StreamExpired, StreamNotFound
from tidegate.core.named_inputs import Named
from tidegate.core.spec import Key, Spec
from tidegate.core.stream_id import check_stream_id
from tidegate.core.stream_inputs import decide_inputs
from tidegate.core.streams import Existence, Lease, OpenOptions
from tidegate.rpc.backend import Access, AdminBackend, StreamBackend
from tidegate.rpc.kserve.codec import ModelCodec
from tidegate.rpc.kserve.errors import SequenceMissing, StartMissing
from tidegate.rpc.stream_quota import StreamQuota

# Each try but the first comes after another client has begun the same sequence meanwhile.
TRIES = 4
# More models than a server has at a time: those that were replaced are forgotten some day.
CODECS_MAX = 1024


class Sequences:
    """Opens sequences, and has the codec of each model."""

    def __init__(self, backend: StreamBackend, admin: AdminBackend, access: Access) -> None:
        self.backend = backend
        self.access = access
        self._admin = admin
        self._codecs: dict[int, ModelCodec] = {}

    def codec(self, spec: Spec) -> ModelCodec:
        """The codec of a model."""
        codec = self._codecs.get(id(spec))
        if codec is None:
            if len(self._codecs) >= CODECS_MAX:
                self._codecs.clear()
            codec = self._codecs[id(spec)] = ModelCodec(spec)  # the codec keeps the spec, so its id is not reused
        return codec

    def codec_of(self, model: str, version: str) -> ModelCodec:
        """The codec of a model by name; ModelNotFound when it is not served."""
        return self.codec(self.backend.model(model, version).spec)

    async def begin(self, key: Key, spec: Spec, caller: Caller, quota: StreamQuota, inputs: Named = ()) -> Lease:
        """Begins a sequence anew under a model, with the inputs of a stream that this model takes.

        Raises:
            ModelMismatch: the id belongs to a stream of another model; nothing has changed.
            StreamExists: others begin the same sequence all the time.
            TidegateError: as `StreamBackend.open` does.

        """
        self.access.take_opens(caller, 1)
        for tries_left in range(TRIES, 0, -1):
            try:
                with quota.reserve(spec):
                    options = OpenOptions(Existence.MUST_BE_NEW, inputs=inputs)
                    return (await self.backend.open(key, spec.name, spec.version, options)).lease
            except StreamExists:
                if tries_left == 1:
                    raise
            await self._delete(key, spec)
        raise AssertionError("the last try returns or raises")

    async def resume(
        self, key: Key, model: str, version: str, caller: Caller, quota: StreamQuota, inputs: Named = ()
    ) -> Lease:
        """Continues a sequence. Inputs that it began with may be given again.

        Raises:
            StartMissing: it is unknown, or has expired.
            TidegateError: as `StreamBackend.open` does.

        """
        self.access.take_opens(caller, 1)
        try:
            with quota.reserve():
                options = OpenOptions(Existence.MUST_EXIST, inputs=inputs)
                return (await self.backend.open(key, model, version, options)).lease
        except StreamNotFound:
            raise StartMissing(key.stream_id, model) from None
        except StreamExpired as error:
            hint = f"; its state has expired after long silence, its last step was {error.step}"
            raise StartMissing(key.stream_id, model, hint) from None

    async def _delete(self, key: Key, spec: Spec) -> None:
        """Deletes the stream of that id, if it is of this model, in any version."""
        try:
            found = (await self._admin.describe(key)).model
            if found.name != spec.name:
                raise ModelMismatch(key.stream_id, spec.title, found.title)
            await self._admin.delete(key)
        except StreamNotFound:
            pass  # somebody else has deleted it


def check_stream_inputs(lease: Lease, inputs: Named) -> None:
    """Raises InvalidField when a live stream began with other inputs than these."""
    if inputs:
        stream = lease.stream
        decide_inputs(stream.key, stream.slots, inputs, stream, None)


def sequence_key(stream_id: str, model: str, caller: Caller) -> Key:
    """The key of a sequence of a caller.

    Raises:
        SequenceMissing: the request belongs to none.
        InvalidField: no stream can have this id.

    """
    if not stream_id:
        raise SequenceMissing(model)
    check_stream_id(stream_id, "sequence_id")
    return Key(caller.tenant.name, stream_id)
