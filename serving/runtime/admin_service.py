"""The administrative requests on streams and models, whichever server has the stream in memory."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from tidegate.core.errors import (
    CheckpointBroken,
    InvalidField,
    ModelNotFound,
    Stopping,
    StreamExists,
    StreamNotFound,
)
from tidegate.core.import_check import check_import
from tidegate.core.model_change import ModelAction, ModelChange
from tidegate.core.payload import check_payload_size
from tidegate.core.slots import Slots
from tidegate.core.spec import Checkpoint, Key
from tidegate.core.streams import Phase, checkpoint_rows
from tidegate.rpc.backend import ModelInfo, StreamInfo
from tidegate.runtime.channel import ChannelClosed
from tidegate.runtime.model_messages import ModelControl
from tidegate.runtime.peers import PeerUnresponsive
from tidegate.runtime.repository import Repository
from tidegate.runtime.stream_log import log_event
from tidegate.runtime.stream_registry import StreamRegistry, contention_error, is_ours
from tidegate.runtime.stream_service import CLAIM_TRIES, PHASE_BY_TOMBSTONE, STREAM_ID_BYTES
from tidegate.runtime.version_loader import VersionLoader
from tidegate.runtime.version_set import VersionName
from tidegate.store import Holder, Record, ScanFilter, ScanScope, Store, StreamMetadata, Tombstone, decode, encode

# How many scans look for the streams of a page: about a second, when few of a million streams match. The caller asks on.
SCANS_OF_A_PAGE = 100
# The scope of the scan for each phase that a client lists.
SCAN_SCOPES = {Phase.LIVE: ScanScope.IN_MEMORY, Phase.PARKED: ScanScope.ALL, Phase.EXPIRED: ScanScope.EXPIRED}


class AdminService:
    """Answers operators.

    Args:
        repository: the models.
        loader: loads versions on demand.
        store: where checkpoints are kept.
        registry: the streams of this process.
        control: decides what is served.

    """

    def __init__(
        self,
        repository: Repository,
        loader: VersionLoader,
        store: Store,
        registry: StreamRegistry,
        control: ModelControl,
    ) -> None:
        self._control = control
        self._loader = loader
        self._repository = repository
        self._store = store
        self._registry = registry

    def __repr__(self) -> str:
        return f"<AdminService of {self._registry!r}>"

    def models(self) -> list[ModelInfo]:
        """The models being served."""
        return [served.info for served in self._repository.shown]

    def on_demand(self) -> Sequence[VersionName]:
        """The versions that are loaded when somebody asks for them."""
        return self._repository.on_demand

    async def model(self, name: str, version: str) -> ModelInfo:
        """One model, loaded if need be; ModelNotFound when it is not served."""
        return (await self._loader.find(name, version, begun=True)).info

    async def change_models(self, action: ModelAction, name: str, version: str) -> list[ModelChange]:
        """Loads, unloads or looks for versions, in every process.

        Raises:
            ModelNotFound: there is none to load or to unload.
            Stopping: the process that decides has ended.

        """
        try:
            changes = await self._control.change(action, name, version)
        except ChannelClosed as error:
            raise Stopping from error
        if not changes and action != "reload":
            raise ModelNotFound(name, version, [served.spec.title for served in self._repository.shown])
        return changes

    async def list(
        self, tenant: str, prefix: str, after: str, limit: int, phase: Phase | None, *, model: str, version: str
    ) -> tuple[list[StreamInfo], str]:
        """Streams in the order of their ids: at most `limit` after `after`, and the id to continue after, empty at the end.

        Only those in `phase`, of `model` and of `version`, as far as these are given. A stream that another server has
        in memory is described as of its last checkpoint.
        """
        scope = ScanScope.ALL if phase is None else SCAN_SCOPES.get(phase, ScanScope.ALL)
        wanted = ScanFilter(tenant, prefix, scope, model, version)
        streams: list[StreamInfo] = []
        for _ in range(SCANS_OF_A_PAGE):
            heads, following = await self._store.scan(wanted, after, limit - len(streams))
            streams += [info for info in map(self._info, heads) if phase is None or info.phase is phase]
            after = following or ""
            if not after or len(streams) == limit:
                break
        return streams, after

    async def describe(self, key: Key) -> StreamInfo:
        """One stream as of its last applied timestep, whichever server has it.

        Raises StreamNotFound when there is none.
        """
        return self._info((await self._load_settled(key)).metadata)

    async def delete(self, key: Key) -> StreamInfo:
        """Deletes a stream and its state. A call that has it open ends; at another server it ends soon.

        Raises StreamNotFound when there is none.
        """
        with suppress(PeerUnresponsive):  # a server that hangs must not prevent a delete
            await self._load_settled(key)
        async with self._registry.lock(key):
            for _ in range(CLAIM_TRIES):
                record = _found(key, await self._store.load(key))
                info = self._info(record.metadata)
                if await self._store.delete(key, record.metadata.epoch):
                    self._registry.known_count -= not record.metadata.tombstone
                    log_event("deleted", key, step=record.metadata.step)
                    stream = self._registry.streams.find(key)
                    if stream is not None:
                        await self._registry.drop(stream, StreamNotFound(key.stream_id))
                    return info
        raise contention_error(key)

    async def export(self, key: Key) -> tuple[bytes, StreamInfo]:
        """A stream's state as a checkpoint record, as of its last applied timestep.

        Raises StreamNotFound when there is none.
        """
        checkpoint, info = await self._latest(key)
        return encode(checkpoint), info

    async def import_(self, tenant: str, record: bytes, stream_id: str) -> StreamInfo:
        """Creates a stream from a checkpoint record.

        Raises:
            InvalidField: the record is damaged or of a newer format, or no server of this model can have written it.
            ModelNotFound: its model is not served.
            StreamExists: there is a stream with that id.
            TooManyStreams: the server has as many streams as it may.

        """
        try:
            checkpoint = decode(record, "checkpoint")
        except CheckpointBroken as error:  # the client's mistake, not a loss of data in the store
            raise InvalidField("checkpoint", error.message) from error
        return await self._create(checkpoint, Key(tenant, stream_id or checkpoint.key.stream_id), check_import)

    async def fork(self, source: Key, stream_id: str) -> StreamInfo:
        """Creates a stream that starts with the state of another one.

        Raises StreamNotFound, StreamExists, TooManyStreams.
        """
        checkpoint, _ = await self._latest(source)
        return await self._create(checkpoint, Key(source.tenant, stream_id or secrets.token_urlsafe(STREAM_ID_BYTES)))

    async def _load_settled(self, key: Key) -> Record:
        """The record of a stream, after another server that has it in memory has stored it.

        Never called while holding the stream's lock: nobody waits for another server with a lock.
        """
        return _found(key, await self._registry.peers.load_settled(key))

    async def _latest(self, key: Key) -> tuple[Checkpoint, StreamInfo]:
        """The checkpoint of a stream as of its last applied timestep, wherever it is."""
        await self._load_settled(key)
        async with self._registry.lock(key):
            record = _found(key, await self._store.load(key))
            info = self._info(record.metadata)
            stream = self._registry.streams.find(key)
            if stream is not None and stream.phase is Phase.LIVE and is_ours(record, stream):
                batcher = self._repository.of(stream.slots).batcher
                return (await batcher.run_between(lambda: checkpoint_rows([stream])))[0], info
            if record.checkpoint is None:  # expired, or opened and never stepped
                raise StreamNotFound(key.stream_id)
            return record.checkpoint, info

    async def _create(
        self, checkpoint: Checkpoint, key: Key, check: Callable[[Checkpoint, Slots], None] = check_payload_size
    ) -> StreamInfo:
        """Stores a state as a new stream, in one write: either all of it is stored, or nothing."""
        await self._loader.load(checkpoint.model.name, checkpoint.model.version)
        served = [
            served for served in self._repository.shown if served.spec.fingerprint == checkpoint.model.fingerprint
        ]
        if not served:
            titles = [f"{served.spec.title} ({served.spec.fingerprint[:12]})" for served in self._repository.shown]
            raise ModelNotFound(checkpoint.model.title, f"with fingerprint {checkpoint.model.fingerprint[:12]}", titles)
        check(checkpoint, served[0].slots)
        await self._registry.tenants.add(key.tenant)
        with self._registry.reserve_new() as confirm:
            async with self._registry.lock(key):
                seen = await self._store.load(key)
                if seen is not None and not seen.metadata.tombstone:
                    raise StreamExists(key.stream_id)
                created = replace(checkpoint, key=key, model=served[0].spec.id)
                record = await self._store.create(created, seen.metadata.epoch if seen is not None else 0)
                if record is None:
                    raise StreamExists(key.stream_id)
                confirm()
                log_event("created", key, served[0].spec, step=record.metadata.step)
                return self._info(record.metadata)

    def _info(self, head: StreamMetadata) -> StreamInfo:
        """A stream as an operator sees it: what the store has, or what is newer in this process."""
        stream = self._registry.streams.find(head.key)
        is_live_here = stream is not None and stream.phase is Phase.LIVE and stream.epoch == head.epoch and head.is_ours
        elsewhere = head.holder is Holder.OTHER and head.live
        phase = Phase.LIVE if is_live_here or elsewhere else PHASE_BY_TOMBSTONE[head.tombstone]
        step = stream.step if is_live_here and stream is not None else head.step
        return StreamInfo(
            head.key.stream_id,
            phase,
            head.model,
            step,
            head.step,
            head.epoch,
            head.created_unix_nano,
            head.updated_unix_nano,
            head.state_bytes,
        )


def _found(key: Key, record: Record | None) -> Record:
    if record is None or record.metadata.tombstone is Tombstone.DELETED:
        raise StreamNotFound(key.stream_id)
    return record
