-- Says whether a session is alive. KEYS: sessions. ARGV: the session.
local time = redis.call('TIME')
local dies = redis.call('ZSCORE', KEYS[1], ARGV[1])
if dies and tonumber(dies) > time[1] * 1000 + math.floor(time[2] / 1000) then return 1 end
return 0
