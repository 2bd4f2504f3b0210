package main

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// giveUpAfter makes connections of a listener end when their client has acknowledged nothing for that long, as one does that has lost
// its network. The system's own patience is a quarter of an hour, for which the client's run would keep the engine busy.
func giveUpAfter(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
		if err != nil {
			return err
		}
		return failed
	}
}
