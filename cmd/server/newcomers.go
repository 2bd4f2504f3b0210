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

// wait waits until there are none, but not for those that say nothing. The listener must be closed.
func (n *newcomers) wait(ctx context.Context) {
	const patience, tick = time.Second, 5 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for quiet := 0; quiet < 2; { // a request counts as read a moment before it is served
		if quiet++; !n.none() {
			quiet = 0
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}
