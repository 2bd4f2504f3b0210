package redis

import (
	"testing"
	"time"
)

// Patient keeps a stall of the machine from looking like a Redis that is away, for a test of what is so while it is there. It comes
// before the test's stores are opened.
func Patient(t *testing.T) {
	was := patience
	patience = 30 * time.Second
	t.Cleanup(func() { patience = was })
}
