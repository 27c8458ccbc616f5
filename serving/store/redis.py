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

FORMAT = 2
# For the whole of an operation. A healthy server answers in a millisecond; the checkpointer tries again by itself.
TIMEOUT_S = 2.0
# Connections of this process. An operation holds one for a round trip; what finds none free waits, within its time-out.
CONNECTIONS_MAX = 16
# Streams a script: it runs some 2 ms with so many, and meanwhile the server serves nobody else.
ROWS = 256
# Streams that one `expire` turns, and ids that one `scan` looks at.
EXPIRE_ROWS = 1000
SCAN_ROWS = 1000
# Notices that are kept: who looks several times a second misses none.
NOTICES_MAX = 10_000

DEAD_MS = round(DEAD_SECONDS * 1000)

_PREFIX = "tidegate"
_AGES = f"{_PREFIX}:ages"
_TOMBSTONES = f"{_PREFIX}:tombstones"
_DELETED = f"{_PREFIX}:deleted"
_NOTICES = f"{_PREFIX}:notices"
_HIGHEST = f"{_PREFIX}:highest-epoch"  # of streams that are gone without a tombstone

# What a head is made of, in order. `expired` is a Tombstone, and called so for the sake of what is stored.
_FIELDS = (
    *("epoch", "step", "name", "version", "fingerprint", "created", "updated", "bytes", "expired"),
    *("writer", "mark", "asked", "answered"),
)
_QUOTED = ", ".join(f"'{field}'" for field in _FIELDS)
# What writers do to a stream. A stream of the format before has no `writer` and no `mark`: nobody has it in memory.
# The scripts of one stream begin so. KEYS: stream, ages, tombstones, deleted, ids, notices, highest epoch.
# ARGV: member, id, writer, now, score.
_BEGIN = f"""
local stream, ages, tombstones, deleted, ids, notices, highest = unpack(KEYS)
local member, id, me, now, score = unpack(ARGV)
local epoch, writer, mark, tombstone = unpack(redis.call('HMGET', stream, 'epoch', 'writer', 'mark', 'expired'))
local function give_notice()
  if mark and mark ~= '0' and writer ~= me then
    redis.call('XADD', notices, 'MAXLEN', '~', {NOTICES_MAX}, '*', 'member', member)
  end
end
local function next_epoch()
  return string.format('%.0f', tonumber(epoch or redis.call('GET', highest) or '0') + 1)
end
local function found()
  return redis.call('HMGET', stream, {_QUOTED}, 'record')
end
"""
# ARGV more: seen epoch, model name, version, fingerprint, what is there while a writer is alive, for how many milliseconds.
_CLAIM = """
if (epoch or '0') ~= ARGV[6] then return false end
give_notice()
local following = next_epoch()
if not epoch or tombstone ~= '0' then
  redis.call('HSET', stream, 'step', 0, 'created', now, 'bytes', 0, 'expired', 0)
  redis.call('ZADD', ids, 0, id)
  redis.call('ZREM', tombstones, member)
  redis.call('ZREM', deleted, member)
end
redis.call('HSET', stream, 'epoch', following, 'writer', me, 'mark', 2, 'asked', 0, 'answered', 0, 'updated', now,
  'name', ARGV[7], 'version', ARGV[8], 'fingerprint', ARGV[9])
redis.call('ZADD', ages, score, member)
redis.call('SET', ARGV[10], 1, 'PX', ARGV[11]) -- who has a stream is alive
return found()
"""
# ARGV more: seen epoch, step, bytes, record, model name, version, fingerprint, then to restore the epoch, to plant nothing.
_PLANT = """
if (epoch or '0') ~= ARGV[6] or (epoch and tombstone == '0') then return false end
local following, said = ARGV[13], 2
if not following then
  following, said = next_epoch(), 0
elseif tonumber(following) <= tonumber(redis.call('GET', highest) or '0') then
  return false
end
redis.call('HSET', stream, 'epoch', following, 'writer', me, 'mark', said, 'asked', 0, 'answered', 0,
  'step', ARGV[7], 'bytes', ARGV[8], 'record', ARGV[9], 'name', ARGV[10], 'version', ARGV[11], 'fingerprint', ARGV[12],
  'created', now, 'updated', now, 'expired', 0)
redis.call('ZADD', ids, 0, id)
redis.call('ZADD', ages, score, member)
redis.call('ZREM', tombstones, member)
redis.call('ZREM', deleted, member)
return found()
"""
# ARGV more: epoch.
_ASK = """
if epoch ~= ARGV[6] then return false end
give_notice()
return redis.call('HINCRBY', stream, 'asked', 1)
"""
# ARGV more: epoch.
_FORGET = """
if epoch ~= ARGV[6] or tombstone == '2' then return 0 end
give_notice()
redis.call('HSET', stream, 'epoch', next_epoch(), 'writer', 0, 'mark', 0, 'bytes', 0, 'expired', 2, 'updated', now)
redis.call('HDEL', stream, 'record')
redis.call('ZREM', ages, member)
redis.call('ZREM', tombstones, member)
redis.call('ZADD', deleted, score, member)
redis.call('ZREM', ids, id)
return 1
"""
# KEYS: ages, streams. ARGV: writer, now, score, then of each stream: epoch, step, bytes, record, member. One text of 0 and 1
# comes back: a list of numbers costs the client a microsecond or more each.
_SAVE = """
local kept = {}
for i = 2, #KEYS do
  local at = 5 * i - 6
  local epoch, writer, tombstone = unpack(redis.call('HMGET', KEYS[i], 'epoch', 'writer', 'expired'))
  if epoch == ARGV[at] and writer == ARGV[1] and tombstone == '0' then
    redis.call('HSET', KEYS[i], 'step', ARGV[at + 1], 'updated', ARGV[2], 'bytes', ARGV[at + 2], 'record', ARGV[at + 3])
    redis.call('ZADD', KEYS[1], ARGV[3], ARGV[at + 4])
    kept[i - 1] = '1'
  else
    kept[i - 1] = '0'
  end
end
return table.concat(kept)
"""
# KEYS: streams. ARGV: writer, then of each stream: epoch, mark, answered.
_MARK = """
for i = 1, #KEYS do
  local at = 3 * i - 1
  local epoch, writer, tombstone, answered = unpack(
    redis.call('HMGET', KEYS[i], 'epoch', 'writer', 'expired', 'answered'))
  if epoch == ARGV[at] and writer == ARGV[1] and tombstone == '0' then
    local settled = math.max(tonumber(answered), tonumber(ARGV[at + 2]))
    redis.call('HSET', KEYS[i], 'mark', ARGV[at + 1], 'answered', settled)
  end
end
return 1
"""
# KEYS: ids. ARGV: least, greatest, most heads, most ids to look at, what keys of streams and of writers begin with, what is
# wanted, writer. Heads as one JSON text, after it the id to go on after.
_SCAN = """
local heads, least, looked, last = {}, ARGV[1], 0, false
local most, budget, wanted = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[7]
repeat
  local ids = redis.call('ZRANGEBYLEX', KEYS[1], least, ARGV[2], 'LIMIT', 0, math.min(budget - looked, 256))
  for _, id in ipairs(ids) do
    local head = redis.call('HMGET', ARGV[5] .. id, FIELDS)
    looked, last, least = looked + 1, id, '(' .. id
    if head[1] then
      local alive = 0
      if head[11] and head[11] ~= '0' and (head[10] == ARGV[8] or redis.call('EXISTS', ARGV[6] .. head[10]) == 1) then
        alive = 1
      end
      local expired = head[9] == '1'
      if wanted == 'all' or (wanted == 'expired' and expired) or (wanted == 'held' and not expired and alive == 1)
          or (wanted == 'rest' and not expired and alive == 0) then
        table.insert(head, 1, id)
        head[15] = alive
        heads[#heads + 1] = cjson.encode(head)
      end
    else -- the server threw the stream out for want of memory
      redis.call('ZREM', KEYS[1], id)
    end
    if #heads == most then break end
  end
until #ids == 0 or #heads == most or looked == budget
if #heads < most and looked < budget then last = false end
return {'[' .. table.concat(heads, ',') .. ']', last}
""".replace("FIELDS", _QUOTED)
# KEYS: ages, tombstones, deleted, highest epoch. ARGV: before, purge before, purge deleted before (scores), limit, what keys of
# ids, of streams and of writers begin with, writer, score. A member is LENGTH:TENANT:ID, and the key of its stream ends with it.
_EXPIRE = """
for set = 2, 3 do
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[set], '-inf', '(' .. ARGV[set], 'LIMIT', 0, ARGV[4])) do
    local colon = string.find(member, ':', 1, true)
    local length = tonumber(string.sub(member, 1, colon - 1))
    local tenant = string.sub(member, colon + 1, colon + length)
    local epoch = redis.call('HGET', ARGV[6] .. member, 'epoch')
    if epoch and tonumber(epoch) > tonumber(redis.call('GET', KEYS[4]) or '0') then redis.call('SET', KEYS[4], epoch) end
    redis.call('DEL', ARGV[6] .. member)
    redis.call('ZREM', KEYS[set], member)
    redis.call('ZREM', ARGV[5] .. tenant, string.sub(member, colon + length + 2))
  end
end
local turned = 0
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[4])) do
  local stream = ARGV[6] .. member
  local epoch, writer, mark = unpack(redis.call('HMGET', stream, 'epoch', 'writer', 'mark'))
  if epoch and mark == '2' and (writer == ARGV[8] or redis.call('EXISTS', ARGV[7] .. writer) == 1) then
    redis.call('ZADD', KEYS[1], ARGV[9], member) -- its silence begins when nobody has it in memory
  else
    if epoch then -- else the server threw it out for want of memory
      redis.call('HINCRBY', stream, 'epoch', 1)
      redis.call('HSET', stream, 'expired', 1, 'bytes', 0, 'writer', 0, 'mark', 0)
      redis.call('HDEL', stream, 'record')
      redis.call('ZADD', KEYS[2], redis.call('ZSCORE', KEYS[1], member), member)
    end
    redis.call('ZREM', KEYS[1], member)
    turned = turned + 1
  end
end
return turned
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
        return await self._record(key, await self._within(self._redis.hmget(_stream(key), [*_FIELDS, "record"])))

    async def claim(self, key: Key, seen_epoch: int, model: ModelId) -> Record | None:
        """Raises the epoch if it still is `seen_epoch`, and gives what is held then; else None."""
        alive = (_writer_key(self._writer), DEAD_MS)
        return await self._record(key, await self._one(_CLAIM, key, seen_epoch, *model, *alive))

    async def plant(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Makes a stream with its first state, if it still is unknown or that tombstone."""
        c = replace(checkpoint, epoch=0)  # the new one is not known yet
        planted = await self._one(_PLANT, c.key, seen_epoch, c.step, len(c.payload), encode(c), *c.model)
        return await self._record(c.key, planted)

    async def restore(self, checkpoint: Checkpoint) -> bool:
        """Makes a stream known again under its own epoch, if that is above those of streams that are gone."""
        c = checkpoint
        arguments = (0, c.step, len(c.payload), encode(c), *c.model, c.epoch)
        return bool(await self._one(_PLANT, c.key, *arguments))

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps those whose epoch is still theirs, all in one round trip."""
        now = self._clock()
        calls = []
        for start in range(0, len(checkpoints), ROWS):
            chunk = checkpoints[start : start + ROWS]
            keys = [_AGES, *(_stream(c.key) for c in chunk)]
            arguments: list[Any] = [self._writer, now, now // 1000]
            for c in chunk:
                arguments += (c.epoch, c.step, len(c.payload), encode(c), _member(c.key))
            calls.append((keys, arguments))
        answers = await self._scripts(_SAVE, calls)
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
        await self._scripts(_MARK, calls)

    async def ask(self, key: Key, epoch: int) -> int | None:
        """Asks the writer of a stream to store it."""
        number: int | None = await self._one(_ASK, key, epoch)
        return number

    async def forget(self, key: Key, epoch: int) -> bool:
        """Leaves a tombstone of a stream unless its epoch is another."""
        return bool(await self._one(_FORGET, key, epoch))

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
        heads, following = await self._script(_SCAN, (_ids(tenant),), arguments)
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
            f"{_PREFIX}:stream:",
            _writer_key(""),
            self._writer,
            self._clock() // 1000,
        )
        return int(await self._script(_EXPIRE, (_AGES, _TOMBSTONES, _DELETED, _HIGHEST), arguments))

    async def count(self) -> int:
        """The streams that are known and not tombstones."""
        return int(await self._within(self._redis.zcard(_AGES)))

    async def beat(self) -> None:
        """Says that this writer is alive."""
        await self._within(self._redis.set(_writer_key(self._writer), 1, px=DEAD_MS))

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
        if kept == b"1":  # what it lacks is read as nothing
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
        return await self._script(_BEGIN + script, keys, (*begin, *arguments))

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
        writer, mark, asked, answered = rest
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
        # Whatever it is: the library lets through what the event loop says of a connection that has just died (a RuntimeError
        # of uvloop for one), and a server does not end for that.
        except Exception as error:
            raise StoreUnavailable(self._name, self._explained(error)) from error

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
    return f"{_PREFIX}:stream:{_member(key)}"


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
