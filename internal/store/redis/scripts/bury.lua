-- Forgets a dead session that no run is left of. KEYS: sessions, the runs of the session. ARGV: the session.
local time = redis.call('TIME')
local dies = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local dead = dies <= time[1] * 1000 + math.floor(time[2] / 1000)
if dead and redis.call('SCARD', KEYS[2]) == 0 then redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
