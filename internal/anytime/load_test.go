package anytime_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/elastic"
	"anytime/internal/store"
)

// steady is a world of nothing but its engine, without noise: 10 ms a step alone, 4 ms more for each further sequence.
func steady() world {
	w := flood(7, 1, 1, false, func(int) string { return "" })
	w.calm = true
	return w
}

// many starts so many runs and returns their ids.
func (s *simulation) many(t *testing.T, n int, req anytime.Request) (ids []string) {
	t.Helper()
	for range n {
		id, err := s.Start(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func (s *simulation) replies(t *testing.T, ids []string) (list []anytime.Reply) {
	t.Helper()
	for _, id := range ids {
		r, err := s.Wait(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

func request(s *simulation, text string, change ...func(*anytime.Request)) anytime.Request {
	b, err := budget.Parse(text)
	if err != nil {
		panic(err)
	}
	req := s.ask(arrival{prompt: 40}, b)
	for _, c := range change {
		c(&req)
	}
	return req
}

// A deadline that cannot be met is refused with the shortest that can, which can indeed; the busier the engine the longer that is.
func TestDeadlineThatCannotBeMet(t *testing.T) {
	simulate(t, steady(), policy{}, func(s *simulation) {
		shortest := func() time.Duration {
			_, err := s.Start(context.Background(), request(s, "100ms"))
			var refused *anytime.DeadlineError
			if !errors.As(err, &refused) {
				t.Fatalf("error %v", err)
			}
			if refused.Deadline != 100*time.Millisecond || refused.Shortest < 150*time.Millisecond || refused.Shortest > 5*time.Second || refused.Retry < time.Second {
				t.Errorf("%+v", refused)
			}
			return refused.Shortest
		}
		idle := shortest()
		if n := s.Live(); n != 0 {
			t.Errorf("%d runs after a refusal", n)
		}
		try := func(d time.Duration) {
			ids := s.many(t, 1, request(s, d.String()))
			if r := s.replies(t, ids)[0]; r.Answer == nil || r.Stop.Cause != budget.CauseDeadline || r.Timings.DeadlineLeftMS < 0 {
				t.Errorf("a deadline of %v: %+v, answer %v, %v ms left", d, r.Stop, r.Answer, r.Timings.DeadlineLeftMS)
			}
		}
		try(idle)
		busy := s.many(t, 16, request(s, "900"))
		time.Sleep(2 * time.Second)
		loaded := shortest()
		if loaded <= idle {
			t.Errorf("the shortest deadline is %v idle and %v under load", idle, loaded)
		}
		try(loaded)
		// Deadlines of many for the same moment.
		crowd := s.many(t, 6, request(s, (2*loaded).String()))
		for _, r := range s.replies(t, crowd) {
			if r.Answer == nil || r.Timings.DeadlineLeftMS < 0 {
				t.Errorf("%+v, answer %v, %v ms left", r.Stop, r.Answer, r.Timings.DeadlineLeftMS)
			}
		}
		for _, r := range s.replies(t, busy) {
			if r.Usage.ThinkingTokens != 900 {
				t.Errorf("%d tokens of 900", r.Usage.ThinkingTokens)
			}
		}
	})
}

// When many come thoughts are shortened, with the cause and the limit that was theirs; what is exact stays so; priority counts.
func TestOverloadShortensThoughts(t *testing.T) {
	for _, test := range []struct {
		name   string
		budget string
		change func(*anytime.Request)
		policy policy
		want   func(anytime.Reply) bool
	}{
		{"max", "max", nil, policy{elastic: simElastic}, func(r anytime.Reply) bool {
			return r.Stop.Cause == budget.CauseOverload && r.Stop.Forced && r.Stop.Limit == simCap && r.Usage.ThinkingTokens < simCap/2 && r.Usage.ThinkingTokens >= 16
		}},
		{"a number is exact", "200", nil, policy{elastic: simElastic}, func(r anytime.Reply) bool {
			return r.Stop.Cause == budget.CauseTokens && r.Usage.ThinkingTokens == 200
		}},
		{"an effort is not", "200", func(r *anytime.Request) { r.Template.Effort = "medium" }, policy{elastic: simElastic}, func(r anytime.Reply) bool {
			return r.Stop.Cause == budget.CauseOverload && r.Usage.ThinkingTokens < 150 && r.Stop.Limit == 200
		}},
		{"nor is a number where all are elastic", "200", nil, policy{elastic: simElastic, all: true}, func(r anytime.Reply) bool {
			return r.Stop.Cause == budget.CauseOverload && r.Usage.ThinkingTokens < 150 && r.Stop.Limit == 200
		}},
		{"off", "300", nil, policy{all: true}, func(r anytime.Reply) bool { return r.Usage.ThinkingTokens == 300 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			simulate(t, steady(), test.policy, func(s *simulation) {
				req := request(s, test.budget)
				if test.change != nil {
					test.change(&req)
				}
				for _, r := range s.replies(t, s.many(t, 12, req)) {
					if !test.want(r) || r.Answer == nil {
						t.Fatalf("%+v after %d tokens, answer %v", r.Stop, r.Usage.ThinkingTokens, r.Answer)
					}
				}
			})
		})
	}
	t.Run("by priority", func(t *testing.T) {
		simulate(t, steady(), policy{elastic: simElastic}, func(s *simulation) {
			low := s.many(t, 6, request(s, "max", func(r *anytime.Request) { r.Priority = 2 }))
			high := s.many(t, 6, request(s, "max", func(r *anytime.Request) { r.Priority = 8 }))
			least, most := simCap, 0
			for _, r := range s.replies(t, high) {
				least = min(least, r.Usage.ThinkingTokens)
			}
			for _, r := range s.replies(t, low) {
				most = max(most, r.Usage.ThinkingTokens)
			}
			if least < 2*most {
				t.Errorf("priority 8 thought for %d tokens at least, priority 2 for %d at most", least, most)
			}
		})
	})
}

// Budgets of thoughts under way shrink when others come, and grow back when these have gone.
func TestBudgetsGrowBack(t *testing.T) {
	simulate(t, steady(), policy{elastic: simElastic}, func(s *simulation) {
		long := s.many(t, 1, request(s, "max"))
		time.Sleep(500 * time.Millisecond)
		s.replies(t, s.many(t, 8, request(s, "20"))) // a short rush
		if r := s.replies(t, long)[0]; r.Usage.ThinkingTokens != simCap || r.Stop.Cause != budget.CauseTokens {
			t.Errorf("after a short rush %+v at %d tokens", r.Stop, r.Usage.ThinkingTokens)
		}
		long = s.many(t, 1, request(s, "max"))
		time.Sleep(8 * time.Second)
		rush := s.many(t, 16, request(s, "500"))
		began := time.Now()
		r := s.replies(t, long)[0]
		if took := time.Since(began); r.Stop.Cause != budget.CauseOverload || took > 10*time.Second {
			t.Errorf("in a long rush %+v at %d tokens, %v after it began", r.Stop, r.Usage.ThinkingTokens, took)
		}
		s.replies(t, rush)
	})
}

// Where not even the floors fit, newcomers are refused, and told when to come again; runs of before a restart never are.
func TestRefusedBelowTheFloor(t *testing.T) {
	p := policy{elastic: elastic.Config{Slowdown: 1, Floor: 500}}
	simulate(t, steady(), p, func(s *simulation) {
		var ids []string
		var err error
		for range 40 {
			var id string
			if id, err = s.Start(context.Background(), request(s, "max")); err != nil {
				break
			}
			ids = append(ids, id)
		}
		var refused *anytime.OverloadError
		if !errors.As(err, &refused) || !errors.Is(err, anytime.ErrBusy) || refused.Retry < time.Second || refused.Retry > time.Minute {
			t.Fatalf("after %d runs: %v", len(ids), err)
		}
		if len(ids) < 3 {
			t.Errorf("refused after %d runs", len(ids))
		}
		for _, r := range s.replies(t, ids) {
			if r.Usage.ThinkingTokens < 500 {
				t.Errorf("%d tokens", r.Usage.ThinkingTokens)
			}
		}
		s.replies(t, s.many(t, 1, request(s, "30"))) // later there is room
	})
}

// A run that was admitted before a restart is taken up, whatever its deadline.
func TestRecoverIsNotRefused(t *testing.T) {
	simulate(t, steady(), policy{}, func(s *simulation) {
		id := s.many(t, 1, request(s, "3s"))[0]
		time.Sleep(2950 * time.Millisecond)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		second := anytime.New(s.cfg)
		defer second.Close()
		if err := second.Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		r, err := second.Wait(context.Background(), id)
		if err != nil || r.Stop.Cause != budget.CauseDeadline {
			t.Errorf("%+v, %v", r.Stop, err)
		}
		kept, err := s.cfg.Store.Get(context.Background(), id)
		if err != nil || kept.State != store.Finished {
			t.Errorf("%v, %v", kept.State, err)
		}
	})
}

// Votes and checkpoints of many runs with deadlines at the same time: all are over in time, nearly all with a whole answer.
func TestDeadlinesTogether(t *testing.T) {
	simulate(t, steady(), policy{elastic: simElastic}, func(s *simulation) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var late []float64
		whole, admitted := 0, 0
		for i := range 40 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 150 * time.Millisecond)
				id, err := s.Start(context.Background(), request(s, "4s", func(r *anytime.Request) {
					r.Votes = 1 + i%3
					if i%4 == 0 {
						r.Checkpoints.Every = 40
					}
				}))
				if err != nil {
					return
				}
				r, err := s.Wait(context.Background(), id)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				admitted++
				late = append(late, -r.Timings.DeadlineLeftMS)
				if r.Stop.Answer == "stop" {
					whole++
				}
			})
		}
		wg.Wait()
		if admitted < 20 || slices.Max(late) > 0 || whole < admitted*9/10 {
			t.Errorf("%d admitted, %d with a whole answer, the latest by %v ms", admitted, whole, slices.Max(late))
		}
	})
}

// An engine that was slow when it was measured last is not thought slow for ever, though it refuses all and so learns from nobody.
func TestRefusalsDoNotLast(t *testing.T) {
	simulate(t, steady(), policy{}, func(s *simulation) {
		slow := s.engine.cost
		slow.step, slow.sequence, slow.prefill = 20*slow.step, 20*slow.sequence, 20*slow.prefill
		quick := s.engine.setCost(slow)
		s.replies(t, s.many(t, 2, request(s, "100")))
		s.engine.setCost(quick)
		for tries := 1; ; tries++ {
			id, err := s.Start(context.Background(), request(s, "1s"))
			if err == nil {
				if r := s.replies(t, []string{id})[0]; r.Answer == nil || r.Timings.DeadlineLeftMS < 0 {
					t.Errorf("admitted at try %d: %+v, answer %v, %v ms left", tries, r.Stop, r.Answer, r.Timings.DeadlineLeftMS)
				}
				if tries == 1 {
					t.Error("was not refused at first, so that this tests nothing")
				}
				return
			}
			if tries == 60 {
				t.Fatalf("still refused: %v", err)
			}
			time.Sleep(time.Second)
		}
	})
}
