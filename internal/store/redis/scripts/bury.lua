-- Forgets a dead session that no run is left of. KEYS: sessions, the runs of the session. ARGV: the session.
if redis.call('SCARD', KEYS[2]) == 0 then redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
