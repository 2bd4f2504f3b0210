package main

import (
	"net"
	"syscall"
	"time"
)

// giveUpAfter leaves it to the system how long a client that has lost its network is waited for.
func giveUpAfter(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }

// turnAway has no more connections made. Those that are made and not accepted yet are reset.
func turnAway(l net.Listener) (unaccepted func() int) { return shut(l) }
