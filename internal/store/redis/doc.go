// Package redis keeps runs in Redis, for many servers together (replicas).
//
// A run is a hash (what it is) and a list (its events), whose keys share a hash tag and so a node of a cluster. Whoever executes a run
// holds it: it has the run and all of its events in memory too, and is the only one who appends to it, which a fence in each
// commit sees to. So an offset is given once, by one server; a commit whose reply got lost can be sent again without
// harm; what Redis has forgotten, after a crash, is written anew; and while Redis is away a run goes on, its readers here served
// from memory. One goroutine sends what is pending, of all runs, in one pipeline at most every 10 ms.
//
// A server's lease on its runs is its session, a score in a sorted set that it moves on. Once that has passed, others claim the session's
// runs one by one: a claim raises the fence. A server that comes back keeps what nobody has claimed. What it has lost it drops;
// but a run some of whose uncommitted events were shown goes on for those who saw them, and is not written any more.
//
// Readers of runs that are executed elsewhere share one connection, which subscribes to the channels of the runs that somebody waits
// for; commands to other servers and their replies go over it as well. Messages may get lost: readers look again after a while,
// and commands are repeated.
//
// An event is shown once Redis has acknowledged it. What that is worth is for Redis to say: see docs/redis.md.
package redis
