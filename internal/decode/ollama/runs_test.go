package ollama_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode/ollama"
	"anytime/internal/decode/prompt"
	"anytime/internal/store/memory"
)

type oneModel struct{ *anytime.Model }

func (m oneModel) Acquire(context.Context, string) (*anytime.Model, func(), error) {
	return m.Model, func() {}, nil
}

// Whole runs on a real Ollama that decodes one request at a time, killed in the midst of one of them: budgets are exact, checkpoints
// come on the way, votes, interrupts and extensions work.
func TestRealRuns(t *testing.T) {
	needReal(t)
	ollama.SetFirstToken(t, 2*time.Second)
	o := start(t)
	e := o.open(t, "tiny")
	renderer, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	kept := memory.New(memory.Options{})
	solver := anytime.New(anytime.Config{
		Models: oneModel{&anytime.Model{
			ID: "tiny", Engine: e, Renderer: renderer, Pace: budget.NewPace(budget.Snapshot{}), Length: &budget.Length{}, MaxThinking: 3000,
		}},
		Store: kept, Metrics: anytime.NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	t.Cleanup(func() {
		if err := solver.Close(); err != nil {
			t.Error(err)
		}
		if err := kept.Close(); err != nil {
			t.Error(err)
		}
	})
	request := func(budgetText string, change ...func(*anytime.Request)) anytime.Request {
		b, err := budget.Parse(budgetText)
		if err != nil {
			t.Fatal(err)
		}
		r := anytime.Request{
			Messages: []prompt.Message{{Role: "user", Content: "How many?"}}, Template: prompt.Options{Thinking: true}, Budget: b, AnswerTokens: 12,
		}
		for _, f := range change {
			f(&r)
		}
		return r
	}
	begin := func(r anytime.Request) string {
		t.Helper()
		r.Arrived = time.Now()
		id, err := solver.Start(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	wait := func(id string) anytime.Reply {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		r, err := solver.Wait(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if r.Answer == nil || strings.TrimSpace(*r.Answer) == "" {
			t.Errorf("run %s has no answer: %+v", id, r.Stop)
		}
		return r
	}

	for _, tokens := range []string{"0", "1", "77", "500"} {
		r := wait(begin(request(tokens)))
		if b, _ := budget.Parse(tokens); r.Usage.ThinkingTokens != b.Tokens || !r.Usage.Approximate {
			t.Errorf("budget %s: %d thinking tokens, stop %+v", tokens, r.Usage.ThinkingTokens, r.Stop)
		}
	}
	r := wait(begin(request("300", func(r *anytime.Request) { r.Checkpoints.At, r.Votes = []int{50, 150}, 3 })))
	if len(r.Checkpoints) != 2 || r.Checkpoints[0].Tokens != 50 || r.Usage.ThinkingTokens != 300 {
		t.Errorf("%d thinking tokens, checkpoints %+v", r.Usage.ThinkingTokens, r.Checkpoints)
	}

	id := begin(request("3000"))
	if _, err := solver.Peek(t.Context(), id); err != nil {
		t.Errorf("peek: %v", err)
	}
	if err := solver.Interrupt(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r = wait(id)
	if r.Stop.Cause != budget.CauseInterrupt || r.Usage.ThinkingTokens >= 3000 {
		t.Errorf("interrupted: %d thinking tokens, stop %+v", r.Usage.ThinkingTokens, r.Stop)
	}
	before := r.Usage.ThinkingTokens
	more, err := budget.Parse("100")
	if err != nil {
		t.Fatal(err)
	}
	if err := solver.Extend(t.Context(), id, anytime.Extension{Budget: more}); err != nil {
		t.Fatal(err)
	}
	if r = wait(id); r.Usage.ThinkingTokens != before+100 {
		t.Errorf("extended by 100: %d thinking tokens after %d", r.Usage.ThinkingTokens, before)
	}

	id = begin(request("2500", func(r *anytime.Request) { r.Checkpoints.At = []int{30} }))
	events, err := kept.Events(t.Context(), id, 0, 1)
	for len(events) == 0 && err == nil {
		events, err = kept.Events(t.Context(), id, 0, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	o.kill()
	o.run()
	if r = wait(id); r.Usage.ThinkingTokens != 2500 {
		t.Errorf("killed in mid-thought: %d thinking tokens, stop %+v", r.Usage.ThinkingTokens, r.Stop)
	}
}
