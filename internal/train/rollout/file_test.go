package rollout_test

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/decode/decodetest"
	"anytime/internal/train/rollout"
)

func record(t *testing.T, path string) (rollout.Settings, [][]rollout.Trace) {
	t.Helper()
	c := config(t, scripted(t, decodetest.Options{Model: babble}), 5, 10, 20)
	var err error
	if c.Record, err = rollout.OpenFile(path, c.Settings); err != nil {
		t.Fatal(err)
	}
	traces, err := rollout.Run(t.Context(), c, seven(3))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Record.Close(); err != nil {
		t.Fatal(err)
	}
	return c.Settings, traces
}

// Wherever a process is killed, what was whole is kept.
func TestTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.jsonl")
	settings, _ := record(t, path)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(whole), "\n")
	head := len(lines[0])
	for _, at := range []int{0, 1, head / 2, head - 1, head, head + 1, head + len(lines[1]) - 1, head + len(lines[1]), len(whole) - 1} {
		if err := os.WriteFile(path, whole[:at], 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := rollout.OpenFile(path, settings)
		if err != nil {
			t.Fatalf("cut at %d: %v", at, err)
		}
		want := max(0, strings.Count(string(whole[:at]), "\n")-1)
		if f.Traces() != want {
			t.Errorf("cut at %d: %d traces, want %d", at, f.Traces(), want)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		// What is written from here on must stand on lines of its own.
		_, again := record(t, path)
		_, traces, err := rollout.Read(path)
		if err != nil || len(traces) != 6 || len(again) != 3 {
			t.Errorf("cut at %d, then finished: %d traces, %v", at, len(traces), err)
		}
	}
}

func TestBadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.jsonl")
	settings, _ := record(t, path)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(whole), "\n")
	first, _, _ := strings.Cut(rest, "\n")
	others := settings
	others.Budgets = []int{5}
	for name, test := range map[string]struct {
		text     string
		settings rollout.Settings
		want     string
	}{
		"other settings":     {string(whole), others, "was begun with the settings"},
		"another file":       {"hello\n", settings, "is no file of rollouts"},
		"another's one line": {"hello", settings, "is no file of rollouts"},
		"broken line":        {head + "\n{\"problem\":\n" + rest, settings, "line 2"},
		"twice":              {head + "\n" + first + "\n" + first + "\n", settings, "is there already"},
		"no points":          {head + "\n{\"problem\":\"a\",\"trace\":0}\n", settings, "has 0 points"},
		"too few summaries":  {head + "\n{\"problem\":\"a\",\"points\":[{\"budget\":0,\"summaries\":[]}]}\n", settings, "0 summaries"},
		"ids missing":        {head + "\n{\"problem\":\"a\",\"thinking\":{\"tokens\":2,\"ids\":[1]},\"points\":[{\"budget\":0}]}\n", settings, "has 1 ids"},
		"point behind":       {head + "\n{\"problem\":\"a\",\"points\":[{\"budget\":0,\"after\":9}]}\n", settings, "after 9 of 0"},
		"budget ahead":       {head + "\n{\"problem\":\"a\",\"points\":[{\"budget\":7}]}\n", settings, "budgets from 7"},
	} {
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := rollout.OpenFile(path, test.settings); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
		if left, _ := os.ReadFile(path); string(left) != test.text {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if _, _, err := rollout.Read(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was read")
	}
	if _, err := rollout.OpenFile(t.TempDir(), settings); err == nil {
		t.Error("a folder was opened")
	}
}

// Settings under which nothing was sampled give way to others.
func TestOtherSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.jsonl")
	for seed := range uint64(2) {
		f, err := rollout.OpenFile(path, rollout.Settings{Seed: seed, Budgets: []int{5}, Traces: 1, Summaries: 1, SummaryTokens: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if s, _, err := rollout.Read(path); err != nil || s.Seed != seed {
			t.Errorf("the settings are %+v, %v; want the seed %d", s, err, seed)
		}
	}
}

func TestDifferences(t *testing.T) {
	type settings struct {
		Same    []int          `json:"same"`
		Lists   []int          `json:"lists"`
		Inner   map[string]any `json:"inner"`
		Answers bool           `json:"answers,omitempty"`
	}
	one := settings{[]int{1}, []int{1, 2}, map[string]any{"rate": 0.5, "name": "a"}, true}
	other := settings{[]int{1}, []int{2}, map[string]any{"rate": 0.25, "name": "a"}, false}
	of, than := rollout.Differences(one, other)
	if of != "answers true, inner.rate 0.5, lists [1,2]" || than != "no answers, inner.rate 0.25, lists [2]" {
		t.Errorf("%q and %q", of, than)
	}
}

// Rollouts of other problems must not pass for these.
func TestOtherProblems(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.jsonl")
	settings, _ := record(t, path)
	c := config(t, scripted(t, decodetest.Options{Model: babble}), 5, 10, 20)
	var err error
	if c.Record, err = rollout.OpenFile(path, settings); err != nil {
		t.Fatal(err)
	}
	defer c.Record.Close()
	problems := seven(3)
	problems[0].Text = "What is 2 + 5?"
	if _, err := rollout.Run(t.Context(), c, problems); err == nil || !strings.Contains(err.Error(), "another prompt") {
		t.Errorf("error %v", err)
	}
}

func TestCurve(t *testing.T) {
	s := rollout.Settings{Seed: 1, Budgets: []int{10, 20}}
	var traces [][]rollout.Trace
	for b := range 200 {
		right := float64(b % 4 / 3) // a quarter of the problems at the first budget, all at the second
		traces = append(traces, []rollout.Trace{{Points: []rollout.Point{
			{Budget: 0, Summaries: []rollout.Summary{{Reward: right}}}, {Budget: 1, Summaries: []rollout.Summary{{Reward: 1}}},
		}}})
	}
	curve := rollout.Curve(s, traces)
	// The standard error of a share of a quarter in 200 is 0.031.
	if a := curve[0]; a.Budget != 10 || math.Abs(a.Mean-0.25) > 1e-9 || math.Abs(a.Low-0.19) > 0.015 || math.Abs(a.High-0.31) > 0.015 {
		t.Errorf("first budget: %+v", a)
	}
	if a := curve[1]; a.Budget != 20 || math.Abs(a.Mean-1)+math.Abs(a.Low-1)+math.Abs(a.High-1) > 1e-9 {
		t.Errorf("second budget: %+v", a)
	}
}
