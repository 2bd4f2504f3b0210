-- Leases a run. KEYS: run. ARGV: the fence that it is known to have, channel, the new session. Returns the new fence, or 0 if somebody
-- was quicker. What the old lease had committed is noted, so that readers who were shown more can be told.
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HSET', KEYS[1], 'session', ARGV[3], 'base:' .. ARGV[1], redis.call('HGET', KEYS[1], 'last'))
redis.call('PUBLISH', ARGV[2], 'leased')
return fence
