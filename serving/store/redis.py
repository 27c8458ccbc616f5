"""A store in Redis or Valkey, which the processes of many machines may share.

One server, or a primary with replicas behind one address; not a cluster. A stream is a hash. Sorted sets beside it hold the
ids of each tenant in order, and the times of the last updates of living streams and of tombstones. Whatever looks at an
epoch and then writes is one script: the server runs it alone, so the fence and the write are one.

Times decide in microseconds: scores are doubles, which cannot hold nanoseconds.
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

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from serving.core.errors import StoreUnavailable
from serving.core.spec import Checkpoint, Key, ModelId
from serving.store.codec import encode, encode_all, read
from serving.store.parameters import columns
from serving.store.scripts import ASK, BEGIN, CLAIM, EXPIRE, FIELDS, FORGET, MARK, PLANT, SAVE, SCAN
from serving.store.store import (
    DEAD_SECONDS,
    Head,
    Holder,
    Mark,
    Marking,
    Record,
    Tombstone,
    Wanted,
    new_writer,
)

log = logging.getLogger("tidegate.store")

Result = TypeVar("Result")

FORMAT = 3
# What streams of these lack is read as nothing, so they need not be written anew.
OLDER_FORMATS = (b"1", b"2")
# For the whole of an operation. A healthy server answers in a millisecond; the checkpointer tries again by itself.
TIMEOUT_S = 2.0
# Connections of this process. An operation holds one for a round trip; what finds none free waits, within its time-out.
CONNECTIONS_MAX = 16
# Streams a script: it runs some 2 ms with so many, and meanwhile the server serves nobody else.
ROWS = 256
# Streams that one `expire` turns, and ids that one `scan` looks at.
EXPIRE_ROWS = 1000
SCAN_ROWS = 1000
DEAD_MS = round(DEAD_SECONDS * 1000)

_PREFIX = "tidegate"
_STREAM = f"{_PREFIX}:stream:"
_AGES = f"{_PREFIX}:ages"
_TOMBSTONES = f"{_PREFIX}:tombstones"
_DELETED = f"{_PREFIX}:deleted"
_NOTICES = f"{_PREFIX}:notices"
_HIGHEST = f"{_PREFIX}:highest-epoch"  # of streams that are gone without a tombstone


class RedisStore:
    """Keeps checkpoints in a Redis or Valkey server.

    A call that is cancelled or fails may have happened on the server; asking again does no harm.

    Args:
        host: where the server listens.
        port: where the server listens.
        database: its number there.
        username: None for the default user.
        password: None where none is needed.
        clock: stamps what is written.
        timeout_s: after how long a call fails.

    """

    def __init__(
        self,
        host: str,
        port: int,
        database: int,
        *,
        username: str | None = None,
        password: str | None = None,
        clock: Callable[[], int] = time.time_ns,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.survives = "a killed process"  # until `start` has asked
        self._name = f"redis://{f'[{host}]' if ':' in host else host}:{port}/{database}"
        self._clock = clock
        self._timeout_s = timeout_s
        self._writer = new_writer()
        self._noticed = "0-0"  # the last notice that was read
        self._redis = Redis(
            connection_pool=BlockingConnectionPool(
                max_connections=CONNECTIONS_MAX,
                timeout=timeout_s,
                host=host,
                port=port,
                db=database,
                username=username,
                password=password,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                # What fails is tried again by those who know whether they still want it. A connection that has died while
                # it lay in the pool is noticed when it is taken, and opened anew.
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # spoken by every version of both
            )
        )

    def __repr__(self) -> str:
        return f"<RedisStore {self._name}>"

    async def start(self) -> None:
        """Asks the server what it is set up to survive; StoreUnavailable when it cannot be used."""
        try:
            await self._look()
        except StoreUnavailable:
            await self.close()
            raise

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream."""
        return await self._record(key, await self._within(self._redis.hmget(_stream(key), [*FIELDS, "record"])))

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Raises the epoch if it still is `seen_epoch`, and gives what is held then; else None."""
        alive = (_writer_key(self._writer), DEAD_MS)
        return await self._record(key, await self._one(CLAIM, key, seen_epoch, *model, owner, *alive))

    async def plant(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Makes a stream with its first state, if it still is unknown or that tombstone."""
        c = replace(checkpoint, epoch=0)  # the new one is not known yet
        planted = await self._one(PLANT, c.key, seen_epoch, c.step, len(c.payload), encode(c), *c.model, "")
        return await self._record(c.key, planted)

    async def restore(self, checkpoint: Checkpoint, owner: str) -> bool:
        """Makes a stream known again under its own epoch, if that is above those of streams that are gone."""
        c = checkpoint
        arguments = (0, c.step, len(c.payload), encode(c), *c.model, owner, c.epoch)
        return bool(await self._one(PLANT, c.key, *arguments))

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps those whose epoch is still theirs, all in one round trip."""
        now = self._clock()
        calls = []
        for start in range(0, len(checkpoints), ROWS):
            chunk = checkpoints[start : start + ROWS]
            keys, epochs, steps, sizes = columns(chunk)
            records = encode_all(chunk)
            members, lasts = map(_member, keys), map(add, records.begins, records.sizes)
            firsts = (begin + 1 for begin in records.begins)  # Lua counts from 1
            rows = zip(members, map(str, epochs), map(str, steps), sizes, firsts, lasts, strict=True)
            begin = (self._writer, now, now // 1000, _STREAM)
            calls.append(((_AGES,), (*begin, json.dumps([*rows]), memoryview(records.content))))
            await asyncio.sleep(0)  # the streams of a script take half a millisecond
        answers = await self._scripts(SAVE, calls)
        return [kept == ord("1") for answer in answers for kept in answer]

    async def mark(self, markings: Sequence[Marking]) -> None:
        """Notes who has streams in memory."""
        calls = []
        for start in range(0, len(markings), ROWS):
            chunk = markings[start : start + ROWS]
            arguments: list[Any] = [self._writer]
            for _, epoch, mark, answered in chunk:
                arguments += (epoch, int(mark), answered)
            calls.append(([_stream(marking.key) for marking in chunk], arguments))
        await self._scripts(MARK, calls)

    async def ask(self, key: Key, epoch: int) -> int | None:
        """Asks the writer of a stream to store it."""
        number: int | None = await self._one(ASK, key, epoch)
        return number

    async def forget(self, key: Key, epoch: int) -> bool:
        """Leaves a tombstone of a stream unless its epoch is another."""
        return bool(await self._one(FORGET, key, epoch))

    async def scan(
        self, tenant: str, prefix: str, after: str, limit: int, wanted: Wanted = Wanted.ALL
    ) -> tuple[list[Head], str | None]:
        """Heads in the order of their ids."""
        first, last = prefix.encode(), after.encode()
        least = b"(" + last if last >= first else b"[" + first
        # No byte of UTF-8 is 255, so the next byte in the place of the last comes after all that begin with the prefix.
        greatest = b"(" + first[:-1] + bytes([first[-1] + 1]) if first else b"+"
        beginning = _stream(Key(tenant, ""))
        arguments = (least, greatest, limit, SCAN_ROWS, beginning, _writer_key(""), wanted.value, self._writer)
        heads, following = await self._script(SCAN, (_ids(tenant),), arguments)
        found = [
            self._head(Key(tenant, stream_id), values[:-1], alive=bool(values[-1]))
            for stream_id, *values in json.loads(heads)
        ]
        return found, None if following is None else following.decode()

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Turns old streams into tombstones, drops old tombstones."""
        arguments = (
            before_unix_nano // 1000,
            purge_before_unix_nano // 1000,
            purge_deleted_before_unix_nano // 1000,
            EXPIRE_ROWS,
            _ids(""),
            _STREAM,
            _writer_key(""),
            self._writer,
            self._clock() // 1000,
        )
        return int(await self._script(EXPIRE, (_AGES, _TOMBSTONES, _DELETED, _HIGHEST), arguments))

    async def count(self) -> int:
        """The streams that are known and not tombstones."""
        return int(await self._within(self._redis.zcard(_AGES)))

    async def newest_unix_nano(self) -> int:
        """When a stream that is not a tombstone was last updated, to the microsecond."""
        newest = await self._within(self._redis.zrange(_AGES, -1, -1, withscores=True))
        return int(newest[0][1]) * 1000 if newest else 0

    def cpu_seconds(self) -> float:
        """It has no thread."""
        return 0.0

    async def beat(self) -> str:
        """Says that this writer is alive; gives the number of the server's run."""
        await self._within(self._redis.set(_writer_key(self._writer), 1, px=DEAD_MS))
        server = await self._within(self._redis.info("server"))
        return str(server.get("run_id", ""))

    async def notices(self) -> list[Key]:
        """The streams to look at since this was last asked."""
        found: Any = await self._within(self._redis.xrange(_NOTICES, f"({self._noticed}"))
        if found:
            self._noticed = found[-1][0].decode()
        return list(dict.fromkeys(_key(fields[b"member"].decode()) for _, fields in found))

    async def close(self) -> None:
        """Says that this writer has gone, and closes the connections."""
        with suppress(StoreUnavailable):  # whoever cannot say so is taken for dead soon
            await self._within(self._redis.delete(_writer_key(self._writer)))
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _look(self) -> None:
        """Checks that the server is one that can be used, and says what is dangerous about it."""
        form = f"{_PREFIX}:format"
        kept = await self._within(self._redis.set(form, FORMAT, nx=True, get=True))
        if kept in OLDER_FORMATS:
            await self._within(self._redis.set(form, FORMAT))
        elif isinstance(kept, bytes) and kept != b"%d" % FORMAT:
            raise StoreUnavailable(
                self._name, f"its format {kept!r} is not {FORMAT}, the one that this server knows; update the server"
            )
        newest: Any = await self._within(self._redis.xrevrange(_NOTICES, count=1))
        self._noticed = newest[0][0].decode() if newest else "0-0"
        persistence = await self._within(self._redis.info("persistence"))
        memory = await self._within(self._redis.info("memory"))
        self.survives = _survives(bool(persistence.get("aof_enabled")), await self._setting("appendfsync"))
        if not persistence.get("aof_enabled"):
            log.warning("%s: a restart of redis loses streams; set appendonly yes and appendfsync always", self._name)
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys") and memory.get("maxmemory"):
            log.warning(
                "%s: redis forgets streams when its memory is full; set maxmemory-policy noeviction", self._name
            )

    async def _one(self, script: str, key: Key, *arguments: Any) -> Any:
        """Runs a script of one stream."""
        now = self._clock()
        keys = (_stream(key), _AGES, _TOMBSTONES, _DELETED, _ids(key.tenant), _NOTICES, _HIGHEST)
        begin = (_member(key), key.stream_id, self._writer, now, now // 1000)
        return await self._script(BEGIN + script, keys, (*begin, *arguments))

    async def _record(self, key: Key, found: Sequence[Any] | None) -> Record | None:
        """What is held of a stream, from its fields."""
        if found is None or found[0] is None:
            return None
        *fields, record = found
        values = [value and value.decode() for value in fields]
        writer, mark = values[9:11]
        alive = mark not in (None, "0") and (
            writer == str(self._writer) or bool(await self._within(self._redis.exists(_writer_key(writer))))
        )
        return read(self._head(key, values, alive=alive), record, f"{self._name}: stream '{key.stream_id}'")

    def _head(self, key: Key, values: Sequence[str], *, alive: bool) -> Head:
        """A head from the texts of its fields."""
        epoch, step, name, version, fingerprint, created, updated, state_bytes, tombstone, *rest = values
        writer, mark, asked, answered, owner = rest
        holder = (Holder.SELF if writer == str(self._writer) else Holder.OTHER) if alive else Holder.NOBODY
        return Head(
            key,
            int(epoch),
            int(step),
            ModelId(name, version, fingerprint),
            int(created),
            int(updated),
            int(state_bytes),
            Tombstone(int(tombstone)),
            holder,
            live=alive and int(mark) == Mark.LIVE,
            mine=writer == str(self._writer),
            asked=int(asked or 0),
            answered=int(answered or 0),
            owner=owner or "",
        )

    async def _script(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        [answer] = await self._scripts(script, [(keys, arguments)])
        return answer

    async def _scripts(self, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Runs a script once for each call, in one round trip."""
        return await self._within(self._run(script, calls))

    async def _run(self, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        if not calls:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for keys, arguments in calls:
                pipeline.evalsha(_sha(script), len(keys), *keys, *arguments)
            try:
                return list(await pipeline.execute())
            except NoScriptError:  # the server is new, or was restarted; what did run may run again
                pass
            for keys, arguments in calls:
                pipeline.eval(script, len(keys), *keys, *arguments)
            return list(await pipeline.execute())

    async def _setting(self, name: str) -> str | None:
        """A setting of the server; None when it does not tell, as hosted ones do."""
        try:
            settings = await self._within(self._redis.config_get(name))
        except StoreUnavailable as error:
            if isinstance(error.__cause__, ResponseError):
                return None
            raise
        return settings.get(name)

    async def _within(self, call: Awaitable[Result]) -> Result:
        """What a call gives, within the time-out; StoreUnavailable with what is wrong."""
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await call
        # Whatever it is: the library lets through what the event loop says of a connection that has just died (a RuntimeError
        # of uvloop for one), and a server does not end for that.
        except Exception as error:
            if task.cancelling() > cancelled:
                raise asyncio.CancelledError from error
            raise StoreUnavailable(self._name, self._explained(error)) from error
        if task.cancelling() > cancelled:  # now and then the library swallows it, and the caller would never end
            raise asyncio.CancelledError
        return result

    def _explained(self, error: Exception) -> str:
        """What is wrong with the server, and what to do about it."""
        meaning = next(
            (meaning for kind, meaning in _MEANINGS if isinstance(error, kind)),
            "refused a command: {error}" if isinstance(error, RedisError) else "the connection failed: {error!r}",
        )
        return meaning.format(error=error, seconds=self._timeout_s)


# The first that fits counts: the library's time-outs and refusals are connection errors too.
_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, "did not answer within {seconds:g} s"),
    (RedisTimeoutError, "did not answer within {seconds:g} s"),
    (AuthenticationError, "does not let this user in ({error}); correct the user name and the password in its address"),
    (BusyLoadingError, "is still loading its data after a start; wait"),
    (RedisConnectionError, "cannot be reached ({error}); see that it runs and listens there"),
    (OSError, "cannot be reached ({error}); see that it runs and listens there"),
    (ReadOnlyError, "is a replica, which cannot be written; name the primary"),
    (OutOfMemoryError, "its memory is full; nothing was written: raise maxmemory"),
)


def _survives(appended: bool, fsync: str | None) -> str:
    """What a stored checkpoint survives; `fsync` is None when the server does not tell."""
    if not appended:
        return "a killed process, not a restart of redis"
    if fsync == "always":
        return "a killed process, a restart of redis and a power loss"
    # With everysec redis writes before it answers, but not while an older fsync is under way: up to two seconds.
    lost = {"everysec": "two seconds", "no": "thirty seconds"}.get(fsync or "", "seconds or more")
    return f"a killed process and an orderly restart of redis; a power loss takes the last {lost}"


def _member(key: Key) -> str:
    """What stands for a stream in sorted sets; the length tells where the tenant ends."""
    return f"{len(key.tenant.encode())}:{key.tenant}:{key.stream_id}"


def _stream(key: Key) -> str:
    """The hash of a stream."""
    return _STREAM + _member(key)


def _ids(tenant: str) -> str:
    """The sorted set of a tenant's stream ids, all with score 0, so that they stand in the order of their bytes."""
    return f"{_PREFIX}:ids:{tenant}"


def _key(member: str) -> Key:
    """The stream that stands in sorted sets as that."""
    length, _, rest = member.partition(":")
    tenant = rest.encode()[: int(length)].decode()
    return Key(tenant, rest[len(tenant) + 1 :])


def _writer_key(writer: int | str) -> str:
    """What is there for as long as a writer is alive."""
    return f"{_PREFIX}:writer:{writer}"


@cache  # the scripts
def _sha(script: str) -> str:
    """What a script goes by on the server."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
