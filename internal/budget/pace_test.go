package budget_test

import (
	"encoding/json"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"anytime/internal/budget"
)

const ms = time.Millisecond

// warm returns a pace that has seen a steady engine of 10 ms a token, 12 ms in a summary, 1 ms in prefill, and 30 ms from fork to
// first token behind a suffix of 10.
func warm() *budget.Pace {
	p := budget.NewPace(budget.Snapshot{})
	for range 40 {
		p.ObservePrefill(100, 100*ms)
		p.ObserveThinking(16, 160*ms)
		p.ObserveSummary(16, 192*ms)
		p.ObserveOverhead(10, 30*ms)
	}
	return p
}

func between(t *testing.T, what string, got, low, high time.Duration) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %v, want %v to %v", what, got, low, high)
	}
}

func TestPaceSteady(t *testing.T) {
	p := warm()
	// The margin is 25 %.
	between(t, "prefill", p.Prefill(100), 120*ms, 130*ms)
	between(t, "thinking", p.Thinking(100), 1230*ms, 1300*ms)
	between(t, "summary", p.Summary(10, 100), 1525*ms, 1600*ms)
	between(t, "summary without tokens", p.Summary(10, 0), 37*ms, 40*ms)
	between(t, "twice the suffix", p.Summary(20, 0)-p.Summary(10, 0), 10*ms, 12*ms)
	s := p.Snapshot()
	between(t, "overhead but for the suffix", s.Overhead.Mean, 19*ms, 22*ms)
	if s.Thinking.Observations != 40 {
		t.Errorf("%d observations of thinking, want 40", s.Thinking.Observations)
	}
}

func TestPaceCold(t *testing.T) {
	p := budget.NewPace(budget.Snapshot{})
	between(t, "a summary on an unknown engine", p.Summary(12, 128), 10*time.Second, 20*time.Second)

	p.ObserveThinking(16, 160*ms)
	between(t, "a first window is believed with doubt", p.Thinking(1), 20*ms, 40*ms)
	between(t, "a summary's token by thinking's", p.Summary(0, 128)-p.Summary(0, 0), 128*2*20*ms, 128*2*40*ms)

	p = budget.NewPace(budget.Snapshot{})
	p.ObserveSummary(16, 160*ms)
	between(t, "thinking by summary's token", p.Thinking(1), 10*ms, 40*ms)

	// Thinking turns out to be cheaper than was guessed: that says nothing about summaries.
	summary := p.Summary(0, 100)
	for range 8 {
		p.ObserveThinking(16, 32*ms)
	}
	between(t, "a summary", p.Summary(0, 100), summary*4/10, summary)
	between(t, "at least its cost", p.Summary(0, 100)-p.Summary(0, 0), 100*10*ms, 100*30*ms)

	// A snapshot is a prior, and what it lacks or has wrong is cautious.
	s := warm().Snapshot()
	s.Overhead = budget.Estimate{Mean: -5}
	text, err := json.Marshal(s)
	if err != nil || json.Unmarshal(text, &s) != nil {
		t.Fatal(err)
	}
	p = budget.NewPace(s)
	before := warm()
	between(t, "thinking after a restart", p.Thinking(1000)-before.Thinking(1000), -ms, ms)
	between(t, "answers after a restart", p.Summary(0, 1000)-p.Summary(0, 0)-before.Summary(0, 1000)+before.Summary(0, 0), -ms, ms)
	between(t, "unknown overhead", p.Summary(0, 0), 400*ms, 600*ms)
}

func TestPaceIgnoresNonsense(t *testing.T) {
	p := warm()
	before := p.Snapshot()
	for _, observe := range []func(int, time.Duration){p.ObservePrefill, p.ObserveThinking, p.ObserveSummary} {
		observe(0, time.Hour)
		observe(-5, time.Hour)
		observe(1000, -time.Hour)
	}
	p.ObserveOverhead(10, -time.Hour)
	if after := p.Snapshot(); after != before {
		t.Errorf("%+v became %+v", before, after)
	}
}

func TestPaceOfAnInstantEngine(t *testing.T) {
	p := budget.NewPace(budget.Snapshot{})
	for range 100 {
		p.ObservePrefill(100, 0)
		p.ObserveThinking(16, 0)
		p.ObserveSummary(16, 0)
		p.ObserveOverhead(10, 0)
	}
	if p.Thinking(1) <= 0 {
		t.Error("a token costs nothing")
	}
	for range 8 {
		p.ObserveThinking(16, 160*ms)
	}
	between(t, "then 10 ms a token", p.Thinking(1), 10*ms, 100*ms)
}

func TestPaceSurvivesAnOutlier(t *testing.T) {
	p := warm()
	before := p.Thinking(1)
	p.ObserveThinking(8, time.Hour)
	between(t, "after an hour's stall", p.Thinking(1), before, 2*before)
	for range 12 {
		p.ObserveThinking(16, 160*ms)
	}
	between(t, "12 windows later", p.Thinking(1), 9*ms, before+before/10)
}

func TestPaceFollowsLoad(t *testing.T) {
	for _, c := range []struct {
		factor  int
		windows int
	}{{2, 1}, {4, 3}, {10, 5}} {
		p := warm()
		for range c.windows {
			p.ObserveThinking(16, time.Duration(c.factor)*160*ms)
		}
		if got, least := p.Thinking(1), time.Duration(c.factor)*10*ms; got < least {
			t.Errorf("%d-fold load: %v after %d windows, want at least %v", c.factor, got, c.windows, least)
		}
		// No summary was seen under load, but it is slower all the same.
		for range 10 {
			p.ObserveThinking(16, time.Duration(c.factor)*160*ms)
		}
		if got, least := p.Summary(10, 100), time.Duration(c.factor)*(20*ms+100*12*ms); got < least {
			t.Errorf("%d-fold load: a summary %v, want at least %v", c.factor, got, least)
		}
		// Summaries under load are counted once: what they cost is not multiplied again.
		for range 30 {
			p.ObserveThinking(16, time.Duration(c.factor)*160*ms)
			p.ObserveSummary(16, time.Duration(c.factor)*192*ms)
			p.ObserveOverhead(10, time.Duration(c.factor)*30*ms)
		}
		between(t, "a summary under steady load", p.Summary(10, 100), time.Duration(c.factor)*1200*ms, time.Duration(c.factor)*1700*ms)
		// And back.
		for range 30 {
			p.ObserveThinking(16, 160*ms)
			p.ObserveSummary(16, 192*ms)
			p.ObserveOverhead(10, 30*ms)
		}
		between(t, "a summary after the load", p.Summary(10, 100), 1450*ms, 1700*ms)
	}
}

func TestPaceIsMonotone(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := budget.NewPace(budget.Snapshot{})
		for range rapid.IntRange(0, 30).Draw(rt, "observations") {
			n := rapid.IntRange(-1, 2000).Draw(rt, "n")
			took := time.Duration(rapid.Int64Range(-1, int64(time.Hour)).Draw(rt, "took"))
			switch rapid.IntRange(0, 3).Draw(rt, "kind") {
			case 0:
				p.ObservePrefill(n, took)
			case 1:
				p.ObserveThinking(n, took)
			case 2:
				p.ObserveSummary(n, took)
			case 3:
				p.ObserveOverhead(n, took)
			}
		}
		a := rapid.IntRange(0, budget.MaxTokens).Draw(rt, "a")
		b := rapid.IntRange(a, budget.MaxTokens).Draw(rt, "b")
		for _, f := range []func(int) time.Duration{
			p.Prefill, p.Thinking,
			func(n int) time.Duration { return p.Summary(n, 5) },
			func(n int) time.Duration { return p.Summary(5, n) },
		} {
			if x, y := f(a), f(b); x < 0 || x > y {
				rt.Fatalf("%d: %v, %d: %v", a, x, b, y)
			}
		}
	})
}

func TestPaceConcurrently(t *testing.T) {
	p := warm()
	m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: time.Second}, time.Now(), 100, p, 10, 20)
	deadline := m.Deadline()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				p.ObservePrefill(100, 100*ms)
				p.ObserveThinking(16, 160*ms)
				p.ObserveSummary(16, 192*ms)
				p.ObserveOverhead(10, 30*ms)
				p.Prefill(5)
				m.CutAt(deadline)
				m.Reserve()
				p.Snapshot()
			}
		})
	}
	wg.Wait()
	between(t, "thinking", p.Thinking(100), 1230*ms, 1300*ms)
}

// An engine whose steps cost 4 ms and 2 ms for each sequence: what was seen of 1 and 4 sequences tells what 16 will cost.
func TestPaceKnowsWhatLoadWillBe(t *testing.T) {
	step := func(n int) time.Duration { return 4*ms + time.Duration(n)*2*ms }
	p := budget.NewPace(budget.Snapshot{})
	run := func(n, windows int) {
		p.SetLoad(float64(n), float64(n))
		for range windows {
			p.ObserveThinking(16, 16*step(n))
			p.ObserveSummary(16, 16*step(n))
			p.ObserveOverhead(0, 2*step(n))
			p.ObservePrefill(100, 100*ms)
		}
	}
	for range 8 {
		run(1, 20)
		run(4, 20)
	}
	p.SetLoad(16, 16)
	between(t, "a token among 16", p.Thinking(1), step(16), 2*step(16))
	between(t, "a summary among 16", p.Summary(0, 10), 12*step(16), 24*step(16))
	between(t, "prefill, which took no notice of others", p.Prefill(100), 100*ms, 160*ms)
	if s := p.Slowdown(16); s < 5 || s > 7 {
		t.Errorf("16 together are %v times as slow, want 6", s)
	}
	p.SetLoad(1, 1)
	between(t, "a token alone", p.Thinking(1), step(1), 2*step(1))
	between(t, "a token alone on average", p.Alone(), step(1)*9/10, step(1)*11/10)
}

// A prefill of few tokens takes hardly longer than a step; that says little about many.
func TestPaceOfPrefill(t *testing.T) {
	for _, tokens := range []int{16, 40, 200} {
		p := budget.NewPace(budget.Snapshot{})
		for range 20 { // 10 ms a step and 1 ms a token
			p.ObservePrefill(tokens, 10*ms+time.Duration(tokens)*ms)
			p.ObserveThinking(16, 160*ms)
		}
		between(t, "1000 tokens", p.Prefill(1000), 1000*ms, 1450*ms)
	}
	p := warm()
	if n := p.Fresh(400); n != 400 {
		t.Errorf("of 400 tokens %d are new where nothing is known", n)
	}
	for range 20 {
		p.ObserveCached(300, 400)
		p.ObserveCached(7, 0) // nonsense
	}
	if n := p.Fresh(400); n < 100 || n > 220 {
		t.Errorf("of 400 tokens %d are new where 100 always were", n)
	}
	for range 4 {
		p.ObserveCached(0, 400)
	}
	if n := p.Fresh(400); n < 380 {
		t.Errorf("of 400 tokens %d are new where all were of late", n)
	}
}

// Reserves are stretched while answers miss their deadlines, and slowly relaxed.
func TestPaceLearnsItsMargin(t *testing.T) {
	p := warm()
	m := budget.NewMeter(budget.Budget{Tokens: budget.Unlimited, Deadline: time.Minute}, time.Now(), 100, p, 10, 100)
	before := m.Reserve()
	for range 5 {
		p.ObserveReserve(false)
	}
	stretched := m.Reserve()
	between(t, "after five misses", stretched, before*19/10, before*22/10)
	for range 100 {
		p.ObserveReserve(true)
	}
	between(t, "after a hundred answers in time", m.Reserve(), before*16/10, stretched*19/20)
	for range 1000 {
		p.ObserveReserve(true)
	}
	between(t, "in the end", m.Reserve(), before, before)
}
