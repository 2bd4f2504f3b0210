-- Takes from an allowance that fills evenly (GCRA). KEYS: it. ARGV: its size, microseconds in which one of it comes back, how many to take,
-- 1 to take them even where they are not there. Returns whether they were taken, and how many microseconds ahead of now it is used up.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local each, n = tonumber(ARGV[2]), tonumber(ARGV[3])
local used = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
local next = used + n * each
if ARGV[4] ~= '1' and next - now > ARGV[1] * each + 1 then return {0, math.floor(used - now)} end
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000) + 1)
return {1, math.floor(next - now)}
