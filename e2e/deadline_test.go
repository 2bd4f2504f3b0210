package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/budget"
)

// A deadline that cannot be met is refused at the door, and the one that the refusal names can be met.
func TestDeadlineTooShort(t *testing.T) {
	s := start(t, "", "-model", talker)
	refused := s.do("POST", "/solve?budget=1ms", asked("Now!", 1))
	var e api.Error
	if err := json.Unmarshal(refused.body, &e); err != nil || refused.status != http.StatusTooManyRequests || refused.header.Get("Retry-After") == "" {
		t.Fatalf("status %d, Retry-After %q: %s", refused.status, refused.header.Get("Retry-After"), refused.body)
	}
	if e.Error.Code == nil || *e.Error.Code != "deadline_too_short" || e.Error.ShortestDeadlineMs == nil || *e.Error.ShortestDeadlineMs < 2 {
		t.Fatalf("error %s", refused.body)
	}
	// Twice as long, and not only once, for this machine may be busier by now.
	var reply anytime.Reply
	for range 4 {
		reply = s.solve(fmt.Sprintf("budget=%dms", 2**e.Error.ShortestDeadlineMs), asked("Now!", 1))
		if reply.Answer != nil && reply.Stop.Cause == budget.CauseDeadline {
			return
		}
	}
	t.Errorf("%+v, answer %v", reply.Stop, reply.Answer)
}

// A thought that fills the context is cut for its answer.
func TestContextOverflow(t *testing.T) {
	s := start(t, "", "-model", talker, "-ctx", "256")
	for _, query := range []string{"budget=max", "budget=5000", "budget=max&votes=3&every=64"} {
		reply := s.solve(query, asked("Think for ever.", 1))
		if reply.Stop.Cause != budget.CauseContext || !reply.Stop.Forced || reply.Answer == nil || *reply.Answer == "" {
			t.Errorf("%s: %+v, answer %v", query, reply.Stop, reply.Answer)
		}
		if n := reply.Usage.PromptTokens + reply.Usage.ThinkingTokens + reply.Usage.SummaryTokens; n > 256 || reply.Usage.ThinkingTokens < 64 {
			t.Errorf("%s: %+v", query, reply.Usage)
		}
	}
}

// More thoughts at once than the engine has places for, with a cache that they do not fit into: those that ask for as much as they may
// have are shortened, those that ask for a number get it, and all get their answers.
func TestOverload(t *testing.T) {
	s := start(t, "", "-model", talker, "-ctx", "1024", "-cache-tokens", "2048", "-sequences", "4")
	const many = 12
	var replies [many]anytime.Reply
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			query := "budget=max"
			if i%4 == 0 {
				query = "budget=150"
			}
			r := s.do("POST", "/solve?"+query, asked("Think as long as you like.", i))
			if err := json.Unmarshal(r.body, &replies[i]); err != nil || r.status != http.StatusOK {
				t.Errorf("status %d: %s", r.status, r.body)
			}
		})
		time.Sleep(50 * time.Millisecond)
	}
	wg.Wait()
	shortened := 0
	for i, r := range replies {
		switch {
		case r.Answer == nil:
			t.Errorf("run %d: %+v without an answer", i, r.Stop)
		case i%4 == 0 && (r.Stop.Cause != budget.CauseTokens || r.Usage.ThinkingTokens != 150):
			t.Errorf("run %d: %+v after %d tokens of 150", i, r.Stop, r.Usage.ThinkingTokens)
		case r.Stop.Cause == budget.CauseOverload:
			shortened++
			if r.Stop.Limit <= r.Usage.ThinkingTokens || r.Usage.ThinkingTokens < 32 {
				t.Errorf("run %d: %+v after %d tokens", i, r.Stop, r.Usage.ThinkingTokens)
			}
		}
	}
	if shortened == 0 {
		t.Error("no thought was shortened")
	}
}
