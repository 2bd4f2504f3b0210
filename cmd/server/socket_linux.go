package main

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// giveUpAfter makes connections of a listener end when their client has acknowledged nothing for that long, as one does that has lost
// its network. The system's own patience is a quarter of an hour, for which the client's run would keep the engine busy.
func giveUpAfter(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		return onSocket(c, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
	}
}

// turnAway has no more connections made, and returns a count of those that were made and are not accepted yet: the system would reset
// them if the listener were closed now. Who asks to connect hears nothing until it is, and is refused when they ask again.
func turnAway(l net.Listener) (unaccepted func() int) {
	const flags, syn, all = 13, 2, 1<<32 - 1 // of a TCP header
	drop := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: all},
	}
	c, err := l.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = onSocket(c, func(fd int) error {
			return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(drop)), Filter: &drop[0]})
		})
	}
	if err != nil {
		return shut(l)
	}
	return func() (n int) {
		_ = onSocket(c, func(fd int) error { // of a closed one none is left
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil {
				n = int(info.Unacked) // of a listener: the length of its queue
			}
			return err
		})
		return n
	}
}

func onSocket(c syscall.RawConn, do func(fd int) error) error {
	var failed error
	if err := c.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}
