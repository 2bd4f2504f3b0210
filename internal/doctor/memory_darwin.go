package doctor

import "golang.org/x/sys/unix"

// Memory is the memory of the machine in bytes; 0 unknown.
func Memory() int64 {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0
	}
	return int64(n)
}

func available() int64 { return 0 }
