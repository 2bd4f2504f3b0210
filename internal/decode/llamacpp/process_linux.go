package llamacpp

import "syscall"

// childAttributes makes the kernel end the child with the parent, even if the child hangs.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
