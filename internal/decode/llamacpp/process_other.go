//go:build !linux

package llamacpp

import "syscall"

// childAttributes has nothing to say here: the child ends when its command pipe closes.
func childAttributes() *syscall.SysProcAttr { return nil }
