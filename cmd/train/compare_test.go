package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/eval"
	"anytime/internal/train/rollout"
	"anytime/internal/train/trainer"
)

// evaluated writes a report of forty problems, right at the two budgets as often as given.
func evaluated(t *testing.T, path string, right ...int) {
	t.Helper()
	r := eval.Report{
		Format: "anytime evaluation 1", Data: "puzzles", Digest: "d", Default: 8,
		Settings: rollout.Settings{Model: "m@1", Seed: 1, Budgets: []int{8, 16}, Traces: 1, Summaries: 1, SummaryTokens: 4},
	}
	for i := range 40 {
		p := eval.Problem{ID: string(rune('A' + i)), Tokens: float64(right[0])}
		for _, n := range right {
			value := 0.0
			if i < n {
				value = 1
			}
			p.Accuracy, p.Majority = append(p.Accuracy, value), append(p.Majority, value)
		}
		r.Problems = append(r.Problems, p)
	}
	for i, b := range r.Settings.Budgets {
		share := float64(right[i]) / 40
		r.Points = append(r.Points, eval.Point{Budget: b, Tokens: float64(b), Accuracy: eval.Estimate{Mean: share, Low: share, High: share}})
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.Write(f); err != nil {
		t.Fatal(err)
	}
}

// trained writes the metrics of two rounds.
func trained(t *testing.T, folder string, variance float64) {
	t.Helper()
	if err := os.MkdirAll(folder, 0o750); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for i := range 2 {
		r := trainer.Round{
			Round: i + 1, Accuracy: []rollout.Accuracy{{Budget: 8, Mean: 0.1}, {Budget: 16, Mean: 0.25 * float64(i+1)}}, Thinking: 7, AdvantageVariance: variance,
		}
		if err := json.NewEncoder(&lines).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(folder, "metrics.jsonl"), []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCompareRuns(t *testing.T) {
	dir := t.TempDir()
	evaluated(t, filepath.Join(dir, "base", "report.json"), 4, 8)
	for run, r := range map[string]struct {
		right    [2]int
		variance float64
	}{
		"grpo-1": {[2]int{4, 20}, 0.5}, "brpo-uniform-1": {[2]int{20, 20}, 0.1}, "brpo-uniform-2": {[2]int{24, 24}, 0.3},
		"brpo-base-3": {[2]int{4, 22}, 0.2}, "grpo-decouple-3": {[2]int{4, 22}, 0.4},
	} {
		trained(t, filepath.Join(dir, run), r.variance)
		evaluated(t, filepath.Join(dir, run, "eval", "report.json"), r.right[:]...)
	}
	trained(t, filepath.Join(dir, "grpo-2"), 1) // not evaluated yet
	out := filepath.Join(dir, "out")
	printed, _, err := train(t, "compare", dir, "-out", out)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(out, "comparison.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c comparison
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Recipes) != 4 || c.Recipes[0].Recipe != "grpo" || len(c.Recipes[0].Seeds) != 1 || len(c.Unfinished) != 1 || c.Unfinished[0] != "grpo-2" {
		t.Errorf("recipes %+v, unfinished %v", c.Recipes, c.Unfinished)
	}
	last := c.Recipes[len(c.Recipes)-1]
	if last.Recipe != "brpo-uniform" || last.Figures.Mean.Mean != 0.55 || last.AgainstBase.Mean.Mean != 0.4 || last.AgainstBase.Tokens.Mean != 18 ||
		len(last.Rounds) != 2 || last.Rounds[1].Variance != 0.2 || last.Rounds[1].Reward != 0.5 {
		t.Errorf("BRPO is %+v", last)
	}
	verdicts := map[string]string{}
	for _, x := range c.Claims {
		verdicts[x.Of+" "+x.Against+" "+x.What] = x.Verdict
	}
	for what, want := range map[string]string{
		"brpo-uniform grpo mean accuracy":                   "as in the paper",
		"brpo-uniform grpo accuracy at the smallest budget": "as in the paper",
		"grpo base accuracy at the largest budget":          "as in the paper",
		"brpo-base grpo-decouple mean accuracy":             "not decided",
		"brpo-base grpo-decouple " + varianceClaim:          "as in the paper",
	} {
		if verdicts[what] != want {
			t.Errorf("%s: %q, want %q", what, verdicts[what], want)
		}
	}
	if _, there := verdicts["grpo-vr grpo mean accuracy"]; there {
		t.Error("it claims something of a recipe without a run")
	}
	markdown, err := os.ReadFile(filepath.Join(out, "comparison.md"))
	if err != nil || !strings.Contains(string(markdown), "| brpo-uniform | 2 | 55.0 | 55.0 | 55.0 |") || !strings.Contains(string(markdown), "(accuracy.png)") {
		t.Errorf("the Markdown is\n%s\n%v", markdown, err)
	}
	html, err := os.ReadFile(filepath.Join(out, "comparison.html"))
	if err != nil || strings.Count(string(html), "<svg") != 5 {
		t.Errorf("the page has %d charts, %v", strings.Count(string(html), "<svg"), err)
	}
	for _, picture := range []string{"accuracy.png", "gain.png", "reward.png", "thinking.png", "variance.png"} {
		if _, err := os.Stat(filepath.Join(out, picture)); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(printed, "as in the paper") || !strings.Contains(printed, filepath.Join(out, "comparison.html")) {
		t.Errorf("printed\n%s", printed)
	}

	// Runs that were asked something else cannot be set beside the base.
	other, _ := os.ReadFile(filepath.Join(dir, "base", "report.json"))
	strange := strings.Replace(string(other), `"digest":"d"`, `"digest":"e"`, 1)
	if err := os.WriteFile(filepath.Join(dir, "grpo-1", "eval", "report.json"), []byte(strange), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = train(t, "compare", "-out", out, dir)
	failed(t, err, false, "grpo: there are other problems")
}

func TestCompareWrongly(t *testing.T) {
	dir := t.TempDir()
	_, _, err := train(t, "compare", "-out", dir)
	failed(t, err, true, "one folder")
	_, _, err = train(t, "compare", dir)
	failed(t, err, true, "-out is needed")
	_, _, err = train(t, "compare", "-out", dir, dir)
	failed(t, err, false, filepath.Join("base", "report.json"))
	evaluated(t, filepath.Join(dir, "base", "report.json"), 4, 8)
	_, _, err = train(t, "compare", "-out", dir, dir)
	failed(t, err, false, "no finished run")
	evaluated(t, filepath.Join(dir, "grpo-1", "eval", "report.json"), 4, 8)
	for metrics, want := range map[string]string{"": "has no rounds", "{}": "has no accuracy", "{": "round 1"} {
		if err := os.WriteFile(filepath.Join(dir, "grpo-1", "metrics.jsonl"), []byte(metrics), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err = train(t, "compare", "-out", dir, dir)
		failed(t, err, false, want)
	}
}
