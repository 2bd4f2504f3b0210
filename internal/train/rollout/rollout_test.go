package rollout_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/prompt"
	"anytime/internal/grade"
	"anytime/internal/train/advantage"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
)

// scripted opens an engine of the model, which must have no sequence left when the test ends.
func scripted(t *testing.T, o decodetest.Options) *decodetest.Engine {
	t.Helper()
	e := decodetest.New(o)
	t.Cleanup(func() {
		if n := e.Sequences(); n > 0 {
			t.Errorf("%d sequences were not closed", n)
		}
		e.Close()
	})
	return e
}

func renderer(t *testing.T, e decode.Engine) *prompt.Renderer {
	t.Helper()
	r, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func config(t *testing.T, e decode.Engine, budgets ...int) rollout.Config {
	t.Helper()
	return rollout.Config{
		Settings: rollout.Settings{
			Model: "m", Seed: 1, Budgets: budgets, Traces: 2, Summaries: 2, SummaryTokens: 10, Sampling: decode.Sampling{Temperature: 1},
		},
		Engine: e, Renderer: renderer(t, e),
	}
}

func seven(n int) []task.Problem {
	var list []task.Problem
	for i := range n {
		list = append(list, task.Problem{ID: fmt.Sprint("p", i), Text: "What is 3 + 4?", Task: "math", Problem: grade.Problem{Answers: []string{"7"}}})
	}
	return list
}

// counting thinks " 1", " 2", … up to length and ends with end; a thought with " 3" in it knows the answer.
func counting(length int, end string) decodetest.Model {
	var thinking []string
	for i := range length {
		thinking = append(thinking, fmt.Sprint(" ", i+1))
	}
	script := decodetest.Script(thinking, "<think>\n", "</think>", func(thought string) []string {
		if strings.Contains(thought, " 3") {
			return []string{`\boxed`, `{7}`}
		}
		return []string{`\boxed`, `{8}`}
	})
	return func(prefix string, seed uint64) string {
		next := script(prefix, seed)
		if next == "</think>" {
			return end
		}
		return next
	}
}

const (
	cutText     = "...\n\n...\n\n</think>\n\n**Final Answer**\n"
	naturalText = "\n\n**Final Answer**\n"
)

func TestBudgets(t *testing.T) {
	for name, test := range map[string]struct {
		length  int
		end     string
		budgets []int
		ended   decode.End
		after   []int // of each point
		taken   []int
		rewards []float64
		closing string // of the last point
	}{
		"never ends":            {99, "</think>", []int{2, 4, 8}, decode.EndLimit, []int{2, 4, 8}, []int{0, 1, 2}, []float64{0, 1, 1}, cutText},
		"ends between budgets":  {4, "</think>", []int{2, 4, 8, 16}, decode.EndUntil, []int{2, 4, 5}, []int{0, 1, 2, 2}, []float64{0, 1, 1, 1}, naturalText},
		"ends at a budget":      {3, "</think>", []int{2, 4, 8, 16}, decode.EndUntil, []int{2, 4}, []int{0, 1, 1, 1}, []float64{0, 1, 1, 1}, naturalText},
		"ends at the last":      {7, "</think>", []int{2, 8}, decode.EndUntil, []int{2, 8}, []int{0, 1}, []float64{0, 1}, naturalText},
		"ends before the first": {1, "</think>", []int{4, 8}, decode.EndUntil, []int{2}, []int{0, 0}, []float64{0, 0}, naturalText},
		"no thinking at all":    {0, "</think>", []int{0, 8}, decode.EndUntil, []int{0, 1}, []int{0, 1}, []float64{0, 0}, naturalText},
		"only budget 0":         {5, "</think>", []int{0}, decode.EndLimit, []int{0}, []int{0}, []float64{0}, cutText},
		"end of text":           {4, "", []int{2, 3, 8, 16}, decode.EndEOG, []int{2, 3, 4}, []int{0, 1, 2, 2}, []float64{0, 1, 0, 0}, cutText},
		"end of text behind it": {4, "", []int{3, 4}, decode.EndLimit, []int{3, 4}, []int{0, 1}, []float64{1, 1}, cutText},
	} {
		t.Run(name, func(t *testing.T) {
			e := scripted(t, decodetest.Options{Model: counting(test.length, test.end)})
			traces, err := rollout.Run(t.Context(), config(t, e, test.budgets...), seven(1))
			if err != nil {
				t.Fatal(err)
			}
			if len(traces) != 1 || len(traces[0]) != 2 {
				t.Fatalf("%d problems, %d traces", len(traces), len(traces[0]))
			}
			var scores advantage.Scores
			for _, tr := range traces[0] {
				scores.Score = append(scores.Score, tr.Rewards(len(test.budgets)))
				scores.Taken = append(scores.Taken, tr.Taken(len(test.budgets)))
			}
			if m, err := advantage.New(budget.PriorUniform, test.budgets, advantage.BRPO, advantage.Siblings); err != nil {
				t.Error(err)
			} else if _, _, err := m.Compute(scores); err != nil {
				t.Errorf("no advantages can be computed: %v", err)
			}
			for g, tr := range traces[0] {
				var after []int
				for i, p := range tr.Points {
					after = append(after, p.After)
					want := cutText
					if i == len(tr.Points)-1 {
						want = test.closing
					}
					if got := text(t, e, p.Closing); got != want {
						t.Errorf("point %d was closed with %q, want %q", i, got, want)
					}
					for _, s := range p.Summaries {
						if s.Tokens != 2 || len(s.IDs) != 2 || len(s.LogProbs) != 2 || s.End != decode.EndEOG || s.EOG == nil || text(t, e, s.IDs) != s.Text {
							t.Errorf("summary %+v", s)
						}
					}
				}
				if !slices.Equal(after, test.after) || !slices.Equal(tr.Taken(len(test.budgets)), test.taken) {
					t.Errorf("points after %v, taken %v; want %v, %v", after, tr.Taken(len(test.budgets)), test.after, test.taken)
				}
				rewards := tr.Rewards(len(test.budgets))
				for i, want := range test.rewards {
					if !slices.Equal(rewards[i], []float64{want, want}) {
						t.Errorf("rewards %v, want %v twice each", rewards, test.rewards)
					}
				}
				if last := tr.Points[len(tr.Points)-1]; last.EOS != (test.ended == decode.EndEOG) {
					t.Errorf("last point: EOS %v", last.EOS)
				}
				th := tr.Thinking
				if (th.EOG != nil) != (th.End == decode.EndEOG) || th.EOG != nil && text(t, e, []int32{th.EOG.ID}) != e.Info().EOS {
					t.Errorf("thinking ended with %q and the token %+v", th.End, th.EOG)
				}
				if th.End != test.ended || len(th.IDs) != th.Tokens || len(th.LogProbs) != th.Tokens || text(t, e, th.IDs) != th.Text || tr.Index != g {
					t.Errorf("trace %d: thinking %+v, want end %q", tr.Index, th, test.ended)
				}
				if opening := text(t, e, tr.Prompt); !strings.HasSuffix(opening, "<think>\n") || !strings.Contains(opening, "What is 3 + 4?") {
					t.Errorf("prompt %q", opening)
				}
			}
		})
	}
}

func text(t *testing.T, e decode.Engine, ids []int32) string {
	t.Helper()
	tokens, err := e.Tokenize(t.Context(), decode.Part{IDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, tok := range tokens {
		all += tok.Text
	}
	return all
}

// A second closing mark ends a summary and costs its reward.
func TestClosedTwice(t *testing.T) {
	model := func(prefix string, _ uint64) string {
		switch _, answer, closed := strings.Cut(prefix, naturalText); {
		case !closed:
			return " hm"
		case answer == "":
			return `\boxed{7}`
		case strings.HasSuffix(answer, "}"):
			return "</think>"
		}
		return " and so on"
	}
	traces, err := rollout.Run(t.Context(), config(t, scripted(t, decodetest.Options{Model: model}), 3), seven(1))
	if err != nil {
		t.Fatal(err)
	}
	if s := traces[0][0].Points[0].Summaries[0]; s.Text != `\boxed{7}</think>` || s.End != decode.EndUntil || s.Reward != 0 {
		t.Errorf("%+v", s)
	}
}

// babble thinks and answers words that depend on the seed, and closes its thinking now and then.
func babble(prefix string, seed uint64) string {
	word := decodetest.Words(prefix, seed)
	if word == " wait" && !strings.Contains(prefix, "</think>") {
		return "</think>"
	}
	return word
}

// What is drawn does not depend on what else runs; traces and summaries differ from one another.
func TestDeterministic(t *testing.T) {
	run := func(seed uint64, concurrency int) [][]rollout.Trace {
		c := config(t, scripted(t, decodetest.Options{Model: babble}), 5, 10, 20)
		c.Seed, c.Concurrency = seed, concurrency
		traces, err := rollout.Run(t.Context(), c, seven(5))
		if err != nil {
			t.Fatal(err)
		}
		return traces
	}
	texts := func(traces [][]rollout.Trace) (list []string) {
		for _, group := range traces {
			for _, tr := range group {
				list = append(list, tr.Thinking.Text)
				for _, p := range tr.Points {
					for _, s := range p.Summaries {
						list = append(list, s.Text)
					}
				}
			}
		}
		return list
	}
	first := texts(run(1, 1))
	if !slices.Equal(texts(run(1, 7)), first) {
		t.Error("concurrency changes what is drawn")
	}
	if slices.Equal(texts(run(2, 1)), first) {
		t.Error("the seed changes nothing")
	}
	if distinct := len(slices.Compact(slices.Sorted(slices.Values(first)))); distinct < len(first)*9/10 {
		t.Errorf("%d of %d texts are different", distinct, len(first))
	}
}

func TestRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*rollout.Config, *[]task.Problem)
		want   string
	}{
		"no budgets":        {func(c *rollout.Config, _ *[]task.Problem) { c.Budgets = nil }, "there are none"},
		"descending":        {func(c *rollout.Config, _ *[]task.Problem) { c.Budgets = []int{4, 2} }, "ascending"},
		"negative":          {func(c *rollout.Config, _ *[]task.Problem) { c.Budgets = []int{-1} }, "ascending"},
		"no traces":         {func(c *rollout.Config, _ *[]task.Problem) { c.Traces = 0 }, "traces is 0"},
		"no summaries":      {func(c *rollout.Config, _ *[]task.Problem) { c.Summaries = 0 }, "summaries is 0"},
		"no summary":        {func(c *rollout.Config, _ *[]task.Problem) { c.SummaryTokens = 0 }, "summary_tokens is 0"},
		"small context":     {func(c *rollout.Config, _ *[]task.Problem) { c.Budgets = []int{100, 1 << 16} }, `problem "p0" needs a context of`},
		"unknown adapter":   {func(c *rollout.Config, _ *[]task.Problem) { c.Adapter = "a" }, "no such adapter"},
		"problem twice":     {func(_ *rollout.Config, p *[]task.Problem) { *p = append(*p, (*p)[0]) }, `"p0" comes twice`},
		"unknown task":      {func(_ *rollout.Config, p *[]task.Problem) { (*p)[0].Task = "essay" }, "essay"},
		"grammar":           {func(c *rollout.Config, _ *[]task.Problem) { c.Sampling.Grammar = "root ::= x" }, "grammar"},
		"prompt with a NUL": {func(c *rollout.Config, _ *[]task.Problem) { c.Instruction = "\x00" }, "NUL"},
	} {
		t.Run(name, func(t *testing.T) {
			c, problems := config(t, scripted(t, decodetest.Options{}), 4), seven(1)
			test.change(&c, &problems)
			if _, err := rollout.Run(t.Context(), c, problems); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	block := make(chan struct{})
	e := scripted(t, decodetest.Options{OnToken: func(prefix string) error {
		if strings.Contains(prefix, naturalText) { // a summary
			cancel()
			<-block
		}
		return nil
	}})
	_, err := rollout.Run(ctx, config(t, e, 4, 8), seven(3))
	close(block)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// An engine that fails in a thought, or in a summary, fails the run, which names the rollout.
func TestEngineFails(t *testing.T) {
	broken := errors.New("the engine broke")
	for name, at := range map[string]string{"in a thought": "<think>\n 1 2 3", "in a summary": naturalText + `\boxed`} {
		e := scripted(t, decodetest.Options{Model: counting(99, ""), OnToken: func(prefix string) error {
			if strings.HasSuffix(prefix, at) {
				return broken
			}
			return nil
		}})
		if _, err := rollout.Run(t.Context(), config(t, e, 2, 8), seven(2)); !errors.Is(err, broken) || !strings.Contains(err.Error(), `of problem "p`) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// An engine that fails ends the run; a second run makes what is missing, and no more.
func TestResume(t *testing.T) {
	problems := seven(4)
	want, err := rollout.Run(t.Context(), config(t, scripted(t, decodetest.Options{Model: babble}), 5, 10), problems)
	if err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/rollouts.jsonl"
	var failing, opened atomic.Int32
	failing.Store(3)
	broken := errors.New("the engine broke")
	for attempt := range 2 {
		e := scripted(t, decodetest.Options{Model: babble, OnOpen: func(decode.Request) error {
			if opened.Add(1) > failing.Load() {
				return broken
			}
			return nil
		}})
		c := config(t, e, 5, 10)
		c.Concurrency = 1
		if c.Record, err = rollout.OpenFile(path, c.Settings); err != nil {
			t.Fatal(err)
		}
		reported := 0
		c.OnTrace = func(rollout.Trace) { reported++ }
		got, err := rollout.Run(t.Context(), c, problems)
		if attempt == 0 {
			if !errors.Is(err, broken) || c.Record.Traces() != 3 || reported != 3 {
				t.Fatalf("error %v, %d recorded, %d reported", err, c.Record.Traces(), reported)
			}
			opened.Store(0)
			failing.Store(5)
		} else if err != nil || opened.Load() != 5 || reported != 5 || c.Record.Traces() != 8 {
			t.Fatalf("error %v, %d opened, %d reported, %d recorded", err, opened.Load(), reported, c.Record.Traces())
		} else {
			sameTraces(t, got, want)
		}
		if err := c.Record.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Recorded thoughts are rewarded by the answers that are right now.
func TestCorrectedAnswers(t *testing.T) {
	path := t.TempDir() + "/rollouts.jsonl"
	for _, test := range []struct {
		right string
		want  [][]float64
	}{{"8", [][]float64{{1, 1}, {0, 0}, {0, 0}}}, {"7", [][]float64{{0, 0}, {1, 1}, {1, 1}}}} {
		c := config(t, scripted(t, decodetest.Options{Model: counting(4, "</think>")}), 2, 4, 8)
		var err error
		if c.Record, err = rollout.OpenFile(path, c.Settings); err != nil {
			t.Fatal(err)
		}
		problems := seven(1)
		problems[0].Answers = []string{test.right}
		traces, err := rollout.Run(t.Context(), c, problems)
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range traces[0] {
			if got := tr.Rewards(3); !reflect.DeepEqual(got, test.want) {
				t.Errorf("where %s is right the rewards are %v, want %v", test.right, got, test.want)
			}
		}
		if err := c.Record.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// sameTraces compares what is recorded of the traces. The scripted engine numbers tokens as they come, so ids are left out.
func sameTraces(t *testing.T, got, want [][]rollout.Trace) {
	t.Helper()
	plain := func(traces [][]rollout.Trace) (list []rollout.Trace) {
		for _, group := range traces {
			for _, tr := range group {
				tr.Prompt, tr.Thinking = nil, rollout.Span{Text: tr.Thinking.Text, Tokens: tr.Thinking.Tokens, LogProbs: tr.Thinking.LogProbs, End: tr.Thinking.End}
				tr.Points = slices.Clone(tr.Points)
				for i := range tr.Points {
					p := &tr.Points[i]
					p.Closing = nil
					p.Summaries = slices.Clone(p.Summaries)
					for j := range p.Summaries {
						s := &p.Summaries[j]
						s.Span = rollout.Span{Text: s.Text, Tokens: s.Tokens, LogProbs: s.LogProbs, End: s.End}
					}
				}
				list = append(list, tr)
			}
		}
		return list
	}
	if !reflect.DeepEqual(plain(got), plain(want)) {
		t.Errorf("traces differ:\n got %+v\nwant %+v", plain(got), plain(want))
	}
}
