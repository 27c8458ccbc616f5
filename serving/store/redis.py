"""A store in Redis or Valkey, which the processes of many machines may share.

It uses one server, or a primary with replicas that sentinels watch; not a cluster. A stream is a hash. Sorted sets hold
the ids of each tenant in order, and the times of the last updates of streams and of tombstones. An operation that
checks an epoch and then writes is one script. The server runs a script atomically, so the fence holds.

Times have microseconds: scores are doubles, which cannot hold nanoseconds.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from operator import add
from typing import Any, TypeVar

from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError, ResponseError

from tidegate.core.errors import StoreUnavailable
from tidegate.core.spec import Checkpoint, Key, ModelId
from tidegate.store.codec import decode_record, encode, encode_all
from tidegate.store.parameters import columns
from tidegate.store.redis_address import RedisAddress
from tidegate.store.redis_client import NotReplicated, close_client, explained, forget_primary, make_client
from tidegate.store.redis_keys import (
    AGES,
    DELETED,
    HIGHEST_EPOCH,
    NOTICES,
    PREFIX,
    STREAM,
    TOMBSTONES,
    ids_key,
    key_of_member,
    member_of,
    stream_key,
    writer_key,
)
from tidegate.store.redis_scripts import (
    CLAIM,
    CREATE,
    DELETE,
    EXPIRE,
    FIELDS,
    PROLOGUE,
    REQUEST_SAVE,
    SAVE,
    SCAN,
    SET_RESIDENCY,
)
from tidegate.store.store import (
    DEAD_SECONDS,
    Holder,
    Record,
    Residency,
    ResidencyUpdate,
    ScanFilter,
    StreamMetadata,
    Tombstone,
    new_writer_id,
)

log = logging.getLogger("tidegate.store")

Result = TypeVar("Result")

FORMAT = 3
# A field that these formats lack is read as empty, so streams need not be converted.
OLDER_FORMATS = (b"1", b"2")
# The time for a whole operation. A healthy server answers in a millisecond; the checkpointer retries by itself.
TIMEOUT_S = 2.0
# The part of the timeout that a write waits for replicas, so that the server tells how many have it. It waits twice
# when the server does not know the script.
REPLICAS_PART = 0.4
# A failover must not undo these once they were confirmed: who owns a stream, its state, and that it is gone.
_REPLICATED = frozenset((PROLOGUE + CLAIM, PROLOGUE + CREATE, PROLOGUE + DELETE, SAVE))
# Streams of one script, which runs for about 2 ms. Meanwhile the server serves nobody else.
ROWS = 256
# How many streams one `expire` changes, and how many ids one `scan` reads.
EXPIRE_ROWS = 1000
SCAN_ROWS = 1000
DEAD_MS = round(DEAD_SECONDS * 1000)


class RedisStore:
    """Stores checkpoints in a Redis or Valkey server.

    A call that is cancelled or fails may have taken effect on the server. To repeat it does no harm.

    Args:
        address: where the server is.
        clock: the wall clock for timestamps, in nanoseconds.
        timeout_s: the timeout of a call.

    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        clock: Callable[[], int] = time.time_ns,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.survives = "a killed process"  # until `start` has asked the server
        self._name = address.name
        self._clock = clock
        self._timeout_s = timeout_s
        self._writer = new_writer_id()
        self._noticed = "0-0"  # the last notice that was read
        self._address = address
        self._redis = make_client(address, timeout_s)

    def __repr__(self) -> str:
        return f"<RedisStore {self._name}>"

    async def start(self) -> None:
        """Checks the server and asks it what its configuration survives.

        Raises StoreUnavailable when it cannot be used.
        """
        try:
            await self._check_server()
        except StoreUnavailable:
            await self.close()
            raise

    async def load(self, key: Key) -> Record | None:
        """The record of a stream."""
        return await self._record(key, await self._call(self._redis.hmget(stream_key(key), [*FIELDS, "record"])))

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Claims a stream if its epoch is still `seen_epoch`, and returns its record; else returns None."""
        alive = (writer_key(self._writer), DEAD_MS)
        return await self._record(key, await self._one(CLAIM, key, seen_epoch, *model, owner, *alive))

    async def create(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Creates a stream with its first state, if it is unknown or a tombstone of that epoch."""
        c = replace(checkpoint, epoch=0)  # the new epoch is not known yet
        planted = await self._one(CREATE, c.key, seen_epoch, c.step, len(c.payload), encode(c), *c.model, "")
        return await self._record(c.key, planted)

    async def restore(self, checkpoint: Checkpoint, owner: str) -> bool:
        """Stores a lost stream under its own epoch, if that is above the epochs of streams that are gone."""
        c = checkpoint
        arguments = (0, c.step, len(c.payload), encode(c), *c.model, owner, c.epoch)
        return bool(await self._one(CREATE, c.key, *arguments))

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Saves the checkpoints whose epoch is current, all in one round trip."""
        now = self._clock()
        calls = []
        for start in range(0, len(checkpoints), ROWS):
            chunk = checkpoints[start : start + ROWS]
            keys, epochs, steps, sizes = columns(chunk)
            records = encode_all(chunk)
            members, lasts = map(member_of, keys), map(add, records.offsets, records.sizes)
            firsts = (offset + 1 for offset in records.offsets)  # Lua counts from 1
            rows = zip(members, map(str, epochs), map(str, steps), sizes, firsts, lasts, strict=True)
            head_arguments = (self._writer, now, now // 1000, STREAM)
            calls.append(((AGES,), (*head_arguments, json.dumps([*rows]), memoryview(records.content))))
            await asyncio.sleep(0)  # to encode the streams of a script takes half a millisecond
        answers = await self._scripts(SAVE, calls)
        return [kept == ord("1") for answer in answers for kept in answer]

    async def set_residency(self, updates: Sequence[ResidencyUpdate]) -> None:
        """Records which streams are in memory."""
        calls = []
        for start in range(0, len(updates), ROWS):
            chunk = updates[start : start + ROWS]
            arguments: list[Any] = [self._writer]
            for _, epoch, residency, save_answers in chunk:
                arguments += (epoch, int(residency), save_answers)
            calls.append(([stream_key(update.key) for update in chunk], arguments))
        await self._scripts(SET_RESIDENCY, calls)

    async def request_save(self, key: Key, epoch: int) -> int | None:
        """Asks the writer of a stream to save it."""
        number: int | None = await self._one(REQUEST_SAVE, key, epoch)
        return number

    async def delete(self, key: Key, epoch: int) -> bool:
        """Replaces a stream by a tombstone if it has that epoch."""
        return bool(await self._one(DELETE, key, epoch))

    async def scan(self, wanted: ScanFilter, after: str, limit: int) -> tuple[list[StreamMetadata], str | None]:
        """Metadata in the order of the ids."""
        tenant, prefix_bytes, after_bytes = wanted.tenant, wanted.prefix.encode(), after.encode()
        least = b"(" + after_bytes if after_bytes >= prefix_bytes else b"[" + prefix_bytes
        # UTF-8 has no byte 255. So the prefix with its last byte incremented comes after all ids with the prefix.
        greatest = b"(" + prefix_bytes[:-1] + bytes([prefix_bytes[-1] + 1]) if prefix_bytes else b"+"
        beginning = stream_key(Key(tenant, ""))
        selected = (wanted.scope.value, self._writer, wanted.model, wanted.version)
        arguments = (least, greatest, limit, SCAN_ROWS, beginning, writer_key(""), *selected)
        found_json, next_id = await self._script(SCAN, (ids_key(tenant),), arguments)
        found = [
            self._metadata(Key(tenant, stream_id), values[:-1], alive=bool(values[-1]))
            for stream_id, *values in json.loads(found_json)
        ]
        return found, None if next_id is None else next_id.decode()

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Turns old streams into tombstones, and deletes old tombstones."""
        arguments = (
            before_unix_nano // 1000,
            purge_before_unix_nano // 1000,
            purge_deleted_before_unix_nano // 1000,
            EXPIRE_ROWS,
            ids_key(""),
            STREAM,
            writer_key(""),
            self._writer,
            self._clock() // 1000,
        )
        return int(await self._script(EXPIRE, (AGES, TOMBSTONES, DELETED, HIGHEST_EPOCH), arguments))

    async def count(self) -> int:
        """The number of streams without tombstones."""
        return int(await self._call(self._redis.zcard(AGES)))

    async def newest_unix_nano(self) -> int:
        """When a stream without a tombstone was last updated, to the microsecond."""
        newest = await self._call(self._redis.zrange(AGES, -1, -1, withscores=True))
        return int(newest[0][1]) * 1000 if newest else 0

    def cpu_seconds(self) -> float:
        """Always 0: there is no thread."""
        return 0.0

    async def heartbeat(self) -> str:
        """Announces that this writer is alive. Returns the run id of the server."""
        await self._call(self._redis.set(writer_key(self._writer), 1, px=DEAD_MS))
        server = await self._call(self._redis.info("server"))
        return str(server.get("run_id", ""))

    async def take_notices(self) -> list[Key]:
        """The streams of notices since the last call."""
        found: Any = await self._call(self._redis.xrange(NOTICES, f"({self._noticed}"))
        if found:
            self._noticed = found[-1][0].decode()
        return list(dict.fromkeys(key_of_member(fields[b"member"].decode()) for _, fields in found))

    async def close(self) -> None:
        """Announces that this writer has stopped, and closes the connections."""
        with suppress(StoreUnavailable):  # else the writer soon counts as dead
            await self._call(self._redis.delete(writer_key(self._writer)))
        await close_client(self._redis)

    async def _check_server(self) -> None:
        """Checks that the server can be used, and warns of dangerous settings."""
        await self._call(self._read_certificates())
        format_key = f"{PREFIX}:format"
        kept = await self._call(self._redis.set(format_key, FORMAT, nx=True, get=True))
        if kept in OLDER_FORMATS:
            await self._call(self._redis.set(format_key, FORMAT))
        elif isinstance(kept, bytes) and kept != b"%d" % FORMAT:
            raise StoreUnavailable(
                self._name, f"its format {kept!r} is not {FORMAT}, the one that this server knows; update the server"
            )
        newest: Any = await self._call(self._redis.xrevrange(NOTICES, count=1))
        self._noticed = newest[0][0].decode() if newest else "0-0"
        persistence = await self._call(self._redis.info("persistence"))
        memory = await self._call(self._redis.info("memory"))
        self.survives = _survives(bool(persistence.get("aof_enabled")), await self._setting("appendfsync"))
        if not persistence.get("aof_enabled"):
            log.warning("%s: a restart of redis loses streams; set appendonly yes and appendfsync always", self._name)
        await self._check_replicas()
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys") and memory.get("maxmemory"):
            log.warning(
                "%s: redis forgets streams when its memory is full; set maxmemory-policy noeviction", self._name
            )

    async def _read_certificates(self) -> None:
        """Raises OSError when a file cannot be used: sentinels that are not reached do not tell."""
        if self._address.tls:
            self._address.tls.context()

    async def _check_replicas(self) -> None:
        """Says what a failover loses, and warns when writes cannot be confirmed now."""
        replicas = self._address.replicas
        if replicas:
            self.survives += f"; a failover to a replica that has it, as {replicas} must before it counts as stored"
            connected = (await self._call(self._redis.info("replication"))).get("connected_slaves", 0)
            if connected < replicas:
                log.warning(
                    "%s: nothing counts as stored until %d replicas are connected; %d are",
                    *(self._name, replicas, connected),
                )
        elif self._address.service:
            log.warning("%s: a failover loses what only the primary has; set replicas=1 or more", self._name)

    async def _one(self, script: str, key: Key, *arguments: Any) -> Any:
        """Runs a script on one stream."""
        now = self._clock()
        keys = (stream_key(key), AGES, TOMBSTONES, DELETED, ids_key(key.tenant), NOTICES, HIGHEST_EPOCH)
        head_arguments = (member_of(key), key.stream_id, self._writer, now, now // 1000)
        return await self._script(PROLOGUE + script, keys, (*head_arguments, *arguments))

    async def _record(self, key: Key, found: Sequence[Any] | None) -> Record | None:
        """The record of a stream, from its fields."""
        if found is None or found[0] is None:
            return None
        *fields, record = found
        values = [value and value.decode() for value in fields]
        writer, residency = values[9:11]
        alive = residency not in (None, "0") and (
            writer == str(self._writer) or bool(await self._call(self._redis.exists(writer_key(writer))))
        )
        return decode_record(
            self._metadata(key, values, alive=alive), record, f"{self._name}: stream '{key.stream_id}'"
        )

    def _metadata(self, key: Key, values: Sequence[str], *, alive: bool) -> StreamMetadata:
        """The metadata of a stream, from its fields as texts."""
        epoch, step, name, version, fingerprint, created, updated, state_bytes, tombstone, *rest = values
        writer, residency, asked, save_answers, owner = rest
        holder = (Holder.SELF if writer == str(self._writer) else Holder.OTHER) if alive else Holder.NONE
        return StreamMetadata(
            key,
            int(epoch),
            int(step),
            ModelId(name, version, fingerprint),
            int(created),
            int(updated),
            int(state_bytes),
            Tombstone(int(tombstone)),
            holder,
            live=alive and int(residency) == Residency.LIVE,
            is_ours=writer == str(self._writer),
            save_requests=int(asked or 0),
            save_answers=int(save_answers or 0),
            owner=owner or "",
        )

    async def _script(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        [answer] = await self._scripts(script, [(keys, arguments)])
        return answer

    async def _scripts(self, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Runs a script once for each call, in one round trip."""
        return await self._call(self._run(script, calls))

    async def _run(self, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        if not calls:
            return []
        waits = self._address.replicas > 0 and script in _REPLICATED
        async with self._redis.pipeline(transaction=False) as pipeline:
            for keys, arguments in calls:
                pipeline.evalsha(_sha(script), len(keys), *keys, *arguments)
            try:
                return await self._executed(pipeline, waits)
            except NoScriptError:  # the server is new, or was restarted; scripts that did run may run again
                pass
            for keys, arguments in calls:
                pipeline.eval(script, len(keys), *keys, *arguments)
            return await self._executed(pipeline, waits)

    async def _executed(self, pipeline: Pipeline, waits: bool) -> list[Any]:
        """The answers of a pipeline. With `waits`, its writes are on the replicas then; else raises NotReplicated."""
        replicas = self._address.replicas
        if waits:
            pipeline.wait(replicas, round(self._timeout_s * REPLICAS_PART * 1000))
        answers = list(await pipeline.execute())
        if waits and (confirmed := answers.pop()) < replicas:
            raise NotReplicated(f"{confirmed} of the {replicas} replicas that must have a write confirmed it")
        return answers

    async def _setting(self, name: str) -> str | None:
        """A setting of the server; None when it does not tell, as hosted ones do."""
        try:
            settings = await self._call(self._redis.config_get(name))
        except StoreUnavailable as error:
            if isinstance(error.__cause__, ResponseError):
                return None
            raise
        return settings.get(name)

    async def _call(self, call: Awaitable[Result]) -> Result:
        """Awaits a call within the timeout. Raises StoreUnavailable with an explanation."""
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await call
        # Any exception: the library lets through errors of the event loop about a connection that has just died (for
        # example a RuntimeError of uvloop), and these must not end the server.
        except Exception as error:
            if task.cancelling() > cancelled:
                raise asyncio.CancelledError from error
            await forget_primary(self._redis)
            raise StoreUnavailable(self._name, explained(error, self._timeout_s, self._address.tls)) from error
        # sometimes the library swallows the cancellation, and the caller would never end
        if task.cancelling() > cancelled:
            raise asyncio.CancelledError
        return result


def _survives(appended: bool, fsync: str | None) -> str:
    """What a stored checkpoint survives. `fsync` is None when the server does not tell."""
    if not appended:
        return "a killed process, not a restart of redis"
    if fsync == "always":
        return "a killed process, a restart of redis and a power loss"
    # With everysec redis usually writes before it answers, but not while an older fsync is running: up to two seconds.
    lost = {"everysec": "two seconds", "no": "thirty seconds"}.get(fsync or "", "seconds or more")
    return f"a killed process and an orderly restart of redis; a power loss takes the last {lost}"


@cache  # one entry for each script
def _sha(script: str) -> str:
    """The digest under which the server knows a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
