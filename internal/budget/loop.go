package budget

import "hash/maphash"

// Bounds of a Loop.
const (
	maxPeriod  = 256 // tokens
	minTail    = 512 // tokens
	minPeriods = 4   // beyond minTail
)

// Loop finds thinking that repeats itself for ever. Its zero value is ready.
//
// It is a loop when the newest tokens are exactly periodic: the last 512 + 4p repeat with a period p of at most 256 tokens. That is 6
// times for the longest period and 516 for a single token; a loop is found by then, whatever its phase. It is meant to be late: a
// few hundred tokens spent in vain cost little, an honest thought cut off costs the answer. So rows of digits, tables and
// rulers pass, and so do search lines that are alike but not the same. A loop that changes a counter in each round is not found.
//
// For each period it counts how long tokens have equalled those one period before: a comparison per period and token, over 256
// neighbouring words, exact and without allocation. That is a fraction of a microsecond beside a token's milliseconds, where
// borders (Knuth, Morris and Pratt) would have to be rebuilt at every mismatch.
type Loop struct {
	recent [2 * maxPeriod]int64 // recent[:n] ends with the newest token
	n      int
	run    [maxPeriod + 1]int // of each period: how many newest tokens equal those a period before
}

// Observe takes the next token, by its id or by TextKey of its text, and reports whether the thinking is in a loop.
func (l *Loop) Observe(token int64) bool {
	if l.n == len(l.recent) {
		l.n = copy(l.recent[:], l.recent[maxPeriod:])
	}
	looping := false
	for p := 1; p <= min(l.n, maxPeriod); p++ {
		if l.recent[l.n-p] != token {
			l.run[p] = 0
			continue
		}
		l.run[p]++
		// The tail is the run and the period before it.
		if l.run[p] >= minTail+(minPeriods-1)*p {
			looping = true
		}
	}
	l.recent[l.n] = token
	l.n++
	return looping
}

var textSeed = maphash.MakeSeed()

// TextKey is a token's key where the engine has no ids. It differs from process to process.
func TextKey(text string) int64 { return int64(maphash.String(textSeed, text)) }
