"""Opens the streams of sequences.

A sequence is a stream of the tenant that calls. Its id is the sequence id; a number is written in decimal digits.
1. The START flag begins a new stream. A stream of that id and model is deleted first, whoever has it open.
2. Without the flag, a sequence continues where its stream is: also after silence, a restart of the server, or a step
   over another connection. An unknown id is refused.
3. The END flag deletes the stream once its timestep has run: the client says that the sequence is over.
"""

from dataclasses import replace

from tidegate.core.access import Caller
from tidegate.core.errors import ModelMismatch, StreamExists, StreamExpired, StreamNotFound
from tidegate.core.named_inputs import Named
from tidegate.core.spec import Key, Spec
from tidegate.core.stream_id import check_stream_id
from tidegate.core.stream_inputs import decide_inputs
from tidegate.core.streams import Existence, Lease, OpenOptions
from tidegate.rpc.backend import Access, AdminBackend, OpenResult, StreamBackend
from tidegate.rpc.kserve.codec import ModelCodec
from tidegate.rpc.kserve.decode import SequenceFlags
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

    async def codec_of(self, model: str, version: str) -> ModelCodec:
        """The codec of a model by name; ModelNotFound when it is not served."""
        return self.codec((await self.backend.model(model, version)).spec)

    async def begin(self, key: Key, spec: Spec, caller: Caller, quota: StreamQuota, options: OpenOptions) -> OpenResult:
        """Begins a sequence anew under a model. `options` are all but `existence`.

        Raises:
            ModelMismatch: the id belongs to a stream of another model; nothing has changed.
            StreamExists: others begin the same sequence all the time.
            TidegateError: as `StreamBackend.open` does.

        """
        self.access.take_open(caller)
        for tries_left in range(TRIES, 0, -1):
            try:
                with quota.reserve(spec):
                    new = replace(options, existence=Existence.MUST_BE_NEW)
                    return await self.backend.open(key, spec.name, spec.version, new)
            except StreamExists:
                if tries_left == 1:
                    raise
            await self._delete(key, spec)
        raise AssertionError("the last try returns or raises")

    async def resume(
        self, key: Key, model: str, version: str, caller: Caller, quota: StreamQuota, options: OpenOptions
    ) -> OpenResult:
        """Continues a sequence. `options` are all but `existence`.

        Raises:
            StartMissing: it is unknown, or has expired.
            TidegateError: as `StreamBackend.open` does.

        """
        self.access.take_open(caller)
        try:
            with quota.reserve():
                existing = replace(options, existence=Existence.MUST_EXIST)
                return await self.backend.open(key, model, version, existing)
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


def open_options(version: str, flags: SequenceFlags, inputs: Named, *, sync: bool) -> OpenOptions:
    """The options with which a request opens its sequence.

    The stream may move to another version unless the request names one. A client that continues may have answers to
    timesteps that the server has lost in a crash, and they must run again on the version that answered them. Not so
    when its answers have waited for the store, or when it tells the last one.
    """
    may_move = not version and (flags.start or sync or flags.answered is not None)
    return OpenOptions(inputs=inputs, move_now=may_move, accept_move=may_move, answered=flags.answered or 0)


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
