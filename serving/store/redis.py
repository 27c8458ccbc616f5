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
from functools import cache
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
from serving.store.codec import encode, read
from serving.store.store import Head, Record

log = logging.getLogger("tidegate.store")

Result = TypeVar("Result")

FORMAT = 1
# For the whole of an operation. A healthy server answers in a millisecond; the checkpointer tries again by itself.
TIMEOUT_S = 2.0
# Connections of this process. An operation holds one for a round trip; what finds none free waits, within its time-out.
CONNECTIONS_MAX = 16
# Streams a script: it runs some 2 ms with so many, and meanwhile the server serves nobody else.
ROWS = 256
# Streams that one `expire` turns.
EXPIRE_ROWS = 1000

_PREFIX = "tidegate"
_AGES = f"{_PREFIX}:ages"
_TOMBSTONES = f"{_PREFIX}:tombstones"

# KEYS: stream, ages, tombstones, ids. ARGV: seen epoch, next epoch, now, score, member, id, model name, version, fingerprint.
_CLAIM = """
local epoch, expired = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'expired'))
if (epoch or '0') ~= ARGV[1] then return 0 end
if not epoch or expired == '1' then
  redis.call('HSET', KEYS[1], 'step', 0, 'created', ARGV[3], 'bytes', 0, 'expired', 0)
  redis.call('ZADD', KEYS[4], 0, ARGV[6])
  redis.call('ZREM', KEYS[3], ARGV[5])
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'updated', ARGV[3],
  'name', ARGV[7], 'version', ARGV[8], 'fingerprint', ARGV[9])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[5])
return 1
"""
# KEYS: ages, streams. ARGV: now, score, then of each stream: epoch, step, bytes, record, member. One text of 0 and 1 comes
# back: a list of numbers costs the client a microsecond or more each.
_SAVE = """
local kept = {}
for i = 2, #KEYS do
  local at = 5 * i - 7
  local epoch, expired = unpack(redis.call('HMGET', KEYS[i], 'epoch', 'expired'))
  if epoch == ARGV[at] and expired == '0' then
    redis.call('HSET', KEYS[i], 'step', ARGV[at + 1], 'updated', ARGV[1], 'bytes', ARGV[at + 2], 'record', ARGV[at + 3])
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[at + 4])
    kept[i - 1] = '1'
  else
    kept[i - 1] = '0'
  end
end
return table.concat(kept)
"""
# KEYS: stream, ages, tombstones, ids. ARGV: epoch, member, id.
_FORGET = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[3])
return 1
"""
# KEYS: ids. ARGV: least, greatest, limit, what the keys of the streams begin with. Heads as one JSON text.
_SCAN = """
local heads, least, limit = {}, ARGV[1], tonumber(ARGV[3])
repeat
  local ids = redis.call('ZRANGEBYLEX', KEYS[1], least, ARGV[2], 'LIMIT', 0, limit - #heads)
  for _, id in ipairs(ids) do
    local head = redis.call('HMGET', ARGV[4] .. id,
      'epoch', 'step', 'name', 'version', 'fingerprint', 'created', 'updated', 'bytes', 'expired')
    if head[1] then
      table.insert(head, 1, id)
      heads[#heads + 1] = cjson.encode(head)
    else -- the server threw the stream out for want of memory
      redis.call('ZREM', KEYS[1], id)
    end
    least = '(' .. id
  end
until #ids == 0 or #heads == limit
return '[' .. table.concat(heads, ',') .. ']'
"""
# KEYS: ages, tombstones. ARGV: before, purge before (scores), limit, what keys of ids and of streams begin with. A member is
# LENGTH:TENANT:ID, and the key of its stream ends with it.
_EXPIRE = """
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[3])) do
  local colon = string.find(member, ':', 1, true)
  local length = tonumber(string.sub(member, 1, colon - 1))
  local tenant = string.sub(member, colon + 1, colon + length)
  redis.call('DEL', ARGV[5] .. member)
  redis.call('ZREM', KEYS[2], member)
  redis.call('ZREM', ARGV[4] .. tenant, string.sub(member, colon + length + 2))
end
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(old) do
  local stream = ARGV[5] .. member
  if redis.call('EXISTS', stream) == 1 then -- unless the server threw it out for want of memory
    redis.call('HINCRBY', stream, 'epoch', 1)
    redis.call('HSET', stream, 'expired', 1, 'bytes', 0)
    redis.call('HDEL', stream, 'record')
    redis.call('ZADD', KEYS[2], redis.call('ZSCORE', KEYS[1], member), member)
  end
  redis.call('ZREM', KEYS[1], member)
end
return #old
"""


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
        found: list[Any] = await self._within(self._redis.hmget(_stream(key), [*_FIELDS, "record"]))
        *head, record = found
        if head[0] is None:
            return None
        values = [value.decode() for value in head]
        return read(_head(key, values), record, f"{self._name}: stream '{key.stream_id}'")

    async def claim(self, key: Key, seen_epoch: int, model: ModelId) -> int | None:
        """Raises the epoch if it still is `seen_epoch`, else None."""
        now = self._clock()
        keys = (_stream(key), _AGES, _TOMBSTONES, _ids(key.tenant))
        arguments = (seen_epoch, seen_epoch + 1, now, now // 1000, _member(key), key.stream_id, *model)
        return seen_epoch + 1 if await self._script(_CLAIM, keys, arguments) else None

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps those whose epoch is still theirs, all in one round trip."""
        now = self._clock()
        calls = []
        for start in range(0, len(checkpoints), ROWS):
            chunk = checkpoints[start : start + ROWS]
            keys = [_AGES, *(_stream(c.key) for c in chunk)]
            arguments: list[Any] = [now, now // 1000]
            for c in chunk:
                arguments += (c.epoch, c.step, len(c.payload), encode(c), _member(c.key))
            calls.append((keys, arguments))
        answers = await self._scripts(_SAVE, calls)
        return [kept == ord("1") for answer in answers for kept in answer]

    async def forget(self, key: Key, epoch: int) -> bool:
        """Drops a stream unless its epoch is another."""
        keys = (_stream(key), _AGES, _TOMBSTONES, _ids(key.tenant))
        return bool(await self._script(_FORGET, keys, (epoch, _member(key), key.stream_id)))

    async def scan(self, tenant: str, prefix: str, after: str, limit: int) -> list[Head]:
        """Heads in the order of their ids."""
        first, last = prefix.encode(), after.encode()
        least = b"(" + last if last >= first else b"[" + first
        # No byte of UTF-8 is 255, so the next byte in the place of the last comes after all that begin with the prefix.
        greatest = b"(" + first[:-1] + bytes([first[-1] + 1]) if first else b"+"
        beginning = _stream(Key(tenant, ""))
        heads = json.loads(await self._script(_SCAN, (_ids(tenant),), (least, greatest, limit, beginning)))
        return [_head(Key(tenant, stream_id), values) for stream_id, *values in heads]

    async def expire(self, before_unix_nano: int, purge_before_unix_nano: int) -> int:
        """Turns old streams into tombstones, drops old tombstones."""
        arguments = (
            before_unix_nano // 1000,
            purge_before_unix_nano // 1000,
            EXPIRE_ROWS,
            _ids(""),
            f"{_PREFIX}:stream:",
        )
        return int(await self._script(_EXPIRE, (_AGES, _TOMBSTONES), arguments))

    async def count(self) -> int:
        """The streams that are known and not expired."""
        return int(await self._within(self._redis.zcard(_AGES)))

    async def newest_unix_nano(self) -> int:
        """When a stream that is not expired was last updated, to the microsecond."""
        newest = await self._within(self._redis.zrange(_AGES, -1, -1, withscores=True))
        return int(newest[0][1]) * 1000 if newest else 0

    def cpu_seconds(self) -> float:
        """It has no thread."""
        return 0.0

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _look(self) -> None:
        """Checks that the server is one that can be used, and says what is dangerous about it."""
        kept = await self._within(self._redis.set(f"{_PREFIX}:format", FORMAT, nx=True, get=True))
        if isinstance(kept, bytes) and kept != b"%d" % FORMAT:
            raise StoreUnavailable(
                self._name, f"its format {kept!r} is not {FORMAT}, the one that this server knows; update the server"
            )
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
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            raise StoreUnavailable(self._name, self._explained(error)) from error

    def _explained(self, error: Exception) -> str:
        """What is wrong with the server, and what to do about it."""
        meaning = next(
            (meaning for kind, meaning in _MEANINGS if isinstance(error, kind)), "refused a command: {error}"
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
_FIELDS = ("epoch", "step", "name", "version", "fingerprint", "created", "updated", "bytes", "expired")


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
    return f"{_PREFIX}:stream:{_member(key)}"


def _ids(tenant: str) -> str:
    """The sorted set of a tenant's stream ids, all with score 0, so that they stand in the order of their bytes."""
    return f"{_PREFIX}:ids:{tenant}"


def _head(key: Key, values: Sequence[str]) -> Head:
    """A head from the texts of its _FIELDS."""
    epoch, step, name, version, fingerprint, created, updated, state_bytes, expired = values
    return Head(
        key,
        int(epoch),
        int(step),
        ModelId(name, version, fingerprint),
        int(created),
        int(updated),
        int(state_bytes),
        expired=expired == "1",
    )


@cache  # the five scripts
def _sha(script: str) -> str:
    """What a script goes by on the server."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
