package main

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// newcomers are connections that have not sent a request yet. http.Server.Shutdown hangs up on those whose first one comes after it; who
// is behind them should hear that the server is stopping, and ask another.
type newcomers struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
}

// note is the server's ConnState.
func (n *newcomers) note(c net.Conn, state http.ConnState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if state != http.StateNew {
		delete(n.conns, c)
		return
	}
	if n.conns == nil {
		n.conns = map[net.Conn]bool{}
	}
	n.conns[c] = true
}

func (n *newcomers) none() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns) == 0
}

// wait waits until there are none, but not for those that say nothing. unaccepted counts those that the system has yet to hand over; others
// must not come any more.
func (n *newcomers) wait(ctx context.Context, unaccepted func() int) {
	const patience, tick, roundTrip = time.Second, 5 * time.Millisecond, 100 * time.Millisecond // for whom the system still shakes hands with
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for quiet := time.Duration(0); quiet < roundTrip; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if quiet += tick; unaccepted() > 0 || !n.none() {
			quiet = 0
		}
	}
}

// shut is turnAway where the system knows no better.
func shut(l net.Listener) (unaccepted func() int) {
	_ = l.Close() // it can only have been closed
	return func() int { return 0 }
}
