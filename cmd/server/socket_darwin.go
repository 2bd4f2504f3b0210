package main

import (
	"syscall"
	"time"
)

// giveUpAfter leaves it to the system how long a client that has lost its network is waited for.
func giveUpAfter(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
