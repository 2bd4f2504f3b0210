package budget_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"anytime/internal/budget"
)

// engine is a simulated one: what things take, drawn anew each time.
type engine struct {
	prefill, thinking, summary, overhead func() time.Duration // a token; overhead of a fork
	now                                  time.Time
	pace                                 *budget.Pace
}

func (e *engine) takes(n int, cost func() time.Duration) time.Duration {
	start := e.now
	for range n {
		e.now = e.now.Add(cost())
	}
	return e.now.Sub(start)
}

// answer forks, closes with a suffix, and decodes, as the anytime loop does.
func (e *engine) answer(suffix, tokens int) {
	took := e.takes(1, e.overhead) + e.takes(suffix, e.prefill)
	e.pace.ObserveOverhead(suffix, took)
	e.pace.ObserveSummary(tokens, e.takes(tokens, e.summary))
}

// solve thinks until it is time to answer, answers, and returns what is left of the deadline.
func (e *engine) solve(m *budget.Meter, suffix, answer int) time.Duration {
	for m.CutAt(e.now).After(e.now) {
		e.pace.ObserveThinking(1, e.takes(1, e.thinking))
	}
	e.answer(suffix, answer)
	return m.Deadline().Sub(e.now)
}

const delivery = 30 * ms

// Over all engines whose speeds stay within 8 % of their mean, a whole answer is in time if there is time for one at all, and not much
// time is left unused.
func TestMeterKeepsDeadlines(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		around := func(label string, low, high time.Duration) func() time.Duration {
			mean := float64(rapid.Int64Range(int64(low), int64(high)).Draw(rt, label))
			return func() time.Duration { return time.Duration(mean * (0.92 + 0.16*rng.Float64())) }
		}
		thinking := time.Duration(rapid.Int64Range(int64(500*time.Microsecond), int64(100*ms)).Draw(rt, "thinking"))
		e := &engine{
			prefill:  around("prefill", 20*time.Microsecond, 30*ms),
			thinking: around("thinking", thinking, thinking),
			summary:  around("summary", thinking/2, 4*thinking),
			overhead: around("overhead", ms, 300*ms),
			now:      time.Unix(1e9, 0),
			pace:     budget.NewPace(budget.Snapshot{}),
		}
		suffix := rapid.IntRange(0, 100).Draw(rt, "suffix")
		answer := rapid.IntRange(1, 128).Draw(rt, "answer")
		for range rapid.IntRange(20, 40).Draw(rt, "earlier") {
			e.pace.ObservePrefill(64, e.takes(64, e.prefill))
			e.pace.ObserveThinking(32, e.takes(32, e.thinking))
			e.answer(suffix, 16)
		}
		reserve := e.pace.Thinking(1) + e.pace.Summary(suffix, answer) + delivery
		deadline := reserve + time.Duration(rapid.Int64Range(0, int64(20*time.Second)).Draw(rt, "thinking time"))
		m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: deadline}, e.now, budget.MaxTokens, e.pace, suffix, answer)
		left := e.solve(m, suffix, answer)
		if left < delivery {
			rt.Fatalf("%v before the deadline, needs %v", left, delivery)
		}
		if left > delivery+reserve*6/10+20*ms {
			rt.Fatalf("%v left of a reserve of %v", left, reserve)
		}
	})
}

// With log-normal tokens (σ = 0.5), stalls of 20 tokens' time once in 1000 tokens, and a load of 1 to 3 that each run finds
// changed, nearly all answers are in time, and do not wait for nothing.
func TestMeterKeepsDeadlinesUnderJitter(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const runs = 1000
	late, worst, unused := 0, time.Duration(0), time.Duration(0)
	load := 1.0
	noisy := func(mean time.Duration) func() time.Duration {
		return func() time.Duration {
			d := float64(mean) * load * math.Exp(0.5*rng.NormFloat64())
			if rng.IntN(1000) == 0 {
				d += 20 * float64(mean)
			}
			return time.Duration(d)
		}
	}
	e := &engine{
		prefill: noisy(ms), thinking: noisy(10 * ms), summary: noisy(12 * ms), overhead: noisy(20 * ms),
		now: time.Unix(1e9, 0), pace: warm(),
	}
	for range runs {
		b := budget.Budget{Tokens: budget.Unlimited, Deadline: 4*time.Second + time.Duration(rng.Int64N(int64(6*time.Second)))}
		m := budget.NewMeter(b, e.now, budget.MaxTokens, e.pace, 10, 64)
		load = 1 + 2*rng.Float64()
		left := e.solve(m, 10, 64)
		e.pace.ObserveReserve(left >= delivery)
		unused += max(0, left) / runs
		if left < delivery {
			late++
			worst = max(worst, delivery-left)
		}
	}
	t.Logf("%d of %d late, at worst by %v; %v unused", late, runs, worst, unused)
	if late > runs/100 || unused > 2*time.Second {
		t.Error("too many late, or too much unused")
	}
}

func TestMeterTokens(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, c := range []struct {
		budget    string
		serverCap int
		limit     int
	}{
		{"512", 4096, 512}, {"5000", 4096, 4096}, {"max", 4096, 4096}, {"0", 4096, 0}, {"5", 0, 0}, {"max", -1, budget.MaxTokens}, {"7", -1, 7},
	} {
		b, err := budget.Parse(c.budget)
		if err != nil {
			t.Fatal(err)
		}
		m := budget.NewMeter(b, now, c.serverCap, nil, 10, 128)
		if m.Limit() != c.limit || !m.Deadline().IsZero() || !m.CutAt(now).IsZero() {
			t.Errorf("%s of %d: limit %d, deadline %v, cut %v", c.budget, c.serverCap, m.Limit(), m.Deadline(), m.CutAt(now))
		}
		m.Count(c.limit)
		m.Count(-min(1, c.limit))
		if m.Used() != max(0, c.limit-1) {
			t.Errorf("%s: used %d", c.budget, m.Used())
		}
	}
}

func TestMeterDeadline(t *testing.T) {
	arrival := time.Unix(1e9, 0)
	b := budget.Budget{Tokens: 300, Deadline: 4 * time.Second}
	pace := warm()
	m := budget.NewMeter(b, arrival, 4096, pace, 10, 100)
	if want := arrival.Add(4 * time.Second); !m.Deadline().Equal(want) {
		t.Errorf("deadline %v, want %v", m.Deadline(), want)
	}
	cut := m.CutAt(arrival)
	between(t, "reserve", m.Deadline().Sub(cut), 1550*ms, 1650*ms)
	late := cut.Add(time.Second)
	if !m.CutAt(late).Equal(late) {
		t.Errorf("at %v, cut at %v", late, m.CutAt(late))
	}
	// It moves with the pace.
	for range 5 {
		pace.ObserveSummary(16, 400*ms)
	}
	if moved := m.CutAt(arrival); !moved.Before(cut) {
		t.Errorf("summaries are slower, and the cut went from %v to %v", cut, moved)
	}
}

func TestMeterReserveHasAFloor(t *testing.T) {
	now := time.Unix(1e9, 0)
	p := budget.NewPace(budget.Snapshot{})
	for range 50 {
		p.ObservePrefill(100, 0)
		p.ObserveThinking(16, 0)
		p.ObserveSummary(16, 0)
		p.ObserveOverhead(10, 0)
	}
	for deadline, want := range map[time.Duration]time.Duration{time.Second: 950 * ms, 40 * ms: 0} {
		m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: deadline}, now, 100, p, 10, 10)
		if got := m.CutAt(now).Sub(now); got != want {
			t.Errorf("deadline %v: cut after %v, want %v", deadline, got, want)
		}
	}
	// Nothing is known, and two seconds are not enough: answer at once.
	m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: 2 * time.Second}, now, 100, budget.NewPace(budget.Snapshot{}), 10, 128)
	if !m.CutAt(now).Equal(now) {
		t.Errorf("cold: cut after %v", m.CutAt(now).Sub(now))
	}
}

// What an answer shares the engine with is reserved for.
func TestMeterExpectsCompany(t *testing.T) {
	now := time.Unix(1e9, 0)
	pace := warm()
	m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: time.Minute}, now, 100, pace, 10, 100)
	alone := m.Reserve()
	for what, c := range map[string]struct {
		company   budget.Company
		low, high time.Duration
	}{
		"a prompt of 1000 tokens": {budget.Company{Prefill: 1000}, alone + 950*ms, alone + 1100*ms},
		"a place to wait for":     {budget.Company{Rounds: 1}, alone + 1500*ms, alone + 1600*ms},
		"three others, none seen": {budget.Company{Answer: 4}, alone * 2, alone * 23 / 10},
	} {
		m.Expect(c.company)
		between(t, what, m.Reserve(), c.low, c.high)
	}
}

func TestAutoCostsAtMostItsShare(t *testing.T) {
	now := time.Unix(1e9, 0)
	pace := warm()
	cost := pace.Summary(10, 20)
	m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: 10 * time.Minute}, now, budget.MaxTokens, pace, 10, 20)
	a := budget.NewAuto(m)
	var thought, spent, last time.Duration
	taken := 0
	for {
		at, ok := a.Next(now, thought)
		if !ok {
			break
		}
		if at.Before(now) {
			t.Fatalf("next at %v, now %v", at, now)
		}
		if at.After(now) {
			thought += at.Sub(now)
			now = at
			continue
		}
		if again, ok := a.Next(now, thought); ok && !again.After(now) {
			t.Fatalf("after %v, the same checkpoint twice", thought)
		}
		if taken > 0 && thought < last+last/4 {
			t.Errorf("a checkpoint after %v and after %v", last, thought)
		}
		a.Observe(thought, cost)
		taken++
		spent += cost
		last = thought
		if spent > thought/20 {
			t.Fatalf("%d checkpoints cost %v of %v", taken, spent, thought)
		}
	}
	if taken < 8 || taken > 30 {
		t.Errorf("%d checkpoints in 10 minutes at %v each", taken, cost)
	}
	if left := m.CutAt(now).Sub(now); left > 3*time.Minute {
		t.Errorf("the last checkpoint was %v before the cut", left)
	}
}

func TestAutoTakesNoneThatDoNotPay(t *testing.T) {
	now := time.Unix(1e9, 0)
	for deadline, want := range map[time.Duration]bool{0: false, 2 * time.Second: false, 7 * time.Second: false, 8 * time.Second: true, 30 * time.Second: true} {
		m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: deadline}, now, 4096, warm(), 10, 20)
		if at, ok := budget.NewAuto(m).Next(now, 0); ok != want {
			t.Errorf("deadline %v: %v after %v", deadline, ok, at.Sub(now))
		}
	}
	// A checkpoint that was dearer than expected puts off the next.
	m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: 30 * time.Second}, now, 4096, warm(), 10, 20)
	a := budget.NewAuto(m)
	a.Observe(10*time.Second, 2*time.Second)
	if at, ok := a.Next(now, 10*time.Second); ok {
		t.Errorf("next after %v", at.Sub(now))
	}
}
