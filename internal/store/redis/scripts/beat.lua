-- Keeps a session alive and lists runs that it holds, so that whoever finds it dead finds them. KEYS: sessions, by when they die; the
-- runs of the session. ARGV: the session; milliseconds that it lives on; runs. Returns whether it was known, and the sessions that are dead.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
for i = 3, #ARGV do redis.call('SADD', KEYS[2], ARGV[i]) end
return {known and 1 or 0, redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)}
