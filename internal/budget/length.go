package budget

import (
	"math"
	"sync"
)

// Length learns how long a model's answers are, so that a deadline's reserve is for the answer that is likely to come and not for the
// longest that is allowed. It is a mean and a mean deviation like those of a Pace. Its zero value knows nothing. It may be used concurrently.
type Length struct {
	mu              sync.Mutex
	mean, deviation float64 // tokens
	seen            int
}

const (
	enough = 2  // answers that must have been seen before they say anything
	cold   = 24 // tokens until then: a short sentence; a Pace that is new is so cautious that twice as many will fit
)

// Observe records an answer of so many tokens. One that was cut off at its cap was at least as long.
func (l *Length) Observe(tokens int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := float64(tokens)
	if l.seen++; l.seen == 1 {
		l.mean, l.deviation = x, x/2
		return
	}
	l.deviation += deviationWeight * (math.Abs(x-l.mean) - l.deviation)
	l.mean += ratioWeight * (x - l.mean)
}

// Reserve returns how many tokens to keep for an answer of at most so many: mean + 2 deviations.
// That is less cautious than a Pace: a longer answer is cut off at the deadline, not late, and may have said what matters.
func (l *Length) Reserve(atMost int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen < enough {
		return min(atMost, cold)
	}
	return min(atMost, int(math.Ceil(l.mean+2*max(l.deviation, leastDeviation*l.mean))))
}
