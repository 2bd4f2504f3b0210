package anytime_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/prompt"
	"anytime/internal/store"
	"anytime/internal/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	step       = 10 * time.Millisecond // to decode a token
	everything = 1000                  // thinking tokens of the scripted model, when it is let
)

// models is one model that is always loaded.
type models struct {
	model *anytime.Model
	wait  time.Duration
}

func (m models) Acquire(ctx context.Context, name string) (*anytime.Model, func(), error) {
	if name != "" && name != "default" && name != m.model.ID {
		return nil, nil, fmt.Errorf("%w: %q", anytime.ErrUnknownModel, name)
	}
	select {
	case <-time.After(m.wait):
		return m.model, func() {}, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

// bench is a solver over a scripted engine.
type bench struct {
	*anytime.Solver
	t      *testing.T
	engine *decodetest.Engine
	store  store.Store
	cfg    anytime.Config
}

// counting thinks " step" after " step" and answers with the number of steps it sees.
func counting(thought string) []string {
	return []string{" \\boxed{", fmt.Sprint(strings.Count(thought, " step")), "}"}
}

func steps(n int) []string {
	s := make([]string, n)
	for i := range s {
		s[i] = " step"
		if i%3 == 2 {
			s[i] = fmt.Sprintf(" step:%d", i) // no loop
		}
	}
	return s
}

func newBench(t *testing.T, opts decodetest.Options, change ...func(*anytime.Config)) *bench {
	t.Helper()
	if opts.Model == nil {
		opts.Model = decodetest.Script(steps(everything), "<think>\n", "</think>", counting)
	}
	if opts.Step == 0 {
		opts.Step = step
	}
	engine := decodetest.New(opts)
	b := &bench{t: t, engine: engine, store: memory.New(memory.Options{})}
	renderer, err := prompt.New(engine.Info(), prompt.Detect(engine.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	b.cfg = anytime.Config{
		Models: models{model: &anytime.Model{
			ID: "scripted", Engine: engine, Renderer: renderer, Pace: budget.NewPace(budget.Snapshot{}), Length: &budget.Length{}, MaxThinking: 2000,
		}},
		Store: b.store, Metrics: anytime.NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, c := range change {
		c(&b.cfg)
	}
	b.Solver = anytime.New(b.cfg)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if n := engine.Sequences(); n != 0 {
			t.Errorf("%d sequences are still open", n)
		}
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
		if err := b.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func ask(budgetText string) anytime.Request {
	b, err := budget.Parse(budgetText)
	if err != nil {
		panic(err)
	}
	return anytime.Request{
		Messages: []prompt.Message{{Role: "user", Content: "How many?"}},
		Template: prompt.Options{Thinking: true}, Budget: b,
	}
}

func (b *bench) start(req anytime.Request) string {
	b.t.Helper()
	id, err := b.Start(context.Background(), req)
	if err != nil {
		b.t.Fatalf("Start: %v", err)
	}
	return id
}

func (b *bench) wait(id string) anytime.Reply {
	b.t.Helper()
	reply, err := b.Wait(context.Background(), id)
	if err != nil {
		b.t.Fatalf("Wait: %v", err)
	}
	return reply
}

func (b *bench) events(id string) []store.Event {
	b.t.Helper()
	var events []store.Event
	for e, err := range store.Follow(context.Background(), b.store, id, 0) {
		if err != nil {
			b.t.Fatalf("Follow: %v", err)
		}
		if e.Offset != int64(len(events)+1) {
			b.t.Errorf("event %d has offset %d", len(events)+1, e.Offset)
		}
		events = append(events, e)
	}
	return events
}

// texts joins the text of one type of event, as a client would: a reset voids what came before.
func texts(t *testing.T, events []store.Event, kind string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range events {
		if e.Type != kind {
			continue
		}
		var data anytime.TextData
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatal(err)
		}
		if data.Reset {
			b.Reset()
		}
		b.WriteString(data.Text)
	}
	return b.String()
}

func check(t *testing.T, r anytime.Reply, cause budget.Cause, thinking int, answer string) {
	t.Helper()
	got := "null"
	if r.Answer != nil {
		got = *r.Answer
	}
	if r.Stop.Cause != cause || r.Usage.ThinkingTokens != thinking || got != answer {
		t.Errorf("cause %q after %d tokens, answer %q; want %q after %d, %q", r.Stop.Cause, r.Usage.ThinkingTokens, got, cause, thinking, answer)
	}
	if r.Stop.Forced != (cause != budget.CauseNatural) {
		t.Errorf("cause %q, forced %v", r.Stop.Cause, r.Stop.Forced)
	}
}

func TestTokenBudgetIsExact(t *testing.T) {
	for _, n := range []int{0, 1, 2, 16, 255, 999} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, decodetest.Options{})
				id := b.start(ask(fmt.Sprint(n)))
				reply := b.wait(id)
				check(t, reply, budget.CauseTokens, n, fmt.Sprint(n))
				events := b.events(id)
				if got, want := texts(t, events, anytime.EventThinking), strings.Join(steps(n), ""); got != want || reply.Thinking != want {
					t.Errorf("thinking events %q, reply %q, want %q", got, reply.Thinking, want)
				}
				if got := texts(t, events, anytime.EventAnswer); got != reply.Summary {
					t.Errorf("answer events %q, summary %q", got, reply.Summary)
				}
				if first, last := events[0].Type, events[len(events)-1].Type; first != anytime.EventRun || last != anytime.EventDone {
					t.Errorf("events begin with %q and end with %q", first, last)
				}
			})
		})
	}
}

func TestNaturalEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{})
		check(t, b.wait(b.start(ask("max"))), budget.CauseNatural, everything, "1000")
	})
}

func TestServerCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{Model: decodetest.Script(steps(5000), "<think>\n", "</think>", counting)})
		check(t, b.wait(b.start(ask("max"))), budget.CauseTokens, 2000, "2000")
	})
}

func TestContextLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{Info: decode.Info{ContextTokens: 400}})
		reply := b.wait(b.start(ask("max")))
		if reply.Stop.Cause != budget.CauseContext || reply.Answer == nil || reply.Usage.ThinkingTokens < 200 {
			t.Errorf("reply %+v", reply)
		}
		check(t, reply, budget.CauseContext, reply.Usage.ThinkingTokens, fmt.Sprint(reply.Usage.ThinkingTokens))
	})
}

func TestDeadlineIsKept(t *testing.T) {
	for _, d := range []string{"500ms", "1s", "3s", "9s"} {
		t.Run(d, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, decodetest.Options{})
				reply := b.wait(b.start(ask(d)))
				if reply.Stop.Cause != budget.CauseDeadline || reply.Answer == nil {
					t.Fatalf("stop %+v, answer %v", reply.Stop, reply.Answer)
				}
				if reply.Timings.DeadlineLeftMS < 0 {
					t.Errorf("late by %v ms", -reply.Timings.DeadlineLeftMS)
				}
			})
		})
	}
	t.Run("a warm pace uses the time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{})
			req := ask("400")
			req.Checkpoints.Every = 50
			b.wait(b.start(req))
			req = ask("5s")
			req.AnswerTokens = 16
			reply := b.wait(b.start(req))
			if reply.Usage.ThinkingTokens < 400 || reply.Timings.DeadlineLeftMS < 0 {
				t.Errorf("%d thinking tokens of about 480, %v ms left", reply.Usage.ThinkingTokens, reply.Timings.DeadlineLeftMS)
			}
		})
	})
}

func TestDeadlineMissed(t *testing.T) {
	slow := func(thought string) []string { return strings.Split(strings.Repeat(" well|", 120)+" \\boxed{1}", "|") }
	model := decodetest.Script(steps(everything), "<think>\n", "</think>", slow)
	t.Run("no checkpoint: null", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{Model: model, Step: 100 * time.Millisecond})
			reply := b.wait(b.start(ask("2s")))
			if reply.Answer != nil || reply.Stop.Cause != budget.CauseDeadline || reply.Timings.DeadlineLeftMS < 0 {
				t.Errorf("answer %v, stop %+v, %v ms left", reply.Answer, reply.Stop, reply.Timings.DeadlineLeftMS)
			}
			if !strings.HasPrefix(reply.Summary, " well well") {
				t.Errorf("what there was of the summary is %q", reply.Summary)
			}
		})
	})
	t.Run("the newest checkpoint's answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			// The engine becomes so slow for the last answer that no reserve suffices.
			b := newBench(t, decodetest.Options{OnToken: func(prefix string) error {
				if strings.Contains(prefix, "</think>") && strings.Count(prefix, " step") > 8 {
					time.Sleep(20 * time.Second)
				}
				return nil
			}})
			req := ask("4s")
			req.Checkpoints.At = []int{4, 8}
			req.AnswerTokens = 16
			reply := b.wait(b.start(req))
			if reply.Answer == nil || *reply.Answer != "8" || reply.Stop.Answer != "checkpoint" || reply.Timings.DeadlineLeftMS < 0 {
				t.Errorf("answer %v, stop %+v, %v ms left", reply.Answer, reply.Stop, reply.Timings.DeadlineLeftMS)
			}
		})
	})
	t.Run("the model was not even loaded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{}, func(c *anytime.Config) {
				m := c.Models.(models)
				m.wait = time.Minute
				c.Models = m
			})
			began := time.Now()
			_, err := b.Start(context.Background(), ask("1s"))
			var refused *anytime.DeadlineError
			if !errors.As(err, &refused) || refused.Shortest != 0 || time.Since(began) > time.Second {
				t.Errorf("error %v after %v", err, time.Since(began))
			}
		})
	})
}

func TestInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{})
		id := b.start(ask("max"))
		time.Sleep(2*time.Second + step/2)
		if err := b.Interrupt(context.Background(), id); err != nil {
			t.Fatal(err)
		}
		reply := b.wait(id)
		n := reply.Usage.ThinkingTokens
		if n < 199 || n > 201 {
			t.Errorf("cut after %d tokens, want 200", n)
		}
		check(t, reply, budget.CauseInterrupt, n, fmt.Sprint(n))
		if err := b.Interrupt(context.Background(), id); !errors.Is(err, anytime.ErrNotRunning) {
			t.Errorf("second interrupt: %v", err)
		}
		if err := b.Interrupt(context.Background(), "run_none"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("interrupt of no run: %v", err)
		}
	})
}

func TestPeekLeavesTheThoughtAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{})
		id := b.start(ask("300"))
		time.Sleep(time.Second + step/2)
		c, err := b.Peek(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if c.Answer != fmt.Sprint(c.Tokens) || c.Tokens < 100 || c.Tokens > 102 {
			t.Errorf("peek %+v", c)
		}
		reply := b.wait(id)
		check(t, reply, budget.CauseTokens, 300, "300")
		if len(reply.Checkpoints) != 1 || reply.Checkpoints[0] != c {
			t.Errorf("checkpoints %+v, want the peek", reply.Checkpoints)
		}
	})
	t.Run("at the end it gets the end's answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{})
			id := b.start(ask("100"))
			time.Sleep(100*step - step/2)
			c, err := b.Peek(context.Background(), id)
			if err != nil || c.Answer != "100" {
				t.Errorf("peek %+v, %v", c, err)
			}
			check(t, b.wait(id), budget.CauseTokens, 100, "100")
		})
	})
}

func TestCheckpoints(t *testing.T) {
	tests := []struct {
		schedule budget.Schedule
		want     []int
	}{
		{budget.Schedule{At: []int{1, 64, 128, 256}}, []int{1, 64, 128}},
		{budget.Schedule{Every: 50}, []int{50, 100, 150}},
		{budget.Schedule{At: []int{500}}, nil},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.schedule), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, decodetest.Options{})
				req := ask("200")
				req.Checkpoints = test.schedule
				reply := b.wait(b.start(req))
				check(t, reply, budget.CauseTokens, 200, "200")
				var got []int
				for _, c := range reply.Checkpoints {
					got = append(got, c.Tokens)
					if c.Answer != fmt.Sprint(c.Tokens) || c.Confidence <= 0 || c.ElapsedMS <= 0 {
						t.Errorf("checkpoint %+v", c)
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(test.want) {
					t.Errorf("checkpoints at %v, want %v", got, test.want)
				}
			})
		})
	}
}

func TestEarlyStop(t *testing.T) {
	settled := func(thought string) []string {
		if n := strings.Count(thought, " step"); n < 100 {
			return []string{" \\boxed{", fmt.Sprint(n), "}"}
		}
		return []string{" \\boxed{", "\\frac12", "}"}
	}
	model := decodetest.Script(steps(everything), "<think>\n", "</think>", settled)
	tests := []struct {
		rule  string
		cause budget.Cause
		low   int
		high  int
	}{
		{"converge:3", budget.CauseConverged, 150, 170},
		{"confident:0.5", budget.CauseConfident, 25, 45},
		{"confident:0.99", budget.CauseTokens, 400, 400},
		{"off", budget.CauseTokens, 400, 400},
	}
	for _, test := range tests {
		t.Run(test.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, decodetest.Options{Model: model})
				req := ask("400")
				req.Checkpoints.Every = 25
				var err error
				if req.EarlyStop, err = budget.ParseEarlyStop(test.rule); err != nil {
					t.Fatal(err)
				}
				reply := b.wait(b.start(req))
				if n := reply.Usage.ThinkingTokens; reply.Stop.Cause != test.cause || n < test.low || n > test.high {
					t.Errorf("cause %q after %d tokens, want %q after %d to %d", reply.Stop.Cause, n, test.cause, test.low, test.high)
				}
				if test.cause == budget.CauseTokens {
					return
				}
				// The answer is the one on which it settled, not another that is drawn where the thinking was by then.
				c := reply.Checkpoints[len(reply.Checkpoints)-1]
				if *reply.Answer != c.Answer || reply.Summary != c.Summary || reply.Confidence != c.Confidence || reply.Stop.Answer != "checkpoint" {
					t.Errorf("answer %q, confidence %v, %+v; it settled on %+v", *reply.Answer, reply.Confidence, reply.Stop, c)
				}
			})
		})
	}
}

func TestThinkingThatGoesWrong(t *testing.T) {
	t.Run("a loop", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			model := decodetest.Script(strings.SplitAfter(strings.Repeat(" over and", 1000), " over"), "<think>\n", "</think>",
				func(string) []string { return []string{" \\boxed{7}"} })
			b := newBench(t, decodetest.Options{Model: model})
			reply := b.wait(b.start(ask("max")))
			check(t, reply, budget.CauseLoop, reply.Usage.ThinkingTokens, "7")
			if reply.Usage.ThinkingTokens > 700 {
				t.Errorf("found after %d tokens", reply.Usage.ThinkingTokens)
			}
		})
	})
	t.Run("end of sequence inside", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			good := decodetest.Script(steps(everything), "<think>\n", "</think>", counting)
			model := func(prefix string, seed uint64) string {
				if strings.Count(prefix, " step") == 30 && !strings.Contains(prefix, "</think>") {
					return ""
				}
				return good(prefix, seed)
			}
			b := newBench(t, decodetest.Options{Model: model})
			check(t, b.wait(b.start(ask("max"))), budget.CauseEOSInThinking, 30, "30")
		})
	})
}

// An answer into which reasoning leaks, or none at all, is asked for again; if that is no better the thought's own words are taken.
func TestAnswersThatGoWrong(t *testing.T) {
	const firm = "I have thought enough"
	tests := []struct {
		name   string
		answer func(thought string) []string
		want   string
	}{
		{"reasoning leaks, then not", func(thought string) []string {
			if strings.Contains(thought, firm) {
				return []string{" \\boxed{4}"}
			}
			return []string{" Hmm,", " wait", " </think>", " \\boxed{5}"}
		}, "4"},
		{"thinking opens again, then not", func(thought string) []string {
			if strings.Contains(thought, firm) {
				return []string{" \\boxed{4}"}
			}
			return []string{" <think>", " let me see"}
		}, "4"},
		{"nothing, then something", func(thought string) []string {
			if strings.Contains(thought, firm) {
				return []string{" \\boxed{4}"}
			}
			return []string{"\n", "\n"}
		}, "4"},
		{"never anything", func(string) []string { return []string{"\n", "\n"} }, "step step:5"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, decodetest.Options{Model: decodetest.Script(steps(6), "<think>\n", "</think>", test.answer)})
				id := b.start(ask("6"))
				reply := b.wait(id)
				got := ""
				if reply.Answer != nil {
					got = *reply.Answer
				}
				if !strings.HasSuffix(got, test.want) {
					t.Errorf("answer %q, want %q", got, test.want)
				}
				if shown := texts(t, b.events(id), anytime.EventAnswer); shown != reply.Summary || strings.Contains(shown, "think>") {
					t.Errorf("answer events %q, summary %q", shown, reply.Summary)
				}
			})
		})
	}
}

func TestVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := decodetest.Script(steps(everything), "<think>\n", "</think>", func(string) []string { return []string{"\\boxed{1}"} })
		var votes atomic.Int32
		model := func(prefix string, seed uint64) string { // two votes of five dissent
			if strings.HasSuffix(prefix, "**Final Answer**\n") && seed != 0 {
				if votes.Add(1)%5 < 2 {
					return "\\boxed{2}"
				}
			} else if strings.HasSuffix(prefix, "\\boxed{2}") {
				return ""
			}
			return good(prefix, seed)
		}
		b := newBench(t, decodetest.Options{Model: model})
		req := ask("20")
		req.Votes = 5
		reply := b.wait(b.start(req))
		check(t, reply, budget.CauseTokens, 20, "1")
		if reply.Confidence < 0.3 || reply.Confidence > 0.6 {
			t.Errorf("confidence %v, want about 3/5 of the tokens' own", reply.Confidence)
		}
	})
}

// Tokens are counted when they come, and once each, however often a run is extended.
func TestTokenCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		b := newBench(t, decodetest.Options{}, func(c *anytime.Config) { c.Metrics = anytime.NewMetrics(registry) })
		count := func(name string) (n int) {
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == name {
					n = int(f.Metric[0].GetCounter().GetValue())
				}
			}
			return n
		}
		id := b.start(ask("100"))
		time.Sleep(50 * step)
		if n := count("anytime_thinking_tokens_total"); n < 10 || n > 60 {
			t.Errorf("%d thinking tokens are counted in the middle of a thought of 100", n)
		}
		spent := b.wait(id).Usage
		for _, want := range []int{150, 200} {
			if err := b.Extend(context.Background(), id, anytime.Extension{Budget: budget.Budget{Tokens: 50}}); err != nil {
				t.Fatal(err)
			}
			spent = b.wait(id).Usage
			if n := count("anytime_thinking_tokens_total"); n != want {
				t.Errorf("%d thinking tokens are counted, want %d", n, want)
			}
		}
		if n, want := count("anytime_summary_tokens_total"), spent.SummaryTokens+spent.CheckpointTokens; n != want || n == 0 {
			t.Errorf("%d tokens of answers are counted, want %d", n, want)
		}
	})
}

func TestExtend(t *testing.T) {
	t.Run("a thought that was cut", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{})
			id := b.start(ask("100"))
			check(t, b.wait(id), budget.CauseTokens, 100, "100")
			for i := range 3 {
				if err := b.Extend(context.Background(), id, anytime.Extension{Budget: budget.Budget{Tokens: 50}}); err != nil {
					t.Fatal(err)
				}
				n := 150 + 50*i
				reply := b.wait(id)
				check(t, reply, budget.CauseTokens, n, fmt.Sprint(n))
				if len(reply.Checkpoints) != i+1 || reply.Checkpoints[i].Answer != fmt.Sprint(n-50) {
					t.Errorf("earlier answers %+v", reply.Checkpoints)
				}
				if want := strings.Join(steps(n), ""); reply.Thinking != want || texts(t, b.events(id), anytime.EventThinking) != want {
					t.Errorf("thinking %q, want %q", reply.Thinking, want)
				}
			}
		})
	})
	t.Run("a thought that had ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			model := func(prefix string, seed uint64) string { // finishes, and thinks on when told to wait
				list := steps(10)
				if strings.Contains(prefix, "Wait,") {
					list = append(append(list, "\n\nWait,"), steps(5)...)
				}
				return decodetest.Script(list, "<think>\n", "</think>", counting)(prefix, seed)
			}
			b := newBench(t, decodetest.Options{Model: model})
			id := b.start(ask("100"))
			check(t, b.wait(id), budget.CauseNatural, 10, "10")
			if err := b.Extend(context.Background(), id, anytime.Extension{Budget: budget.Budget{Tokens: 50}}); err != nil {
				t.Fatal(err)
			}
			reply := b.wait(id)
			check(t, reply, budget.CauseNatural, 15, "15")
			if !strings.Contains(reply.Thinking, "\n\nWait, step") {
				t.Errorf("thinking %q", reply.Thinking)
			}
		})
	})
	t.Run("no thinking comes of it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			answers := 0
			model := func(prefix string, seed uint64) string { // another answer each time
				return decodetest.Script(steps(10), "<think>\n", "</think>", func(string) []string {
					answers++
					return []string{" \\boxed{", fmt.Sprint(answers), "}"}
				})(prefix, seed)
			}
			b := newBench(t, decodetest.Options{Model: model})
			id := b.start(ask("100"))
			first := b.wait(id)
			if err := b.Extend(context.Background(), id, anytime.Extension{Budget: budget.Budget{Tokens: 50}}); err != nil {
				t.Fatal(err)
			}
			if err := b.Interrupt(context.Background(), id); err != nil {
				t.Fatal(err)
			}
			reply := b.wait(id)
			if *reply.Answer != *first.Answer || reply.Usage.ThinkingTokens != 10 || reply.Usage.PromptTokens != first.Usage.PromptTokens {
				t.Errorf("the answer was %q and is %q; %+v, %+v", *first.Answer, *reply.Answer, first.Usage, reply.Usage)
			}
		})
	})
	t.Run("a run that is running, or is none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{})
			id := b.start(ask("100"))
			if err := b.Extend(context.Background(), id, anytime.Extension{Budget: budget.Budget{Tokens: 50}}); !errors.Is(err, anytime.ErrRunning) {
				t.Errorf("running: %v", err)
			}
			if err := b.Extend(context.Background(), "run_none", anytime.Extension{Budget: budget.Budget{Tokens: 50}}); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("none: %v", err)
			}
			b.wait(id)
		})
	})
}

func TestLeave(t *testing.T) {
	t.Run("cancel", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{})
			id := b.start(ask("max"))
			time.Sleep(50*step + step/2)
			b.Leave(id)
			synctest.Wait()
			if n := b.engine.Sequences(); n != 0 {
				t.Errorf("%d sequences are open after the client left", n)
			}
			_, err := b.Wait(context.Background(), id)
			var failed *anytime.RunError
			if !errors.As(err, &failed) || failed.Code != "cancelled" {
				t.Fatalf("error %v", err)
			}
			// The thought is kept and can be taken up again.
			if err := b.Extend(context.Background(), id, anytime.Extension{Budget: budget.Budget{Tokens: 10}}); err != nil {
				t.Fatal(err)
			}
			reply := b.wait(id)
			check(t, reply, budget.CauseTokens, 60, "60")
		})
	})
	t.Run("answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{})
			req := ask("max")
			req.OnDisconnect = anytime.Answer
			id := b.start(req)
			time.Sleep(50*step + step/2)
			b.Leave(id)
			reply := b.wait(id)
			check(t, reply, budget.CauseInterrupt, reply.Usage.ThinkingTokens, fmt.Sprint(reply.Usage.ThinkingTokens))
		})
	})
	t.Run("continue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, decodetest.Options{})
			req := ask("200")
			req.OnDisconnect = anytime.Continue
			id := b.start(req)
			time.Sleep(50*step + step/2)
			b.Leave(id)
			check(t, b.wait(id), budget.CauseTokens, 200, "200")
		})
	})
}

func TestEngineFailsInMidThought(t *testing.T) {
	for _, failures := range []int{1, 3, 100} {
		t.Run(fmt.Sprint(failures), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broken := errors.New("out of order")
				left := failures
				b := newBench(t, decodetest.Options{OnToken: func(prefix string) error {
					if left > 0 && strings.Count(prefix, " step") == 40+failures-left {
						left--
						return broken
					}
					return nil
				}})
				req := ask("200")
				req.Checkpoints.At = []int{30, 100}
				id := b.start(req)
				if failures <= 3 {
					reply := b.wait(id)
					check(t, reply, budget.CauseTokens, 200, "200")
					if want := strings.Join(steps(200), ""); reply.Thinking != want || texts(t, b.events(id), anytime.EventThinking) != want {
						t.Errorf("thinking %q", reply.Thinking)
					}
					if len(reply.Checkpoints) != 2 {
						t.Errorf("checkpoints %+v", reply.Checkpoints)
					}
					return
				}
				// Too often: the newest checkpoint is the answer.
				reply := b.wait(id)
				if reply.Answer == nil || *reply.Answer != "30" || reply.Stop.Answer != "checkpoint" {
					t.Errorf("answer %v, stop %+v", reply.Answer, reply.Stop)
				}
			})
		})
	}
}

// A second process finds the first one's runs in the store and finishes them; a reader sees one unbroken thought.
func TestRecover(t *testing.T) {
	for _, after := range []time.Duration{0, 5*step + step/2, 80*step + step/2, 201*step + step/2} {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, decodetest.Options{})
				req := ask("200")
				req.Checkpoints.At = []int{50, 150}
				id := b.start(req)
				time.Sleep(after)
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				second := anytime.New(b.cfg)
				defer second.Close()
				if err := second.Recover(context.Background()); err != nil {
					t.Fatal(err)
				}
				reply, err := second.Wait(context.Background(), id)
				if err != nil {
					t.Fatal(err)
				}
				check(t, reply, budget.CauseTokens, 200, "200")
				events := b.events(id)
				want := strings.Join(steps(200), "")
				if got := texts(t, events, anytime.EventThinking); got != want || reply.Thinking != want {
					t.Errorf("thinking events %q", got)
				}
				if got := texts(t, events, anytime.EventAnswer); got != reply.Summary {
					t.Errorf("answer events %q, summary %q", got, reply.Summary)
				}
				if len(reply.Checkpoints) != 2 {
					t.Errorf("checkpoints %+v", reply.Checkpoints)
				}
			})
		})
	}
}

// The server's cap holds for a thought that is taken up, and is an extension's own.
func TestRecoverCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{Model: decodetest.Script(steps(5000), "<think>\n", "</think>", counting)})
		last := b.Solver
		restart := func() {
			time.Sleep(500 * step)
			if err := last.Close(); err != nil {
				t.Fatal(err)
			}
			last = anytime.New(b.cfg)
			t.Cleanup(func() { _ = last.Close() })
			if err := last.Recover(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		id := b.start(ask("max"))
		for _, want := range []int{2000, 4000} {
			restart()
			restart()
			reply, err := last.Wait(context.Background(), id)
			if err != nil {
				t.Fatal(err)
			}
			check(t, reply, budget.CauseTokens, want, fmt.Sprint(want))
			if want == 2000 {
				if err := last.Extend(context.Background(), id, anytime.Extension{Budget: budget.Budget{Tokens: budget.Unlimited}}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// A deadline that passed while no server was there does not cost the answer.
func TestRecoverAfterTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{})
		b.wait(b.start(ask("300"))) // so that the pace is known
		id := b.start(ask("5s"))
		time.Sleep(time.Second)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		second := anytime.New(b.cfg)
		defer second.Close()
		if err := second.Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		reply, err := second.Wait(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		n := reply.Usage.ThinkingTokens
		if n < 50 {
			t.Errorf("%d thinking tokens", n)
		}
		check(t, reply, budget.CauseDeadline, n, fmt.Sprint(n))
	})
}

// A run whose servers die of it is given up; one that comes on between their deaths is not.
func TestRecoverPoison(t *testing.T) {
	for name, row := range map[string]struct {
		lives time.Duration // of each server
		given bool          // up
	}{"poison": {5 * step, true}, "comes on": {120 * step, false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, decodetest.Options{})
				id := b.start(ask("900"))
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				for range 5 {
					next := anytime.New(b.cfg)
					if err := next.Recover(context.Background()); err != nil {
						t.Fatal(err)
					}
					time.Sleep(row.lives)
					if err := next.Close(); err != nil {
						t.Fatal(err)
					}
				}
				last := anytime.New(b.cfg)
				defer last.Close()
				if err := last.Recover(context.Background()); err != nil {
					t.Fatal(err)
				}
				reply, err := last.Wait(context.Background(), id)
				if !row.given {
					if err != nil {
						t.Fatal(err)
					}
					check(t, reply, budget.CauseTokens, 900, "900")
					return
				}
				var failed *anytime.RunError
				if !errors.As(err, &failed) || failed.Code != "restart" || !strings.Contains(failed.Message, "taken up 5 times") {
					t.Errorf("reply %+v, error %v", reply, err)
				}
			})
		})
	}
}

// A run that is taken up has the model that it began with, whatever its name stands for now.
func TestRecoverModel(t *testing.T) {
	for name, now := range map[string]string{"the same": "scripted", "another default": "other"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, decodetest.Options{})
				id := b.start(ask("100")) // of the default model
				time.Sleep(5 * step)
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				known := b.cfg.Models.(models)
				b.cfg.Models = renamed{known, now}
				second := anytime.New(b.cfg)
				defer second.Close()
				if err := second.Recover(context.Background()); err != nil {
					t.Fatal(err)
				}
				reply, err := second.Wait(context.Background(), id)
				if err != nil {
					t.Fatal(err)
				}
				if check(t, reply, budget.CauseTokens, 100, "100"); reply.Model != "scripted" {
					t.Errorf("continued by %q", reply.Model)
				}
			})
		})
	}
}

// renamed are models of which another is the default.
type renamed struct {
	models
	standard string
}

func (m renamed) Acquire(ctx context.Context, name string) (*anytime.Model, func(), error) {
	if name == "" || name == "default" {
		other := *m.model
		other.ID = m.standard
		return &other, func() {}, nil
	}
	return m.models.Acquire(ctx, name)
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{})
		var ids []string
		for range 5 {
			ids = append(ids, b.start(ask("max")))
		}
		time.Sleep(time.Second)
		began := time.Now()
		if err := b.Drain(context.Background()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %v", took)
		}
		for _, id := range ids {
			reply := b.wait(id)
			check(t, reply, budget.CauseDrain, reply.Usage.ThinkingTokens, fmt.Sprint(reply.Usage.ThinkingTokens))
		}
		if _, err := b.Start(context.Background(), ask("1")); !errors.Is(err, anytime.ErrDraining) {
			t.Errorf("Start while draining: %v", err)
		}
	})
}

func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{}, func(c *anytime.Config) { c.MaxRuns = 2 })
		first, second := b.start(ask("50")), b.start(ask("50"))
		if _, err := b.Start(context.Background(), ask("50")); !errors.Is(err, anytime.ErrBusy) {
			t.Errorf("third of two: %v", err)
		}
		b.wait(first)
		b.wait(second)
		synctest.Wait()
		b.wait(b.start(ask("5")))
	})
}

func TestBadRequests(t *testing.T) {
	tests := []struct {
		name   string
		change func(*anytime.Request)
		field  string
	}{
		{"no messages", func(r *anytime.Request) { r.Messages = nil }, "messages"},
		{"both messages and raw", func(r *anytime.Request) { r.Raw = "x" }, "messages"},
		{"too many votes", func(r *anytime.Request) { r.Votes = 1000 }, "votes"},
		{"negative answer tokens", func(r *anytime.Request) { r.AnswerTokens = -1 }, "answer_tokens"},
		{"temperature", func(r *anytime.Request) { r.Sampling.Temperature = -1 }, "temperature"},
		{"top_p", func(r *anytime.Request) { r.Sampling.TopP = 1.5 }, "top_p"},
		{"empty stop", func(r *anytime.Request) { r.Stop = []string{""} }, "stop"},
		{"on_disconnect", func(r *anytime.Request) { r.OnDisconnect = "shrug" }, "on_disconnect"},
	}
	b := newBench(t, decodetest.Options{})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			req := ask("10")
			test.change(&req)
			_, err := b.Start(context.Background(), req)
			var bad *anytime.RequestError
			if !errors.As(err, &bad) || bad.Field != test.field {
				t.Errorf("error %v, want one of %s", err, test.field)
			}
		})
	}
	for what, want := range map[string]struct {
		change func(*anytime.Request)
		err    error
	}{
		"sampling that the engine has not": {func(r *anytime.Request) { r.Sampling.Grammar = "root ::= \"a\"" }, nil},
		"unknown model":                    {func(r *anytime.Request) { r.Model = "other" }, anytime.ErrUnknownModel},
		"prompt too long":                  {func(r *anytime.Request) { r.Messages[0].Content = strings.Repeat("a ", 1<<17) }, decode.ErrContextFull},
	} {
		req := ask("10")
		want.change(&req)
		_, err := b.Start(context.Background(), req)
		if input := new(decode.InputError); want.err == nil && errors.As(err, &input) {
			continue
		}
		if !errors.Is(err, want.err) {
			t.Errorf("%s: %v, want %v", what, err, want.err)
		}
	}
	if n := b.Live(); n != 0 {
		t.Errorf("%d runs live after refusals", n)
	}
}
