-- Gives a lease back. KEYS: run. ARGV: its fence.
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'session', '')
return 1
