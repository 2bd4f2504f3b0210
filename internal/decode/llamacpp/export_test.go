package llamacpp

import "testing"

// SetWholeState makes engines opened during the test run as if their caches could not be cut.
func SetWholeState(t testing.TB) {
	wholeState = true
	t.Cleanup(func() { wholeState = false })
}

// ChildPID is the engine process, 0 while there is none.
func (e *Engine) ChildPID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.proc == nil {
		return 0
	}
	return e.proc.cmd.Process.Pid
}
