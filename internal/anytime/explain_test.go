package anytime_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode/decodetest"
	"anytime/internal/store"
)

func (b *bench) explain(id string) *anytime.Explanation {
	b.t.Helper()
	e, err := b.Explain(context.Background(), id)
	if err != nil {
		b.t.Fatalf("Explain: %v", err)
	}
	return e
}

func near(got, want float64) bool { return math.Abs(got-want) <= 0.01*math.Abs(want)+0.001 }

func TestExplain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{Prefill: time.Millisecond})
		req := ask("200")
		req.Checkpoints.At = []int{50, 100}
		req.Votes = 3
		id := b.start(req)
		time.Sleep(150 * step)
		e := b.explain(id) // of a thought under way
		if e.Cut != nil || len(e.Checkpoints) != 2 || len(e.Answers) != 0 || e.Limit != 200 || e.Pace.Tokens < 100 || !near(e.Pace.TokensPerSecond, 100) {
			t.Errorf("under way: %+v", e)
		}
		reply := b.wait(id)
		e = b.explain(id)
		if len(e.Prefills) != 1 || e.Prefills[0].Tokens == 0 || !near(e.Prefills[0].MS, float64(e.Prefills[0].Tokens)) {
			t.Errorf("prefills %+v", e.Prefills)
		}
		if !near(e.Pace.PerTokenMS, 10) || e.Pace.DeviationMS > 0.01 || e.OpenedMS != reply.Timings.OpenedMS || e.ReserveMS != 0 {
			t.Errorf("pace %+v, opened %v ms, reserve %v", e.Pace, e.OpenedMS, e.ReserveMS)
		}
		if e.Cut == nil || e.Cut.Cause != budget.CauseTokens || e.Cut.Tokens != 200 || e.Cut.AtMS != reply.Timings.CutMS || !strings.Contains(e.Cut.Why, "200") {
			t.Errorf("cut %+v", e.Cut)
		}
		for i, c := range e.Checkpoints {
			if c.Tokens != 50*(i+1) || c.AnswerTokens == 0 || c.ClosingTokens == 0 || c.MS < 20 || c.Slowed == nil || *c.Slowed != 0 {
				t.Errorf("checkpoint %d: %+v", i, c)
			}
		}
		if len(e.Checkpoints) != 2 || len(e.Answers) != 3 || e.Answers[2].Tokens != 200 || e.Forks != 5 || e.ClosedAgain != 0 || e.Setbacks != (anytime.Setbacks{}) {
			t.Errorf("%+v", e)
		}
		if _, err := b.Explain(context.Background(), "run_none"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("of no run: %v", err)
		}
	})
}

// Reserve and reason of a cut for the deadline, and of one that its client gave up.
func TestExplainDeadlineAndCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{})
		b.wait(b.start(ask("300"))) // so that the pace is known
		id := b.start(ask("2s"))
		b.wait(id)
		e := b.explain(id)
		if e.ReserveMS < 50 || e.ReserveMS > 1000 || e.Cut == nil || e.Cut.Cause != budget.CauseDeadline || e.Cut.AtMS > 2000 || e.Cut.AtMS < 1900-e.ReserveMS {
			t.Errorf("reserve %v, cut %+v", e.ReserveMS, e.Cut)
		}
		id = b.start(ask("max"))
		time.Sleep(50*step + step/2)
		b.Leave(id)
		if _, err := b.Wait(context.Background(), id); err == nil {
			t.Error("a cancelled run has a reply")
		}
		if e := b.explain(id); e.Pace.Tokens == 0 || e.Cut != nil || len(e.Answers) != 0 {
			t.Errorf("cancelled: %+v", e)
		}
	})
}

func TestExplainSetbacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := false
		b := newBench(t, decodetest.Options{
			OnToken: func(prefix string) error {
				if !broken && strings.Count(prefix, " step") == 40 {
					broken = true
					return errors.New("out of order")
				}
				return nil
			},
			// The answer is empty until the thinking is closed more firmly.
			Model: decodetest.Script(steps(everything), "<think>\n", "</think>", func(thought string) []string {
				if strings.Contains(thought, "I have thought enough") {
					return []string{" \\boxed{7}"}
				}
				return []string{"\n", "\n"}
			}),
		})
		id := b.start(ask("100"))
		b.wait(id)
		e := b.explain(id)
		if e.Setbacks.Reopened != 1 || len(e.Prefills) != 2 || e.Prefills[1].Tokens <= e.Prefills[0].Tokens {
			t.Errorf("%+v, prefills %+v", e.Setbacks, e.Prefills)
		}
		if e.ClosedAgain != 1 || len(e.Answers) != 2 || e.Forks != 2 {
			t.Errorf("closed again %d times, %d answers, %d forks", e.ClosedAgain, len(e.Answers), e.Forks)
		}
		id = b.start(ask("200"))
		time.Sleep(50 * step)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		second := anytime.New(b.cfg)
		defer second.Close()
		if err := second.Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Wait(context.Background(), id); err != nil {
			t.Fatal(err)
		}
		if e, err := second.Explain(context.Background(), id); err != nil || !e.Setbacks.Resumed {
			t.Errorf("%+v, %v", e, err)
		}
	})
}
