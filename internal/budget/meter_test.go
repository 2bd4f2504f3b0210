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

// solve thinks until the meter says to stop, answers, and returns the cause and the tokens there was time for.
func (e *engine) solve(m *budget.Meter, suffix int) (budget.Cause, int) {
	for {
		if cause, stop := m.Cause(e.now); stop {
			n := m.AnswerTokens(e.now)
			e.answer(suffix, n)
			return cause, n
		}
		// Spans as the engine gets them; in each, the cut acts at the token under way.
		for range max(1, m.TokensBefore(e.now)) {
			e.pace.ObserveThinking(1, e.takes(1, e.thinking))
			m.Count(1)
			if _, stop := m.Cause(e.now); stop {
				break
			}
		}
	}
}

const delivery = 30 * ms

// Over all engines whose speeds stay within 8 % of their mean, an answer is in time if there is time for one at all, it is whole or
// nearly so, and not much time is left unused.
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
		cause, n := e.solve(m, suffix)
		left := m.Deadline().Sub(e.now)
		if cause != budget.CauseDeadline || left < delivery {
			rt.Fatalf("%s, %v before the deadline, needs %v", cause, left, delivery)
		}
		if e.pace.Summary(0, answer)-e.pace.Summary(0, n) > reserve/8 {
			rt.Fatalf("room for %d tokens of %d", n, answer)
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
	late, tokens, worst, unused := 0, 0, time.Duration(0), time.Duration(0)
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
		_, n := e.solve(m, 10)
		tokens += n
		unused += m.Deadline().Sub(e.now) / runs
		if over := e.now.Add(delivery).Sub(m.Deadline()); over > 0 {
			late++
			worst = max(worst, over)
		}
	}
	t.Logf("%d of %d late, at worst by %v; room for %.1f of 64 tokens, %v unused", late, runs, worst, float64(tokens)/runs, unused)
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
		if m.Limit() != c.limit || m.TokensBefore(now) != c.limit || !m.Deadline().IsZero() || !m.CutAt(now).IsZero() || m.AnswerTokens(now) != 128 {
			t.Errorf("%s of %d: limit %d, span %d, deadline %v, cut %v, answer %d", c.budget, c.serverCap,
				m.Limit(), m.TokensBefore(now), m.Deadline(), m.CutAt(now), m.AnswerTokens(now))
		}
		if c.limit > 0 {
			m.Count(c.limit - 1)
			if cause, stop := m.Cause(now); stop || m.TokensBefore(now) != 1 {
				t.Errorf("%s: a token before its limit: %s, %d left", c.budget, cause, m.TokensBefore(now))
			}
			m.Count(1)
		}
		if cause, stop := m.Cause(now); !stop || cause != budget.CauseTokens || m.Used() != c.limit || m.TokensBefore(now) != 0 {
			t.Errorf("%s: spent: %q, %v, used %d, %d left", c.budget, cause, stop, m.Used(), m.TokensBefore(now))
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
	if n := m.TokensBefore(arrival); n < 150 || n > 250 {
		t.Errorf("a span of %d tokens in %v", n, cut.Sub(arrival))
	}
	m.Count(290)
	if n := m.TokensBefore(arrival); n != 10 {
		t.Errorf("a span of %d tokens with 10 left", n)
	}
	if cause, stop := m.Cause(cut.Add(-1)); stop {
		t.Errorf("cut for %s too early", cause)
	}
	if cause, stop := m.Cause(cut); !stop || cause != budget.CauseDeadline {
		t.Errorf("not cut for the deadline: %s, %v", cause, stop)
	}
	if n := m.AnswerTokens(cut); n != 100 {
		t.Errorf("at the cut, room for %d tokens of 100", n)
	}
	late := cut.Add(time.Second)
	if !m.CutAt(late).Equal(late) {
		t.Errorf("at %v, cut at %v", late, m.CutAt(late))
	}
	if n := m.AnswerTokens(late); n < 20 || n > 60 {
		t.Errorf("a second late, room for %d tokens", n)
	}
	if n := m.AnswerTokens(m.Deadline().Add(-10 * ms)); n != 0 {
		t.Errorf("10 ms before the deadline, room for %d tokens", n)
	}
	if n := m.AnswerTokens(m.Deadline().Add(time.Hour)); n != 0 || m.TokensBefore(late) != 0 {
		t.Errorf("after the deadline, room for %d tokens, %d of thinking", n, m.TokensBefore(late))
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
	// Nothing is known, and two seconds are not enough: answer at once, with what fits.
	m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: 2 * time.Second}, now, 100, budget.NewPace(budget.Snapshot{}), 10, 128)
	if cause, stop := m.Cause(now); !stop || cause != budget.CauseDeadline {
		t.Errorf("cold: %s, %v", cause, stop)
	}
	if n := m.AnswerTokens(now); n < 5 || n > 20 {
		t.Errorf("cold: room for %d tokens", n)
	}
}

// AnswerTokens never promises what does not fit, whenever the answer is asked for.
func TestAnswerTokensFit(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pace := warm()
		now := time.Unix(1e9, 0)
		answer := rapid.IntRange(0, 500).Draw(rt, "answer")
		left := time.Duration(rapid.Int64Range(int64(-time.Second), int64(10*time.Second)).Draw(rt, "left"))
		m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: time.Hour}, now.Add(left-time.Hour), 100, pace, 10, answer)
		n := m.AnswerTokens(now)
		if n < 0 || n > answer || n > 0 && pace.Summary(10, n)+delivery > left+1 {
			rt.Fatalf("%d tokens of %d in %v take %v", n, answer, left, pace.Summary(10, n)+delivery)
		}
		if n < answer && pace.Summary(10, n+1)+delivery < left {
			rt.Fatalf("%d tokens of %d in %v, but one more fits", n, answer, left)
		}
		if m.CutAt(now).After(now) && n != answer {
			rt.Fatalf("before the cut, %d tokens of %d", n, answer)
		}
	})
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
