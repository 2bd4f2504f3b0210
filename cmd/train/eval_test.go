package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/budget"
	"anytime/internal/eval"
	"anytime/internal/gguf/tiny"
	"anytime/internal/train/trainer"
)

// TestEval evaluates a tiny model, with an adapter and on files, too.
func TestEval(t *testing.T) {
	dir := t.TempDir()
	gguf, adapter, out := filepath.Join(dir, "tiny.gguf"), filepath.Join(dir, "tuned.gguf"), filepath.Join(dir, "out")
	if err := tiny.WriteFile(gguf, 1, tiny.Options{Rate: map[string]float64{tiny.ThinkClose: 0.03}}); err != nil {
		t.Fatal(err)
	}
	if err := tiny.WriteAdapter(adapter, 2, ""); err != nil {
		t.Fatal(err)
	}
	args := func(more ...string) []string {
		return append([]string{"eval", "-model", gguf, "-engine-lib", libDir(t), "-threads", "1", "-ctx", "512", "-budgets", "0,8,32",
			"-summary-tokens", "8", "-n", "6"}, more...)
	}
	printed, said, err := train(t, args("-votes", "2", "-out", out)...)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for _, want := range []string{"95 % interval", "majority of 2", "\n32 ", "Mean over the budgets", "Recommended budget: 0", filepath.Join(out, "report.html")} {
		if !strings.Contains(printed, want) {
			t.Errorf("it lacks %q; printed\n%s", want, printed)
		}
	}
	if strings.Contains(printed, "NaN") || strings.Contains(printed, "\nset ") {
		t.Errorf("one set is shown as several:\n%s", printed)
	}
	report, err := eval.ReadFile(filepath.Join(out, "report.json"))
	if err != nil || len(report.Problems) != 6 || len(report.Points) != 3 || !strings.HasPrefix(report.Settings.Model, "tiny.gguf@") || report.Settings.Sampling.Temperature != 0.6 {
		t.Errorf("the report is %+v, %v", report, err)
	}
	readCurve := func(path string) budget.Curve {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c, err := budget.ReadCurve(f)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := readCurve(filepath.Join(dir, "tiny.curve.json")); c.Problems != 6 || len(c.Points) != 3 || c.Model != report.Settings.Model {
		t.Errorf("the curve is %+v", c)
	}
	if png, err := os.ReadFile(filepath.Join(out, "report.png")); err != nil || !bytes.HasPrefix(png, []byte("\x89PNG")) {
		t.Errorf("the picture is %d bytes, %v", len(png), err)
	}
	if html, err := os.ReadFile(filepath.Join(out, "report.html")); err != nil || bytes.Count(html, []byte("<svg")) != 2 {
		t.Errorf("the page has %d charts, %v", bytes.Count(html, []byte("<svg")), err)
	}

	// Once more: nothing is left to do.
	before, _ := os.ReadFile(filepath.Join(out, "rollouts.jsonl"))
	again, _, err := train(t, args("-votes", "2", "-out", out)...)
	after, _ := os.ReadFile(filepath.Join(out, "rollouts.jsonl"))
	if err != nil || again != printed || !bytes.Equal(before, after) {
		t.Errorf("run again, it printed\n%s, error %v", again, err)
	}
	_, _, err = train(t, args("-votes", "3", "-out", out)...)
	failed(t, err, false, "was begun with the settings summaries 2, not with summaries 3:")
	lock, err := trainer.Lock(filepath.Join(out, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = train(t, args("-votes", "2", "-out", out)...)
	failed(t, err, false, "another process is at work")
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}

	// The adapter, against it.
	tuned, curve := filepath.Join(dir, "tuned"), filepath.Join(dir, "elsewhere.json")
	printed, said, err = train(t, args("-votes", "2", "-out", tuned, "-adapter", adapter, "-curve", curve, "-against", filepath.Join(out, "report.json"))...)
	if err != nil || !strings.Contains(printed, "difference") || !strings.Contains(printed, "\nmean ") {
		t.Fatalf("printed\n%s, %v: %s", printed, err, said)
	}
	if c := readCurve(curve); !strings.HasPrefix(c.Adapter, "tuned.gguf@") {
		t.Errorf("the curve is %+v", c)
	}
	if html, err := os.ReadFile(filepath.Join(tuned, "report.html")); err != nil || !bytes.Contains(html, []byte("Against tiny")) {
		t.Errorf("the page does not compare, %v", err)
	}
	if _, _, err := train(t, args("-out", filepath.Join(dir, "beside"), "-n", "1", "-adapter", adapter)...); err != nil {
		t.Error(err)
	}
	readCurve(filepath.Join(dir, "tuned.curve.json"))
	_, _, err = train(t, args("-n", "5", "-out", filepath.Join(dir, "fewer"), "-curve", "off", "-against", filepath.Join(out, "report.json"))...)
	failed(t, err, false, "other problems")

	// Two files with the same ids, of which a sample is drawn; it is the same sample again.
	sums := write(t, `{"id":"a","problem":"What is 1+2?","answers":["3"]}`+"\n"+`{"id":"b","problem":"What is 2+2?","answers":["4"]}`+"\n")
	more := filepath.Join(dir, "more.jsonl")
	if err := os.WriteFile(more, []byte(`{"id":"a","problem":"What is 1+1?","answers":["2"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, run := range []string{"one", "two"} {
		printed, said, err := train(t, args("-data", sums+", "+more, "-n", "2", "-budgets", "4", "-curve", "off", "-out", filepath.Join(dir, run))...)
		if err != nil || !strings.Contains(printed, "set ") || !strings.Contains(printed, "\nfile ") {
			t.Fatalf("printed\n%s, %v: %s", printed, err, said)
		}
	}
	one, err := eval.ReadFile(filepath.Join(dir, "one", "report.json"))
	if err != nil || len(one.Problems) != 2 || one.Data != "file + more" || one.Settings.Instruction != boxInstruction || !strings.Contains(one.Problems[0].ID, "/") {
		t.Errorf("the report is %+v, %v", one, err)
	}
	if two, err := eval.ReadFile(filepath.Join(dir, "two", "report.json")); err != nil || two.Digest != one.Digest {
		t.Errorf("another sample was drawn, %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = run(ctx, args("-out", filepath.Join(dir, "none")), &bytes.Buffer{}, &bytes.Buffer{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestEvalWrongly(t *testing.T) {
	for _, c := range []struct {
		args  string
		usage bool
		want  string
	}{
		{"-out o", true, "-model is needed"},
		{"-model m", true, "-out is needed"},
		{"-model m -out o -n -1", true, "-n is -1"},
		{"-model m -out o -temperature 9", true, "-temperature is 9"},
		{"-model m -out o -top-p 0", true, "-top-p is 0"},
		{"-model m -out o -budgets 1,x", true, "not a number of tokens"},
		{"-model m -out o -budgets 2,1", true, "ascending"},
		{"-model m -out o -samples 0", true, "-samples is 0"},
		{"-model m -out o -votes 0", true, "-votes 0"},
		{"-model m -out o -sequences 1", true, "-sequences is 1: it must be from 2 to 256"},
		{"-model m -out o -numbers 9", true, "numbers"},
		{"-model m -out o extra", true, `"extra"`},
		{"-model m -out o -data nowhere.jsonl", false, "nowhere.jsonl"},
		{"-model m -out o -against nowhere.json", false, "nowhere.json"},
		{"-model nowhere.gguf -out o", false, "nowhere.gguf"},
	} {
		t.Run(c.args, func(t *testing.T) {
			_, _, err := train(t, append([]string{"eval"}, strings.Fields(c.args)...)...)
			failed(t, err, c.usage, c.want)
		})
	}
	if _, err := os.Stat("o"); err == nil {
		t.Error("a folder was made before the model was there")
		os.Remove("o")
	}
}

// TestRecommendation: the knee is one only if it is before the best.
func TestRecommendation(t *testing.T) {
	for want, r := range map[string]eval.Report{
		"8, the smallest":            {Default: 8, Gain: eval.Estimate{Mean: 0.5, Low: -0.1}},
		"16, the knee (80.0 % of":    {Default: 16, Gain: eval.Estimate{Mean: 0.5, Low: 0.3}},
		"32, the best, for there is": {Default: 32, Gain: eval.Estimate{Mean: 0.5 + 1e-12, Low: 0.3}},
	} {
		for i, accuracy := range []float64{0.1, 0.5, 0.6} {
			r.Points = append(r.Points, eval.Point{Budget: 8 << i, Accuracy: eval.Estimate{Mean: accuracy}})
		}
		if got := recommendation(&r); !strings.Contains(got, want) {
			t.Errorf("%q, want one with %q", got, want)
		}
	}
}
