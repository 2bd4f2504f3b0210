package ollama

import (
	"testing"
	"time"
)

// SetFirstToken changes for a test how long a stream may be silent after a cancellation. It is called before engines are opened.
func SetFirstToken(t testing.TB, d time.Duration) {
	before := firstToken
	firstToken = d
	t.Cleanup(func() { firstToken = before })
}

// Learn is learn.
var Learn = learn
