"""The keys of the policy store, and the scripts that change and read them in one step each.

All keys share the hash tag ``{sparsity}``, so that every script touches one slot of a Cluster. Times are the server's,
so that writers with skewed clocks cannot reorder anything.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "{sparsity}:"
POLICIES, REVISION, EVENTS, OVERRIDES, SEEDED, HEAD, DECISIONS, OUTCOMES, AUDIT = (
    PREFIX + name
    for name in ("policies", "revision", "events", "overrides", "seeded", "head", "decisions", "outcomes", "audit")
)
EVENTS_KEPT: Final = 100_000
HISTORY_KEPT: Final = 10_000


def history(domain: str) -> str:
    """The stream of a domain's revisions, whose entry ids are `revision-0`."""
    return f"{PREFIX}history:{domain}"


def decision(decision_id: str) -> str:
    """What an outcome is joined by."""
    return f"{PREFIX}decision:{decision_id}"


def metrics(decision_id: str) -> str:
    """The metrics that were reported of a decision."""
    return f"{PREFIX}metrics:{decision_id}"


_CLOCK: Final = """
local now = redis.call('TIME')
local clock = now[1] .. '.' .. string.format('%06d', now[2])
"""

# A revision is set, never incremented: a torn append-only file can make Redis 6.2 replay a part of a script twice.
_NEXT: Final = """
local function next_revision(key)
  local present = redis.call('GET', key) or '0'
  return assert(tonumber(present), key .. ' holds ' .. present .. ', not a number') + 1
end
"""

# Compare-and-set. KEYS: policies, revision, events, history, head, seeded. ARGV: domain, expected etag or "*", body or
# "" to delete, fresh etag, actor, reason, events kept, history kept, "1" to seed. An empty expected etag only creates.
# Returns {revision, time}, {0} when there is nothing to delete or the domain was seeded before, or {-1, present etag}.
PUT: Final = (
    _CLOCK
    + _NEXT
    + """
local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]
if last then
  local ok, envelope = pcall(cjson.decode, last[2][2])
  -- A client that lost its connection sends the write again; it was carried out.
  if ok and type(envelope) == 'table' and envelope.etag == ARGV[4] then return {envelope.revision, envelope.time} end
end
if ARGV[9] == '1' and redis.call('SADD', KEYS[6], ARGV[1]) == 0 then return {0} end
local present = redis.call('HGET', KEYS[1], ARGV[1])
local etag = ''
local old = nil
if present then
  local ok, envelope = pcall(cjson.decode, present)
  old = ok and type(envelope) == 'table' and envelope or nil
  etag = old and type(old.etag) == 'string' and old.etag or 'unreadable'
end
if ARGV[2] ~= '*' and ARGV[2] ~= etag then return {-1, etag} end
if ARGV[3] == '' and not present then return {0} end
if old and not last and type(old.revision) == 'number' then
  redis.call('XADD', KEYS[4], string.format('%d-0', old.revision), 'envelope', present)
end
-- Somebody may have set the counter back by hand; revisions never are.
local newest = last and tonumber(string.match(last[1], '^%d+')) or 0
local revision = math.max(next_revision(KEYS[2]), newest + 1)
redis.call('SET', KEYS[2], string.format('%d', revision))
local deleted = ARGV[3] == ''
local body = deleted and old and old.body or ARGV[3]
local envelope = cjson.encode({etag = ARGV[4], revision = revision, time = clock, actor = ARGV[5], reason = ARGV[6],
                               body = body, deleted = deleted})
if deleted then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], envelope)
end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[8], string.format('%d-0', revision), 'envelope', envelope)
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'domain', ARGV[1], 'revision', revision)
redis.call('SET', KEYS[5], ARGV[4])
return {revision, clock}
"""
)

# KEYS: overrides, revision, events, head. ARGV: id, body or "" to delete, stream length, a token of the write,
# milliseconds since the epoch at which it was said or 0 for now, revision of the one that is to be deleted or "",
# "1" to keep the word of an end where there is none to delete: others may hold what this store has lost; revision that
# was known when it was said. Returns {revision}, {0} if absent, or {-1} where one that was said later, and that was not
# known, caps as much: what was given up may come late. Those that ran out a minute ago, by every router's clock, go
# with any write.
OVERRIDE: Final = (
    _NEXT
    + _CLOCK
    + """
-- A client that lost its connection sends the write again; it was carried out.
for _, event in ipairs(redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 100)) do
  if event[2][1] == 'override' and event[2][6] == ARGV[4] then return {tonumber(event[2][4])} end
end
for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
  local ok, known = pcall(cjson.decode, redis.call('HGET', KEYS[1], id))
  local ends = id ~= ARGV[1] and ok and type(known) == 'table' and tonumber(known.expire_time)
  if ends and ends + 60 < tonumber(clock) then redis.call('HDEL', KEYS[1], id) end
end
local revision = next_revision(KEYS[2])
local ok, known = pcall(cjson.decode, redis.call('HGET', KEYS[1], ARGV[1]) or '')
local present = ok and type(known) == 'table' and known.revision
if ARGV[2] ~= '' and present and present > tonumber(ARGV[8]) then
  local fresh = cjson.decode(ARGV[2])
  local place = known.scope == 'global' or (known.scope == fresh.scope and known.target == fresh.target)
  local ends, wanted = tonumber(known.expire_time) or math.huge, tonumber(fresh.expire_time) or math.huge
  if place and (tonumber(known.max_tier) or math.huge) <= fresh.max_tier and ends >= wanted then
    for _, event in ipairs(redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 100)) do
      if event[2][1] == 'override' and event[2][2] == ARGV[1] then
        local said = tonumber(event[2][8] or 0)
        if said == 0 then said = tonumber(string.match(event[1], '^%d+')) end
        if ARGV[5] ~= '0' and said > tonumber(ARGV[5]) then return {-1} end
        break
      end
    end
  end
end
if ARGV[2] == '' then
  if ARGV[6] ~= '' and present ~= tonumber(ARGV[6]) then return {0} end
  if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 and ARGV[7] ~= '1' then return {0} end
else
  -- Of two fields of one name the last one counts.
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%s, "revision": %d}', string.sub(ARGV[2], 1, -2), revision))
end
redis.call('SET', KEYS[2], string.format('%d', revision))
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 'override', ARGV[1], 'revision', revision, 'token', ARGV[4],
           'said', ARGV[5])
redis.call('SET', KEYS[4], ARGV[4])
return {revision}
"""
)

# What is said of an override. KEYS: events, overrides. ARGV: id, milliseconds since the epoch, a revision, an event or
# "", a token of a write or "", the first event to look at or "" where those after both revision and event are enough,
# events that are kept. Returns {said, body or "", new}. Said is 2 where the last word is the write of that token, and 1
# where it is later: after that write, or said after the time, and written after either revision or event; where no time
# is given, written and said after the event, or by a later revision of a store that still has the event, since one that
# was emptied numbers anew. Else 0. What was trimmed away passed long ago: then an end is believed. New is 1 where the
# last word came after the event, or after the revision where there is no event, or where its own was not looked at.
WORD: Final = """
local function parts(event) return tonumber(string.match(event, '^%d+')), tonumber(string.match(event, '%d+$')) end
local function trimmed()
  if redis.call('EXISTS', KEYS[1]) == 0 then return false end
  local length, info = redis.call('XLEN', KEYS[1]), redis.call('XINFO', 'STREAM', KEYS[1])
  for place = 1, #info, 2 do
    if info[place] == 'entries-added' then return info[place + 1] > length end
  end
  return length >= tonumber(ARGV[7])
end
local body = redis.call('HGET', KEYS[2], ARGV[1]) or ''
local time, revision = tonumber(ARGV[2]), tonumber(ARGV[3])
local known_at, known_number, goes_on = nil, nil, true
if ARGV[4] ~= '' then
  known_at, known_number = parts(ARGV[4])
  goes_on = #redis.call('XRANGE', KEYS[1], ARGV[4], ARGV[4]) > 0
end
if not time and body == '' and ARGV[5] == '' and revision > 0 then
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if oldest and (tonumber(oldest[2][4]) or 0) > revision and trimmed() then return {1, body, 0} end
end
local newest, found, count, new = '+', false, 16, 0
while true do
  local events = redis.call('XREVRANGE', KEYS[1], newest, ARGV[6] == '' and '-' or ARGV[6], 'COUNT', count)
  for _, event in ipairs(events) do
    local fields, at, number = event[2], parts(event[1])
    local written = tonumber(fields[4]) or 0
    local is_after = known_at and (at > known_at or (at == known_at and number > known_number))
    if fields[1] == 'override' and fields[2] == ARGV[1] then
      if ARGV[5] ~= '' and fields[6] == ARGV[5] then return {found and 1 or 2, body, new} end
      if not found then
        local said = tonumber(fields[8] or 0)
        if said == 0 then said = at end
        local is_later = (is_after and said >= known_at) or (written > revision and goes_on)
        if is_after or (not known_at and written > revision) then new = 1 end
        if time then is_later = said >= time and (written > revision or is_after) end
        if is_later or ARGV[5] == '' then return {is_later and 1 or 0, body, new} end
        found = true
      end
    end
    if ARGV[6] == '' and not is_after and written <= revision then return {0, body, new} end
    newest = '(' .. event[1]
  end
  if #events < count then break end
  count = 1000
end
-- Its event is older than what was looked at.
local ok, there = pcall(cjson.decode, body)
if not found and ok and type(there) == 'table' and (tonumber(there.revision) or 0) > revision then new = 1 end
return {0, body, new}
"""

# KEYS: policies, revision, events, overrides, head. Returns {revision, head, last event, time, overrides, policies}.
READ: Final = (
    _CLOCK
    + """
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
return {redis.call('GET', KEYS[2]) or '0', redis.call('GET', KEYS[5]) or '', last and last[1] or '0-0', clock,
        redis.call('HGETALL', KEYS[4]), redis.call('HGETALL', KEYS[1])}
"""
)

# What changed after one event. KEYS as READ. ARGV: the event, events at most.
# Returns {revision, head, last event, time, overrides, number of events, {domain, envelope or false, ...}}.
DELTA: Final = (
    _CLOCK
    + """
local events = redis.call('XRANGE', KEYS[3], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
local last, seen, changed = ARGV[1], {}, {}
for _, event in ipairs(events) do
  last = event[1]
  local domain = event[2][1] == 'domain' and event[2][2]
  if domain and not seen[domain] then
    seen[domain] = true
    changed[#changed + 1] = domain
    changed[#changed + 1] = redis.call('HGET', KEYS[1], domain)
  end
end
return {redis.call('GET', KEYS[2]) or '0', redis.call('GET', KEYS[5]) or '', last, clock,
        redis.call('HGETALL', KEYS[4]), #events, changed}
"""
)

# Writes the first outcome of a metric. KEYS: the decision's metrics, outcomes. ARGV: metric, the most metrics of one
# decision, seconds that they are kept, outcomes kept, names and values of the outcome's fields. Returns 1 when it was
# written, 0 when there is one, and -1 when there are the most.
REPORT: Final = """
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 1 then return 0 end
if redis.call('SCARD', KEYS[1]) >= tonumber(ARGV[2]) then return -1 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
