-- Deletes a run. KEYS: run, its events, its grave. ARGV: milliseconds that the grave stays, channel. Returns whether there was one.
local there = redis.call('DEL', KEYS[1])
if there == 0 then return 0 end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[3], 1, 'PX', ARGV[1])
redis.call('PUBLISH', ARGV[2], 'deleted')
return 1
