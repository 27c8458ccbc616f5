"""What operators ask of streams and models: list, describe, delete, export, import and fork, whichever server has the stream."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from serving.core.errors import (
    CheckpointBroken,
    InvalidField,
    ModelNotFound,
    StreamExists,
    StreamNotFound,
)
from serving.core.imported import check_imported
from serving.core.slots import Slots
from serving.core.spec import Checkpoint, Key
from serving.core.streams import Phase, check_fits, checkpoint_rows
from serving.rpc.desk import ServedModel, StreamInfo
from serving.runtime.holdings import Holdings, contended, is_ours
from serving.runtime.keeper import CLAIM_TRIES, LEFT, STREAM_ID_BYTES
from serving.runtime.peers import HolderSilent
from serving.runtime.repository import Repository
from serving.store import Head, Holder, Record, Store, Tombstone, Wanted, decode, encode

# What to look for in the store when streams in a phase are listed.
WANTED = {Phase.LIVE: Wanted.HELD, Phase.PARKED: Wanted.ALL, Phase.EXPIRED: Wanted.EXPIRED}


class Administration:
    """Answers operators.

    Args:
        repository: the models.
        store: where streams rest.
        holdings: the streams of this process.

    """

    def __init__(self, repository: Repository, store: Store, holdings: Holdings) -> None:
        self._repository = repository
        self._store = store
        self._holdings = holdings

    def __repr__(self) -> str:
        return f"<Administration of {self._holdings!r}>"

    def models(self) -> list[ServedModel]:
        """The models being served."""
        return [served.described for served in self._repository]

    def model(self, name: str, version: str) -> ServedModel:
        """One model; ModelNotFound when it is not served."""
        return self._repository.find(name, version).described

    async def list(self, tenant: str, prefix: str, after: str, limit: int, phase: Phase | None) -> list[StreamInfo]:
        """Streams in the order of their ids, those after `after`; at most `limit`, those in `phase` only.

        What another server has in memory is told as of its last checkpoint.
        """
        wanted = Wanted.ALL if phase is None else WANTED.get(phase, Wanted.ALL)
        found: list[StreamInfo] = []
        following: str | None = after
        while following is not None and len(found) < limit:
            heads, following = await self._store.scan(tenant, prefix, following, limit - len(found), wanted)
            found += [info for info in map(self._info, heads) if phase is None or info.phase is phase]
        return found

    async def describe(self, key: Key) -> StreamInfo:
        """One stream, as of its last applied timestep, whichever server has it; StreamNotFound when it is not known."""
        return self._info((await self._settled(key)).head)

    async def delete(self, key: Key) -> StreamInfo:
        """Deletes a stream and its state; a call that has it open ends, at another server soon.

        Raises StreamNotFound when it is not known.
        """
        with suppress(HolderSilent):  # it may be frozen, and must not keep anybody from deleting
            await self._settled(key)
        async with self._holdings.alone(key):
            for _ in range(CLAIM_TRIES):
                record = _found(key, await self._store.load(key))
                info = self._info(record.head)
                if await self._store.forget(key, record.head.epoch):
                    self._holdings.known -= not record.head.tombstone
                    stream = self._holdings.streams.find(key)
                    if stream is not None:
                        await self._holdings.drop(stream, StreamNotFound(key.stream_id))
                    return info
        raise contended(key)

    async def export(self, key: Key) -> tuple[bytes, StreamInfo]:
        """A stream's state as a record, as of its last applied timestep. StreamNotFound when it is not known."""
        checkpoint, info = await self._latest(key)
        return encode(checkpoint), info

    async def import_(self, tenant: str, record: bytes, stream_id: str) -> StreamInfo:
        """Makes a stream from a record.

        Raises:
            InvalidField: the record is damaged or of a newer format, or no server of this model can have written it.
            ModelNotFound: its model is not served.
            StreamExists: there is a stream of that id.
            TooManyStreams: the server knows as many as it may.

        """
        try:
            checkpoint = decode(record, "checkpoint")
        except CheckpointBroken as error:  # a client's mistake, not a loss of the store's
            raise InvalidField("checkpoint", error.message) from error
        return await self._plant(checkpoint, Key(tenant, stream_id or checkpoint.key.stream_id), check_imported)

    async def fork(self, source: Key, stream_id: str) -> StreamInfo:
        """Makes a stream that starts at another one's state. StreamNotFound, StreamExists, TooManyStreams."""
        checkpoint, _ = await self._latest(source)
        return await self._plant(checkpoint, Key(source.tenant, stream_id or secrets.token_urlsafe(STREAM_ID_BYTES)))

    async def _settled(self, key: Key) -> Record:
        """What is held of a stream, after another server that has it in memory has stored it.

        Never called while one alone may open it: nobody waits for another server to do that.
        """
        return _found(key, await self._holdings.peers.settled(key))

    async def _latest(self, key: Key) -> tuple[Checkpoint, StreamInfo]:
        """A stream as of its last applied timestep, wherever it is."""
        await self._settled(key)
        async with self._holdings.alone(key):
            record = _found(key, await self._store.load(key))
            info = self._info(record.head)
            stream = self._holdings.streams.find(key)
            if stream is not None and stream.phase is Phase.LIVE and is_ours(record, stream):
                batcher = self._repository.of(stream.slots).batcher
                return (await batcher.between(lambda: checkpoint_rows([stream])))[0], info
            if record.checkpoint is None:  # expired, or opened and never stepped
                raise StreamNotFound(key.stream_id)
            return record.checkpoint, info

    async def _plant(
        self, checkpoint: Checkpoint, key: Key, check: Callable[[Checkpoint, Slots], None] = check_fits
    ) -> StreamInfo:
        """Stores a state as a new stream, in one write: so there is all of it, or nothing."""
        served = [one for one in self._repository if one.spec.fingerprint == checkpoint.model.fingerprint]
        if not served:
            titles = [f"{one.spec.title} ({one.spec.fingerprint[:12]})" for one in self._repository]
            raise ModelNotFound(checkpoint.model.title, f"with fingerprint {checkpoint.model.fingerprint[:12]}", titles)
        check(checkpoint, served[0].slots)
        with self._holdings.one_more() as began:
            async with self._holdings.alone(key):
                seen = await self._store.load(key)
                if seen is not None and not seen.head.tombstone:
                    raise StreamExists(key.stream_id)
                planted = replace(checkpoint, key=key, model=served[0].spec.id)
                record = await self._store.plant(planted, seen.head.epoch if seen is not None else 0)
                if record is None:
                    raise StreamExists(key.stream_id)
                began()
                return self._info(record.head)

    def _info(self, head: Head) -> StreamInfo:
        """A stream as an operator sees it: what the store knows, or what is newer here."""
        stream = self._holdings.streams.find(head.key)
        held = stream is not None and stream.phase is Phase.LIVE and stream.epoch == head.epoch and head.mine
        elsewhere = head.holder is Holder.OTHER and head.live
        phase = Phase.LIVE if held or elsewhere else LEFT[head.tombstone]
        step = stream.step if held and stream is not None else head.step
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
    if record is None or record.head.tombstone is Tombstone.DELETED:
        raise StreamNotFound(key.stream_id)
    return record
