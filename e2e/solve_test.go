package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/train/task"
)

// exact serves a model so that a thought depends on the prompt alone, not on the batches that it was decoded in.
func exact(model string) []string {
	return []string{"-model", model, "-kv-type", "f32", "-flash-attention", "off"}
}

// asked is a body for a thought that can be had again; n makes it another one.
func asked(text string, n int) map[string]any {
	return map[string]any{"problem": fmt.Sprintf("%d. %s", n, text), "temperature": 0, "answer_tokens": 12, "thinking": true}
}

func TestSolveBudgets(t *testing.T) {
	s := start(t, "", exact(talker)...)
	for _, n := range []int{0, 1, 16, 256} {
		reply := s.solve(fmt.Sprintf("budget=%d", n), asked("What is 1 + 2?", 7))
		if reply.Stop.Cause != budget.CauseTokens || reply.Usage.ThinkingTokens != n || reply.Answer == nil || *reply.Answer == "" {
			t.Errorf("budget %d: %+v", n, reply)
		}
		if (reply.Thinking == "") != (n == 0) || reply.Usage.SummaryTokens == 0 || reply.Usage.PromptTokens == 0 {
			t.Errorf("budget %d: thinking %q, usage %+v", n, reply.Thinking, reply.Usage)
		}
	}
	// A longer budget only goes on with it.
	short, long := s.solve("budget=64", asked("Count.", 3)), s.solve("budget=200", asked("Count.", 3))
	if !strings.HasPrefix(long.Thinking, short.Thinking) {
		t.Errorf("64 tokens: %q\n200 tokens: %q", short.Thinking, long.Thinking)
	}
	if long.Usage.CachedTokens == 0 {
		t.Errorf("the second request prefilled the whole prompt again: %+v", long.Usage)
	}
	reply := s.solve("budget=200&every=50", asked("Count.", 3))
	if len(reply.Checkpoints) != 3 || reply.Thinking != long.Thinking || reply.Summary != long.Summary {
		t.Errorf("checkpoints %+v changed the thought\nfrom %q, %q\nto   %q, %q", reply.Checkpoints, long.Thinking, long.Summary, reply.Thinking, reply.Summary)
	}
	// Long enough for any machine to think a little; that it is kept is measured elsewhere, on a clock that does not stall.
	reply = s.solve("budget=5s", asked("What is 1 + 2?", 7))
	if reply.Stop.Cause != budget.CauseDeadline || reply.Answer == nil || reply.Usage.ThinkingTokens == 0 {
		t.Errorf("deadline: %+v", reply)
	}
	reply = s.solve("budget=40&votes=5", asked("Vote.", 5))
	if reply.Answer == nil || reply.Confidence <= 0 || reply.Confidence > 1 {
		t.Errorf("votes: %+v", reply)
	}
}

// A thought of 4,000 tokens, ten thoughts at once: exact, each its own, and the same as alone.
func TestSolveLongAndMany(t *testing.T) {
	s := start(t, "", exact(talker)...)
	if reply := s.solve("budget=4000", asked("Think long.", 0)); reply.Usage.ThinkingTokens != 4000 || reply.Answer == nil {
		t.Errorf("%+v after %d tokens", reply.Stop, reply.Usage.ThinkingTokens)
	}
	const many = 10
	var replies [many]anytime.Reply
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			r := s.do("POST", "/solve?budget=200&every=80", asked("Together.", i))
			if err := json.Unmarshal(r.body, &replies[i]); err != nil || r.status != http.StatusOK {
				t.Errorf("status %d: %s", r.status, r.body)
			}
		})
	}
	wg.Wait()
	thoughts := map[string]bool{}
	for i, r := range replies {
		thoughts[r.Thinking] = true
		if alone := s.solve("budget=200", asked("Together.", i)); r.Thinking != alone.Thinking || r.Usage.ThinkingTokens != 200 || len(r.Checkpoints) != 2 {
			t.Errorf("thought %d: %d tokens, %d checkpoints\ntogether %q\nalone    %q", i, r.Usage.ThinkingTokens, len(r.Checkpoints), r.Thinking, alone.Thinking)
		}
	}
	if len(thoughts) != many {
		t.Errorf("%d different thoughts of %d", len(thoughts), many)
	}
}

func TestSolveNaturalEnd(t *testing.T) {
	s := start(t, "", "-model", thinker)
	natural := 0
	for seed := range 5 {
		body := asked("What is 1 + 2?", 0)
		body["temperature"], body["seed"] = 1, seed
		reply := s.solve("budget=2000", body)
		if reply.Stop.Cause == budget.CauseNatural && !reply.Stop.Forced {
			natural++
		}
		if strings.Contains(reply.Thinking+reply.Summary, "</think>") || reply.Answer == nil {
			t.Errorf("seed %d: %+v", seed, reply)
		}
	}
	if natural < 4 {
		t.Errorf("%d of 5 thoughts ended by themselves", natural)
	}
}

func TestSolveStream(t *testing.T) {
	s := start(t, "", exact(talker)...)
	events := s.events(context.Background(), "POST", "/solve?budget=100&checkpoints=30,60", asked("Stream.", 1), nil)
	for i, e := range events {
		if e.id != i+1 {
			t.Fatalf("event %d has id %d", i+1, e.id)
		}
	}
	var reply anytime.Reply
	last := events[len(events)-1]
	if err := json.Unmarshal([]byte(last.data), &reply); err != nil || last.kind != "done" || events[0].kind != "run" {
		t.Fatalf("first %+v, last %+v: %v", events[0], last, err)
	}
	whole := s.solve("budget=100", asked("Stream.", 1))
	if got := text(t, events, "thinking"); got != whole.Thinking {
		t.Errorf("streamed thinking %q, want %q", got, whole.Thinking)
	}
	if got := text(t, events, "answer"); got != whole.Summary {
		t.Errorf("streamed answer %q, want %q", got, whole.Summary)
	}
	// From any event on, a reader gets exactly the rest.
	for after := range events {
		rest := s.events(context.Background(), "GET", "/solve/"+reply.ID+"/events", nil, nil, "Last-Event-ID", fmt.Sprint(after))
		if len(rest) != len(events)-after || rest[0] != events[after] && rest[0].kind != "done" {
			t.Errorf("after %d: %d events", after, len(rest))
		}
	}
}

func TestSolveInterruptExtendDelete(t *testing.T) {
	s := start(t, "", exact(talker)...)
	done := make(chan []event, 1)
	id := make(chan string, 1)
	go func() {
		done <- s.events(context.Background(), "POST", "/solve?budget=max", asked("Think long.", 2), func(e event) bool {
			if e.kind == "run" {
				var run anytime.RunData
				if json.Unmarshal([]byte(e.data), &run) == nil {
					id <- run.ID
				}
			}
			return false
		})
	}()
	run := <-id
	s.until("thinking", func() bool {
		var status struct {
			Thinking int `json:"thinking_tokens"`
		}
		s.into(s.do("GET", "/solve/"+run, nil), &status)
		return status.Thinking >= 50
	})
	var peek anytime.Checkpoint
	s.into(s.do("POST", "/solve/"+run+"/interrupt?continue=true", nil), &peek)
	if peek.Answer == "" || peek.Tokens < 50 {
		t.Errorf("peek %+v", peek)
	}
	var reply anytime.Reply
	s.into(s.do("POST", "/solve/"+run+"/interrupt?thinking=true", nil), &reply)
	if reply.Stop.Cause != budget.CauseInterrupt || reply.Answer == nil || reply.Usage.ThinkingTokens <= peek.Tokens {
		t.Errorf("interrupted: %+v", reply)
	}
	events := <-done
	if events[len(events)-1].kind != "done" || text(t, events, "thinking") != reply.Thinking {
		t.Errorf("the stream ended with %+v", events[len(events)-1])
	}
	var more anytime.Reply
	s.into(s.do("POST", "/solve/"+run+"/extend?budget=%2B100&thinking=true", nil), &more)
	if more.Usage.ThinkingTokens != reply.Usage.ThinkingTokens+100 || !strings.HasPrefix(more.Thinking, reply.Thinking) {
		t.Errorf("extended from %d to %d tokens", reply.Usage.ThinkingTokens, more.Usage.ThinkingTokens)
	}
	if n := len(more.Checkpoints); n == 0 || more.Checkpoints[n-1].Answer != *reply.Answer {
		t.Errorf("the earlier answer is not among %+v", more.Checkpoints)
	}
	if r := s.do("DELETE", "/solve/"+run, nil); r.status != http.StatusNoContent {
		t.Errorf("delete: %d %s", r.status, r.body)
	}
	if r := s.do("GET", "/solve/"+run, nil); r.status != http.StatusNotFound {
		t.Errorf("deleted run: %d %s", r.status, r.body)
	}
}

// A client that leaves frees its sequence; one that asked for it finds the answer later.
func TestSolveClientLeaves(t *testing.T) {
	s := start(t, "", exact(talker)...)
	for policy, want := range map[string]string{"cancel": "failed", "answer": "finished"} {
		ctx, leave := context.WithCancel(context.Background())
		var run anytime.RunData
		s.events(ctx, "POST", "/solve?budget=max&on_disconnect="+policy, asked("Leave.", 2), func(e event) bool {
			if e.kind == "run" {
				_ = json.Unmarshal([]byte(e.data), &run)
			}
			return e.kind == "thinking"
		})
		leave()
		s.until("ended", func() bool {
			var status struct {
				State string `json:"state"`
			}
			s.into(s.do("GET", "/solve/"+run.ID, nil), &status)
			if status.State != "running" && status.State != want {
				t.Fatalf("%s: state %q, want %q", policy, status.State, want)
			}
			return status.State == want
		})
	}
	s.until("idle", func() bool {
		return strings.Contains(string(s.do("GET", "/metrics", nil).body), "anytime_runs_running 0")
	})
}

// The engine process is killed twice in the middle of runs, which all answer as if nothing had been; ten times over in make test-all.
func TestEngineKilled(t *testing.T) {
	s := start(t, "", exact(talker)...)
	const runs = 8
	want := make([]anytime.Reply, runs)
	for i := range want {
		want[i] = s.solve("budget=300&checkpoints=100,200", asked("Survive.", i))
	}
	rounds := 1
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		rounds = 10
	}
	for range rounds {
		surviveKills(t, s, want)
	}
}

func surviveKills(t *testing.T, s *server, want []anytime.Reply) {
	t.Helper()
	got := make([]anytime.Reply, len(want))
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			r := s.do("POST", "/solve?budget=300&checkpoints=100,200", asked("Survive.", i))
			if err := json.Unmarshal(r.body, &got[i]); err != nil || r.status != http.StatusOK {
				t.Errorf("run %d: status %d: %s", i, r.status, r.body)
			}
		})
	}
	for range 2 {
		s.until("thinking", func() bool {
			return !strings.Contains(string(s.do("GET", "/metrics", nil).body), "anytime_runs_running 0")
		})
		s.killEngine()
		s.until("up again", func() bool { return len(s.children()) > 0 && s.do("GET", "/readyz", nil).status == http.StatusOK })
	}
	wg.Wait()
	for i := range got {
		if got[i].Thinking != want[i].Thinking || got[i].Usage.ThinkingTokens != 300 || got[i].Summary != want[i].Summary {
			t.Errorf("run %d: %d tokens %q, %q\nwant %q, %q", i, got[i].Usage.ThinkingTokens, got[i].Thinking, got[i].Summary, want[i].Thinking, want[i].Summary)
		}
	}
}

// SIGTERM: every run in flight is answered and delivered, and the server exits with 0.
func TestDrain(t *testing.T) {
	s := start(t, "", exact(talker)...)
	replies := make(chan response, 4)
	for i := range cap(replies) {
		go func() { replies <- s.do("POST", "/solve?budget=max", asked("Drain.", i)) }()
	}
	s.until("thinking", func() bool {
		return strings.Contains(string(s.do("GET", "/metrics", nil).body), "anytime_runs_running 4")
	})
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range cap(replies) {
		var reply anytime.Reply
		s.into(<-replies, &reply)
		if reply.Stop.Cause != budget.CauseDrain || reply.Answer == nil {
			t.Errorf("drained: %+v", reply.Stop)
		}
	}
	select {
	case err := <-s.exit:
		if err != nil {
			t.Errorf("exit: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the server did not exit")
	}
}

// kill -9 of the server: the next one takes up the run, and a reader who resumes gets the whole thought once.
func TestServerKilled(t *testing.T) {
	data := t.TempDir()
	first := start(t, data, exact(talker)...)
	var run anytime.RunData
	seen := first.events(context.Background(), "POST", "/solve?budget=1500&on_disconnect=continue", asked("Survive.", 4), func(e event) bool {
		if e.kind == "run" {
			_ = json.Unmarshal([]byte(e.data), &run)
		}
		return e.id >= 5
	})
	first.kill()
	second := start(t, data, exact(talker)...)
	rest := second.events(context.Background(), "GET", "/solve/"+run.ID+"/events", nil, nil, "Last-Event-ID", fmt.Sprint(seen[len(seen)-1].id))
	all := append(seen, rest...)
	for i, e := range all {
		if e.id != i+1 {
			t.Fatalf("event %d has id %d", i+1, e.id)
		}
	}
	var reply anytime.Reply
	second.into(second.do("GET", "/solve/"+run.ID+"?thinking=true", nil), &reply)
	if got := text(t, all, "thinking"); got != reply.Thinking || reply.Usage.ThinkingTokens != 1500 || reply.Answer == nil {
		t.Errorf("thinking of %d tokens; streamed %d bytes, kept %d", reply.Usage.ThinkingTokens, len(got), len(reply.Thinking))
	}
	fresh := second.solve("budget=1500", asked("Survive.", 4))
	if fresh.Thinking != reply.Thinking {
		t.Errorf("the thought that was taken up differs from one that was never cut off")
	}
}

func TestBadInput(t *testing.T) {
	s := start(t, "", exact(talker)...)
	tests := []struct {
		name, method, path string
		body               any
		status             int
		says               string
	}{
		{"budget", "POST", "/solve?budget=fast", problem("x"), 400, "thinking tokens (512)"},
		{"negative budget", "POST", "/solve?budget=-5", problem("x"), 400, "budget"},
		{"unknown field", "POST", "/solve", map[string]any{"problem": "x", "budgte": 5}, 400, "budgte"},
		{"unknown query", "POST", "/solve?budgte=5", problem("x"), 400, "budgte"},
		{"no problem", "POST", "/solve", map[string]any{}, 400, "problem"},
		{"empty problem", "POST", "/solve", problem(""), 400, "problem"},
		{"no JSON", "POST", "/solve", "{", 400, "JSON"},
		{"NUL", "POST", "/solve", problem("a\x00b"), 400, "NUL"},
		{"invalid UTF-8", "POST", "/solve", "{\"problem\":\"a\xffb\"}", 400, "UTF-8"},
		{"too long", "POST", "/solve", problem(strings.Repeat("a b c ", 20000)), 400, "context"},
		{"votes", "POST", "/solve?votes=99", problem("x"), 400, "votes"},
		{"temperature", "POST", "/solve", map[string]any{"problem": "x", "temperature": -1}, 400, "temperature"},
		{"grammar", "POST", "/solve", map[string]any{"problem": "x", "grammar": "root ::= ("}, 400, "grammar"},
		{"grammar without root", "POST", "/solve", map[string]any{"problem": "x", "grammar": "x ::= \"a\""}, 400, "root"},
		{"unknown model", "POST", "/solve", map[string]any{"problem": "x", "model": "gpt-99"}, 404, "gpt-99"},
		{"unknown adapter", "POST", "/solve", map[string]any{"problem": "x", "model": "talker:none"}, 404, "none"},
		{"checkpoints", "POST", "/solve?checkpoints=64,32", problem("x"), 400, "checkpoints"},
		{"early stop", "POST", "/solve?early_stop=soon", problem("x"), 400, "early_stop"},
		{"no run", "GET", "/solve/run_none", nil, 404, "run"},
		{"interrupt of no run", "POST", "/solve/run_none/interrupt", nil, 404, "run"},
		{"no path", "GET", "/nowhere", nil, 404, "path"},
		{"no method", "PUT", "/solve", nil, 405, "method"},
		{"chat without messages", "POST", "/v1/chat/completions", map[string]any{"model": "default"}, 400, "messages"},
		{"chat budgets that disagree", "POST", "/v1/chat/completions", map[string]any{"messages": []any{map[string]any{"role": "user", "content": "x"}},
			"thinking_budget": 5, "reasoning_effort": "high"}, 400, "thinking_budget"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := s.do(test.method, test.path, test.body)
			var e struct {
				Error struct {
					Message string `json:"message"`
				} `json:"error"`
			}
			if err := json.Unmarshal(r.body, &e); err != nil {
				t.Fatalf("status %d: %s", r.status, r.body)
			}
			if r.status != test.status || !strings.Contains(e.Error.Message, test.says) {
				t.Errorf("status %d: %q; want %d naming %q", r.status, e.Error.Message, test.status, test.says)
			}
		})
	}
	if reply := s.solve("budget=5", asked("Still here?", 1)); reply.Answer == nil {
		t.Errorf("afterwards: %+v", reply)
	}
	if restarts := strings.Contains(s.said(), "replaced"); restarts {
		t.Error("bad input brought the engine down")
	}
}

// A model of others thinks and answers at each budget.
func TestModelOfOthers(t *testing.T) {
	model := os.Getenv("ANYTIME_TEST_MODEL")
	if model == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("ANYTIME_TEST_MODEL is not set: run `make test`, which fetches the test model")
		}
		t.Skip("NOT TESTED: the test model is not here; `make test` fetches it where PyPI is reached")
	}
	s := start(t, "", "-model", model)
	body := map[string]any{"problem": "What is 12 + 30?", "seed": 1, "thinking": true}
	for _, query := range []string{"budget=0", "budget=16", "budget=64", "budget=64,2m", "budget=64&votes=3"} {
		reply := s.solve(query, body)
		if reply.Answer == nil || *reply.Answer == "" || strings.Contains(reply.Summary, "think>") {
			t.Errorf("%s: %+v", query, reply)
			continue
		}
		t.Logf("%s: answer %.60q after %d tokens (%s), confidence %.2f, %.0f ms", query, *reply.Answer, reply.Usage.ThinkingTokens,
			reply.Stop.Cause, reply.Confidence, reply.Timings.DoneMS)
	}
}

// The project's own reasoner finds more answers the longer it thinks, and says to anything that is no puzzle what it is.
func TestReasoner(t *testing.T) {
	model, err := filepath.Abs("../models/reasoner/reasoner.gguf")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, "", "-model", model)
	puzzles, err := task.DefaultCountdown.Problems(task.HeldOut, 7, 30)
	if err != nil {
		t.Fatal(err)
	}
	right := func(tokens int) (n int) {
		for _, p := range puzzles {
			reply := s.solve(fmt.Sprintf("budget=%d", tokens), map[string]any{"problem": p.Text, "seed": 1})
			if reply.Answer != nil && p.Verify(*reply.Answer) {
				n++
			}
		}
		return n
	}
	brief, long := right(16), right(512) // of 500 it had 16 % and 86 % right
	t.Logf("of %d puzzles %d right after 16 tokens of thinking, %d after 512", len(puzzles), brief, long)
	if long < 18 || long <= brief {
		t.Errorf("of %d puzzles %d right after 16 tokens of thinking, %d after 512", len(puzzles), brief, long)
	}
	if reply := s.solve("budget=64", problem("Who wrote Faust?")); reply.Answer == nil || !strings.Contains(*reply.Answer, "general reasoner") {
		t.Errorf("to a general question: %+v", reply)
	}
}
