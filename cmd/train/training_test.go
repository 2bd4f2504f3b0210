package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
)

// TestTraining fine-tunes an adapter, trains it on in two rounds, the second by another run of the command, and samples with it.
func TestTraining(t *testing.T) {
	dir := t.TempDir()
	model, tuned, run := filepath.Join(dir, "tiny.gguf"), filepath.Join(dir, "sft"), filepath.Join(dir, "rl")
	if err := tiny.WriteFile(model, 1, tiny.Options{Rate: map[string]float64{tiny.ThinkClose: 0.05, tiny.EOS: 0.05}}); err != nil {
		t.Fatal(err)
	}
	examples, _, err := train(t, "generate", "-sft", "-n", "6", "-numbers", "2")
	if err != nil {
		t.Fatal(err)
	}
	engine := []string{"-model", model, "-engine-lib", libDir(t), "-threads", "1", "-ctx", "512", "-rank", "4", "-lr", "1e-3"}
	sft := append([]string{"sft", "-data", write(t, examples), "-train", "lora", "-out", tuned, "-batch", "2"}, engine...)
	adapter := filepath.Join(tuned, "adapter.gguf")
	for _, steps := range []string{"1", "2"} {
		out, said, err := train(t, append(sft, "-steps", steps)...)
		if err != nil || !strings.HasPrefix(out, "step "+steps+": loss ") || !strings.HasSuffix(out, adapter+"\n") {
			t.Fatalf("printed %q, said %q, error %v", out, said, err)
		}
	}
	_, _, err = train(t, append(sft, "-steps", "3", "-seed", "2")...)
	failed(t, err, false, "begun with the settings")

	rl := append([]string{"rl", "-countdown", "train", "-n", "3", "-adapter", adapter, "-out", run, "-budgets", "4,8", "-traces", "2", "-summaries", "2",
		"-summary-tokens", "6", "-batch", "2", "-mini-batch", "1"}, engine...)
	for _, rounds := range []string{"1", "2"} {
		out, said, err := train(t, append(rl, "-rounds", rounds)...)
		if err != nil || !strings.HasPrefix(out, "round "+rounds+": accuracy ") || strings.Count(out, "round ") != 1 {
			t.Fatalf("printed %q, said %q, error %v", out, said, err)
		}
	}
	base, err := gguf.ReadFile(model)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gguf.CheckAdapter(filepath.Join(run, "adapter-000002.gguf"), base); err != nil {
		t.Error(err)
	}
	metrics, err := os.ReadFile(filepath.Join(run, "metrics.jsonl"))
	if err != nil || strings.Count(string(metrics), "\n") != 2 {
		t.Errorf("metrics are %s, %v", metrics, err)
	}
	if left, _ := filepath.Glob(filepath.Join(run, "checkpoint-*")); len(left) != 1 {
		t.Errorf("checkpoints are %q", left)
	}
	_, said, err := train(t, "rollout", "-model", model, "-adapter", filepath.Join(run, "adapter-000002.gguf"), "-engine-lib", libDir(t), "-threads", "1",
		"-ctx", "512", "-countdown", "heldout", "-n", "1", "-budgets", "4", "-summary-tokens", "4", "-out", filepath.Join(dir, "eval.jsonl"))
	if err != nil {
		t.Errorf("%v: %s", err, said)
	}
}

func TestTrainingWrongly(t *testing.T) {
	bad := write(t, `{"id":"a","problem":"1+1","task":"math","answers":["2"],"thinking":"2"}`)
	long := write(t, `{"id":"long","problem":"1+1","answers":["2"],"thinking":"`+strings.Repeat("1+1=2 ", 50)+`","summary":"2"}`)
	model := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(model, 1, tiny.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  string
		usage bool
		want  string
	}{
		{"sft", true, "-model is needed"},
		{"sft -model m", true, "-out is needed"},
		{"sft -model m -out o -train some", true, `-train is "some"`},
		{"sft -model m -out o -batch 0", true, "-batch 0"},
		{"sft -model m -out o -cut 2", true, "shares"},
		{"sft -model m -out o extra", true, `"extra"`},
		{"sft -model m -out o -data nowhere", false, "nowhere"},
		{"sft -model m -out o -data " + bad, false, `line 1: "summary" is empty`},
		{"sft -model nowhere -out o", false, "nowhere"},
		{"sft -model m -out o -sequences 1", true, "-sequences is 1"},
		{"sft -model m -out o -lr NaN", true, "-lr is NaN"},
		{"sft -model m -out o -step-timeout 5", true, `"5" for flag -step-timeout: it must be a time such as 5s`},
		{"sft -model m -out o -recompute=yes", true, "-recompute: it must be true or false"},
		{"sft -model " + model + " -engine-lib " + libDir(t) + " -threads 1 -ctx 64 -out " + t.TempDir() + " -data " + long, false, `problem "long": it needs a context of`},
		{"rl -model m -out o -countdown train -sequences 1", true, "-sequences is 1"},
		{"rl -out o", true, "-model is needed"},
		{"rl -model m", true, "-out is needed"},
		{"rl -model m -out o", true, "either -data or -countdown"},
		{"rl -model m -out o -countdown train -rounds 0", true, "-rounds is 0"},
		{"rl -model m -out o -countdown train -budgets 1,x", true, `"x"`},
		{"rl -model m -out o -countdown train -budgets 2,1", true, "ascending"},
		{"rl -model m -out o -countdown train -traces 0", true, "traces is 0"},
		{"rl -model m -out o -countdown train -prior zipf", true, "zipf"},
		{"rl -model m -out o -countdown train -thinking ppo", true, "v1only"},
		{"rl -model m -out o -countdown train -summary mean", true, "siblings"},
		{"rl -model m -out o -countdown test", true, `"test"`},
		{"rl -model m -out o -data nowhere", false, "nowhere"},
		{"rl -model " + model + " -engine-lib " + libDir(t) + " -threads 1 -rank -1 -countdown train -out " + t.TempDir(), false, "LoRA rank is -1"},
		{"rl -model " + model + " -engine-lib " + libDir(t) + " -threads 1 -n 3 -countdown train -out " + t.TempDir(), false, "3 problems: a batch has 64"},
	} {
		t.Run(c.args, func(t *testing.T) {
			_, _, err := train(t, strings.Fields(c.args)...)
			failed(t, err, c.usage, c.want)
			if err != nil && strings.Contains(err.Error(), "goes on") {
				t.Errorf("the same command is advised: %v", err)
			}
		})
	}
}
