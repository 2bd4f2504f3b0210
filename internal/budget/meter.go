package budget

import "time"

const (
	// delivery is from an answer's last token until the client has it: a commit, of which there is one every 20 ms or more often, and the way there.
	delivery = 30 * time.Millisecond
	// leastReserve is kept for an answer however fast the engine seems.
	leastReserve = 50 * time.Millisecond
)

// Meter is one run's account of its budget.
type Meter struct {
	limit, used                int
	deadline                   time.Time // zero: none
	pace                       *Pace
	suffixTokens, answerTokens int
	company                    Company
}

// Company is what an answer must share the engine with.
type Company struct {
	Answer  float64 // sequences that an answer shares the engine with, itself and its votes included
	Prefill int     // tokens that are prefilled before it can begin, besides its own suffix: the prompt, others' suffixes
	Rounds  int     // answers of other runs, one after another, for which it must wait for a place in the batch
}

// NewMeter opens an account. The server's cap bounds the thinking whatever the budget; negative: none. A deadline counts from
// the request's arrival, and needs a pace and the sizes of the closing suffix and of the longest answer.
func NewMeter(b Budget, arrival time.Time, serverCap int, pace *Pace, suffixTokens, answerTokens int) *Meter {
	if serverCap < 0 {
		serverCap = MaxTokens
	}
	m := &Meter{
		limit:        max(0, b.Tighter(Budget{Tokens: serverCap}).Tokens),
		pace:         pace,
		suffixTokens: suffixTokens,
		answerTokens: answerTokens,
	}
	if b.Deadline > 0 {
		m.deadline = arrival.Add(b.Deadline)
	}
	return m
}

// Count adds thinking tokens; a negative number takes some back.
func (m *Meter) Count(n int) { m.used += n }

// Used returns the thinking tokens so far.
func (m *Meter) Used() int { return m.used }

// Limit returns the thinking tokens that are allowed, those used included.
func (m *Meter) Limit() int { return m.limit }

// Deadline returns when the finished answer must be with the client; zero: whenever it is.
func (m *Meter) Deadline() time.Time { return m.deadline }

// Expect says in what company the answer will be taken. Until then it is alone.
func (m *Meter) Expect(c Company) { m.company = c }

// Reserve returns how long it takes, short of a mishap, from the decision to answer until the client has a whole answer.
func (m *Meter) Reserve() time.Duration { return m.reserve(pessimism) }

// Expected is like Reserve, but what it takes on average.
func (m *Meter) Expected() time.Duration { return m.reserve(0) }

// Soonest is like Reserve, but what one may hope for: a deadline that leaves no more than that can just be met.
func (m *Meter) Soonest() time.Duration { return m.reserve(pessimism / 2) }

func (m *Meter) reserve(deviations float64) time.Duration {
	return max(m.pace.reserve(m.suffixTokens, m.answerTokens, m.company, deviations)+delivery, leastReserve)
}

// CutAt returns the latest moment to cut the thinking so that the token under way, the closing, a whole answer and its delivery
// still make the deadline; now if that has passed, zero if there is no deadline. It moves as the pace and the company do.
func (m *Meter) CutAt(now time.Time) time.Time {
	if m.deadline.IsZero() {
		return time.Time{}
	}
	cut := m.deadline.Add(-m.Reserve())
	if cut.Before(now) {
		return now
	}
	return cut
}

const (
	// autoShare is one over the part of the thinking's time that unasked checkpoints may cost: 5 %.
	autoShare = 20
	// autoGrowth is one over how much longer a thought must be than at the last one: 25 %, so that the newest answer is always of
	// at least 80 % of the thought and the number of them grows with the logarithm of its length only.
	autoGrowth = 4
)

// Auto spaces the checkpoints of a run with a deadline whose client asked for none: they are what goes out if even the reserve
// should not suffice. They are far enough apart to cost at most 5 % of the thinking's time.
type Auto struct {
	meter *Meter
	last  time.Duration // thinking at the newest checkpoint
	spent time.Duration
	taken time.Duration // estimated cost of those taken and not observed yet
}

// NewAuto spaces the checkpoints of a meter's run.
func NewAuto(m *Meter) *Auto { return &Auto{meter: m} }

// Next returns from when on a checkpoint may be taken in a run that has been thinking for the given time. When that is now, not later,
// the caller takes it: it counts as taken, at its estimated cost until Observe tells the real one. False: as things stand none
// pays any more, since its answer would be no earlier than CutAt. A run without a deadline takes none.
func (a *Auto) Next(now time.Time, thought time.Duration) (time.Time, bool) {
	m := a.meter
	if m.deadline.IsZero() {
		return time.Time{}, false
	}
	cost := m.pace.Summary(m.suffixTokens, m.answerTokens)
	if cost > MaxDeadline {
		return time.Time{}, false
	}
	due := max(autoShare*(a.spent+a.taken+cost), a.last+a.last/autoGrowth)
	at := now.Add(max(0, due-thought))
	if !at.Add(cost).Before(m.CutAt(now)) {
		return time.Time{}, false
	}
	if due <= thought {
		a.taken += cost
		a.last = thought
	}
	return at, true
}

// Observe records what a checkpoint cost the thinking, at most what it took; after thinking for the given time.
func (a *Auto) Observe(thought, cost time.Duration) {
	a.last = max(a.last, thought)
	a.spent += max(0, cost)
	a.taken = 0
}
