"""The Lua scripts of the Redis store. Each checks an epoch and a writer and then writes, atomically.

A stream is a hash. Sorted sets hold the ids of each tenant in order, and the times of the last updates of streams, of
tombstones of expired streams, and of tombstones of deleted ones. Notices are a redis stream.
"""

# How many notices are kept. A writer that reads them several times a second misses none.
NOTICES_MAX = 10_000

# The fields of a stream's metadata, in order. `expired` is a Tombstone; it keeps the name that stored streams have.
FIELDS = (
    *("epoch", "step", "name", "version", "fingerprint", "created", "updated", "bytes", "expired"),
    *("writer", "mark", "asked", "answered", "owner"),
)
_QUOTED = ", ".join(f"'{field}'" for field in FIELDS)
# Operations of writers on one stream. A stream of format 1 has no `writer` and no `mark`: nobody has it in memory. A
# stream of format 2, or a tombstone, has no `owner`.
# The scripts of one stream begin with this. KEYS: stream, ages, tombstones, deleted, ids, notices, highest epoch.
# ARGV: member, id, writer, now, score.
PROLOGUE = f"""
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
# Further ARGV: seen epoch, model name, version, fingerprint, owner, the key that exists while the writer is alive, its
# milliseconds to live.
CLAIM = """
if (epoch or '0') ~= ARGV[6] then return false end
give_notice()
local new_epoch = next_epoch()
if not epoch or tombstone ~= '0' then
  redis.call('HSET', stream, 'step', 0, 'created', now, 'bytes', 0, 'expired', 0)
  redis.call('ZADD', ids, 0, id)
  redis.call('ZREM', tombstones, member)
  redis.call('ZREM', deleted, member)
end
redis.call('HSET', stream, 'epoch', new_epoch, 'writer', me, 'mark', 2, 'asked', 0, 'answered', 0, 'updated', now,
  'name', ARGV[7], 'version', ARGV[8], 'fingerprint', ARGV[9], 'owner', ARGV[10])
redis.call('ZADD', ages, score, member)
redis.call('SET', ARGV[11], 1, 'PX', ARGV[12]) -- who has a stream is alive
return found()
"""
# Further ARGV: seen epoch, step, bytes, record, model name, version, fingerprint, owner; to restore also the epoch.
CREATE = """
if (epoch or '0') ~= ARGV[6] or (epoch and tombstone == '0') then return false end
local new_epoch, residency = ARGV[14], 2
if not new_epoch then
  new_epoch, residency = next_epoch(), 0
elseif tonumber(new_epoch) <= tonumber(redis.call('GET', highest) or '0') then
  return false
end
redis.call('HSET', stream, 'epoch', new_epoch, 'writer', me, 'mark', residency, 'asked', 0, 'answered', 0,
  'step', ARGV[7], 'bytes', ARGV[8], 'record', ARGV[9], 'name', ARGV[10], 'version', ARGV[11], 'fingerprint', ARGV[12],
  'owner', ARGV[13], 'created', now, 'updated', now, 'expired', 0)
redis.call('ZADD', ids, 0, id)
redis.call('ZADD', ages, score, member)
redis.call('ZREM', tombstones, member)
redis.call('ZREM', deleted, member)
return found()
"""
# Further ARGV: epoch.
REQUEST_SAVE = """
if epoch ~= ARGV[6] then return false end
give_notice()
return redis.call('HINCRBY', stream, 'asked', 1)
"""
# Further ARGV: epoch.
DELETE = """
if epoch ~= ARGV[6] or tombstone == '2' then return 0 end
give_notice()
redis.call('HSET', stream, 'epoch', next_epoch(), 'writer', 0, 'mark', 0, 'bytes', 0, 'expired', 2, 'updated', now)
redis.call('HDEL', stream, 'record', 'owner')
redis.call('ZREM', ages, member)
redis.call('ZREM', tombstones, member)
redis.call('ZADD', deleted, score, member)
redis.call('ZREM', ids, id)
return 1
"""
# KEYS: ages. ARGV: writer, now, score, prefix of stream keys, the streams as one JSON text, and a text with all
# records. Each stream is a list of member, epoch, step (both as texts: numbers would be doubles), bytes of state, and
# where its record begins and ends. With an argument for each value, the client would need a microsecond for each. The
# result is one text of 0 and 1, because a list of numbers would cost as much.
SAVE = """
local kept = {}
local me, now, score, prefix = unpack(ARGV)
for i, saved in ipairs(cjson.decode(ARGV[5])) do
  local member, seen, step, bytes, first, last = unpack(saved)
  local stream = prefix .. member
  local epoch, writer, tombstone = unpack(redis.call('HMGET', stream, 'epoch', 'writer', 'expired'))
  if epoch == seen and writer == me and tombstone == '0' then
    redis.call('HSET', stream, 'step', step, 'updated', now, 'bytes', bytes, 'record', string.sub(ARGV[6], first, last))
    redis.call('ZADD', KEYS[1], score, member)
    kept[i] = '1'
  else
    kept[i] = '0'
  end
end
return table.concat(kept)
"""
# KEYS: streams. ARGV: writer, then for each stream: epoch, mark, answered.
SET_RESIDENCY = """
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
# KEYS: ids. ARGV: least, greatest, most heads, most ids to read, prefixes of the keys of streams and of writers,
# filter, writer, model and version (empty: all). Returns the metadata as one JSON text, and the id to continue after.
SCAN = """
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
      local of_model = (ARGV[9] == '' or ARGV[9] == head[3]) and (ARGV[10] == '' or ARGV[10] == head[4])
      if of_model and (wanted == 'all' or (wanted == 'expired' and expired)
          or (wanted == 'held' and not expired and alive == 1)) then
        table.insert(head, 1, id)
        head[#head + 1] = alive
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
# KEYS: ages, tombstones, deleted, highest epoch. ARGV: before, purge before, purge deleted before (scores), limit,
# prefixes of the keys of ids, of streams and of writers, writer, score. A member is LENGTH:TENANT:ID, and the key of
# its stream ends with it.
EXPIRE = """
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
      redis.call('HDEL', stream, 'record', 'owner')
      redis.call('ZADD', KEYS[2], redis.call('ZSCORE', KEYS[1], member), member)
    end
    redis.call('ZREM', KEYS[1], member)
    turned = turned + 1
  end
end
return turned
"""
