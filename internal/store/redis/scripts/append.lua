-- Commits a run's change, all or nothing, and once however often it is sent.
-- KEYS: run, its events, its grave. ARGV: create, restore or append; the lease's fence; the offset behind which the events begin;
-- milliseconds that an ended run is kept, 0 for ever; channel; session; number of fields and values; those, where the first is "made"
-- but for an append; events.
-- Returns what became of it, and the offset of the run's last event.
local known = redis.call('HMGET', KEYS[1], 'fence', 'last', 'made')
local fence, last, base = known[1], tonumber(known[2] or 0), tonumber(ARGV[3])
if fence then
  if ARGV[1] == 'create' and known[3] ~= ARGV[9] then return {'exists', last} end
  if fence ~= ARGV[2] then return {'leased', last} end
elseif ARGV[1] == 'create' then
  redis.call('DEL', KEYS[2], KEYS[3])
elseif redis.call('EXISTS', KEYS[3]) == 1 then
  return {'deleted', 0}
elseif ARGV[1] == 'append' then
  return {'missing', 0} -- Redis has lost it
else
  redis.call('DEL', KEYS[2])
end
if last < base then return {'behind', last} end -- Redis has lost some of it
local first = 8 + tonumber(ARGV[7])
for i = first + last - base, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
last = math.max(last, base + #ARGV - first + 1)
redis.call('HSET', KEYS[1], 'fence', ARGV[2], 'last', last, unpack(ARGV, 8, first - 1))
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'running' then
  redis.call('HSET', KEYS[1], 'session', ARGV[6])
  redis.call('PERSIST', KEYS[1])
  redis.call('PERSIST', KEYS[2])
else
  redis.call('HSET', KEYS[1], 'session', '')
  if ARGV[4] ~= '0' then
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    redis.call('PEXPIRE', KEYS[2], ARGV[4])
  end
end
redis.call('PUBLISH', ARGV[5], last)
return {'ok', last}
