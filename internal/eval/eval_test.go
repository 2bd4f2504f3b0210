package eval_test

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/prompt"
	"anytime/internal/eval"
	"anytime/internal/grade"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
)

// config is an evaluation of a model that is asked n times for 7.
func config(t *testing.T, n int, model decodetest.Model, budgets ...int) eval.Config {
	t.Helper()
	e := decodetest.New(decodetest.Options{Model: model})
	t.Cleanup(func() { e.Close() })
	r, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	c := eval.Config{Data: "sevens", Config: rollout.Config{
		Settings: rollout.Settings{
			Model: "m", Seed: 1, Budgets: budgets, Traces: 1, Summaries: 1, SummaryTokens: 10, Sampling: decode.Sampling{Temperature: 1},
		},
		Engine: e, Renderer: r,
	}}
	for i := range n {
		c.Problems = append(c.Problems, task.Problem{
			ID: fmt.Sprint("p", i), Text: fmt.Sprintf("What is %d + %d?", i, 7-i), Task: "math", Problem: grade.Problem{Answers: []string{"7"}},
		})
	}
	return c
}

// counts thinks " 1", " 2", … up to length; what it then says is a function of how far it came, and of the seed.
func counts(length int, says func(tokens int, seed uint64) []string) decodetest.Model {
	var thinking []string
	for i := range length {
		thinking = append(thinking, fmt.Sprint(" ", i+1))
	}
	return func(prefix string, seed uint64) string {
		return decodetest.Script(thinking, "<think>\n", "</think>", func(thought string) []string {
			return says(strings.Count(thought, " "), seed)
		})(prefix, seed)
	}
}

func run(t *testing.T, c eval.Config) *eval.Report {
	t.Helper()
	r, err := eval.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Serving is lenient: each of these is graded by what it would have shown as the answer.
func TestGradesAsServing(t *testing.T) {
	for name, test := range map[string]struct {
		says              []string
		right, wellFormed float64
	}{
		"boxed":                       {[]string{`\boxed`, `{7}`}, 1, 1},
		"boxed, wrong":                {[]string{`\boxed`, `{8}`}, 0, 1},
		"in words":                    {[]string{" The", " answer", " is", " 7", "."}, 1, 0},
		"bare, then more":             {[]string{"7", "\n\n", "It", " is", " prime."}, 1, 0},
		"wrong, then right":           {[]string{"8", "\n\n", `\boxed`, `{7}`}, 0, 0},
		"right, then reasoning again": {[]string{`\boxed{7}`, "</think>", "8"}, 1, 0},
		"reasoning again, then right": {[]string{"8", "</think>", `\boxed{7}`}, 0, 0},
		"nothing":                     {nil, 0, 0},
		"too long":                    {[]string{"a", " b", " c", " d", " e", " f", " g", " h", " i", " j", ` \boxed{7}`}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, config(t, 1, counts(99, func(int, uint64) []string { return test.says }), 4))
			if p := r.Points[0]; p.Accuracy.Mean != test.right || p.WellFormed != test.wellFormed {
				t.Errorf("right %v, well-formed %v; want %v, %v", p.Accuracy.Mean, p.WellFormed, test.right, test.wellFormed)
			}
		})
	}
}

func TestBudgets(t *testing.T) {
	knows := func(tokens int, _ uint64) []string {
		if tokens >= 4 {
			return []string{`\boxed{7}`}
		}
		return []string{`\boxed{8}`}
	}
	c := config(t, 8, counts(9, knows), 0, 2, 4, 8, 16, 32) // the mark that ends its thought is the tenth token
	c.Traces, c.Summaries = 7, 3                            // a seventh is no binary fraction: means must be exact all the same
	done := 0
	c.OnTrace = func(rollout.Trace) { done++ }
	r := run(t, c)
	var accuracy, majority, tokens []float64
	for _, p := range r.Points {
		accuracy, majority, tokens = append(accuracy, p.Accuracy.Mean), append(majority, p.Majority.Mean), append(tokens, p.Tokens)
	}
	if want := []float64{0, 0, 1, 1, 1, 1}; !reflect.DeepEqual(accuracy, want) || !reflect.DeepEqual(majority, want) {
		t.Errorf("accuracy %v, by majority %v; want %v", accuracy, majority, want)
	}
	if want := []float64{0, 2, 4, 8, 10, 10}; !reflect.DeepEqual(tokens, want) {
		t.Errorf("tokens %v, want %v", tokens, want)
	}
	if want := 4.0 / 6; math.Abs(r.Mean.Mean-want) > 1e-9 || r.Ended != 1 || r.Gain != (eval.Estimate{Mean: 1, Low: 1, High: 1}) || done != 56 {
		t.Errorf("mean %v, ended %v, gain %v, %d traces", r.Mean, r.Ended, r.Gain, done)
	}
	// Of 8 problems, all or none were right: by Clopper and Pearson at least, or at most, 0.025^(1/8).
	if got, want := r.Points[0].Accuracy.High, 1-math.Pow(0.025, 1.0/8); math.Abs(got-want) > 1e-9 {
		t.Errorf("with none of 8 right it is at most %v, want %v", got, want)
	}
	if got, want := r.Points[5].Accuracy.Low, math.Pow(0.025, 1.0/8); math.Abs(got-want) > 1e-9 {
		t.Errorf("with all of 8 right it is at least %v, want %v", got, want)
	}
	if r.Default != 4 {
		t.Errorf("the recommended budget is %d", r.Default)
	}
	curve := r.Curve()
	if err := curve.Validate(); err != nil || curve.At(4) != 1 || curve.Default != 4 || curve.Problems != 8 || len(curve.Points) != 6 {
		t.Errorf("the curve is %+v, %v", curve, err)
	}

	c.Problems = nil
	if _, err := eval.Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "no problems") {
		t.Errorf("without problems: %v", err)
	}
}

// Two of three votes are right, whichever they are: the majority always is.
func TestMajority(t *testing.T) {
	votes := func(_ int, seed uint64) []string { return []string{fmt.Sprintf(`\boxed{%d}`, seed%3)} }
	c := config(t, 6, counts(99, votes), 2)
	c.Summaries = 64
	for i := range c.Problems {
		c.Problems[i].Answers = []string{"0", "1"}
	}
	p := run(t, c).Points[0]
	if p.Majority.Mean < p.Accuracy.Mean-0.2 || p.Accuracy.Mean < 0.5 || p.Accuracy.Mean > 0.8 {
		t.Errorf("accuracy %v, by majority %v", p.Accuracy.Mean, p.Majority.Mean)
	}
	biased := func(_ int, seed uint64) []string {
		if seed%8 < 5 {
			return []string{`\boxed{7}`}
		}
		return []string{fmt.Sprintf(`\boxed{%d}`, seed%8)}
	}
	c = config(t, 6, counts(99, biased), 2)
	c.Summaries = 64
	if p := run(t, c).Points[0]; p.Majority.Mean != 1 || p.Accuracy.Mean > 0.8 {
		t.Errorf("accuracy %v, by majority %v", p.Accuracy.Mean, p.Majority.Mean)
	}
}

// What was recorded is not sampled again, and gives the same report.
func TestResume(t *testing.T) {
	says := func(tokens int, seed uint64) []string {
		return []string{fmt.Sprintf(`\boxed{%d}`, 6+(seed+uint64(tokens))%3)}
	}
	c := config(t, 5, counts(9, says), 2, 4)
	c.Traces, c.Summaries = 2, 3
	path := filepath.Join(t.TempDir(), "rollouts.jsonl")
	report := func(problems int) (*eval.Report, int) {
		var err error
		if c.Record, err = rollout.OpenFile(path, c.Settings); err != nil {
			t.Fatal(err)
		}
		defer c.Record.Close()
		done := 0
		c.OnTrace = func(rollout.Trace) { done++ }
		part := c
		part.Problems = c.Problems[:problems]
		return run(t, part), done
	}
	_, first := report(3)
	got, second := report(5)
	c.Record = nil
	if want := run(t, c); first != 6 || second != 4 || !reflect.DeepEqual(got, want) {
		t.Errorf("%d and %d thoughts, %+v; want %+v", first, second, got, want)
	}
}

func TestReportFile(t *testing.T) {
	says := func(tokens int, seed uint64) []string {
		return []string{fmt.Sprintf(`\boxed{%d}`, 6+(seed+uint64(tokens))%3)}
	}
	want := run(t, config(t, 5, counts(9, says), 2, 4))
	path := filepath.Join(t.TempDir(), "report.json")
	save := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var text bytes.Buffer
	if err := want.Write(&text); err != nil {
		t.Fatal(err)
	}
	save(text.String())
	if got, err := eval.ReadFile(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("read %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []struct{ old, new, want string }{
		{`{"format"`, `["format"`, "train eval"},
		{`"anytime evaluation 1"`, `"anytime rollouts 1"`, "its format is"},
		{`"budgets":[2,4]`, `"budgets":[4,2]`, "ascending"},
		{`"budgets":[2,4]`, `"budgets":[2,4,8]`, "2 points for 3 budgets"},
		{`"budgets":[2,4]`, `"budgets":[2,5]`, "point 1 is of budget 4"},
		{`"accuracy":[`, `"accuracy":[0,`, "has not 2 accuracies"},
		{`"majority":[`, `"majority":[-7,`, "has not 2 accuracies"},
		{`"default":`, `"default":9`, "default is 9"},
	} {
		save(strings.Replace(text.String(), bad.old, bad.new, 1))
		if _, err := eval.ReadFile(path); err == nil || !strings.Contains(err.Error(), bad.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("with %s: %v, want %q", bad.new, err, bad.want)
		}
	}
	if _, err := eval.ReadFile("nowhere.json"); err == nil || !strings.Contains(err.Error(), "nowhere.json") {
		t.Error(err)
	}
}
