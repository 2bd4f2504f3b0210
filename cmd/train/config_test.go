package main

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// TestConfig: defaults, then the file, then flags.
func TestConfig(t *testing.T) {
	type values struct {
		n    int
		rate float64
		list string
		on   bool
		wait time.Duration
	}
	parse := func(t *testing.T, config string, args ...string) (values, error) {
		v := values{}
		flags := flag.NewFlagSet("test", flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		configFlag(flags)
		flags.IntVar(&v.n, "batch", 1, "`problems` of a round")
		flags.Float64Var(&v.rate, "lr", 1, "learning `rate`")
		flags.StringVar(&v.list, "budgets", "8", "`list` of budgets")
		flags.BoolVar(&v.on, "cosine", false, "fall")
		flags.DurationVar(&v.wait, "step-timeout", time.Second, "longest `time`")
		if err := flags.Parse(append([]string{"-config", write(t, config)}, args...)); err != nil {
			t.Fatal(err)
		}
		return v, readConfig(flags)
	}
	for name, c := range map[string]struct {
		config string
		args   []string
		want   values
	}{
		"defaults":    {"# nothing\n", nil, values{1, 1, "8", false, time.Second}},
		"empty":       {"", nil, values{1, 1, "8", false, time.Second}},
		"file":        {"batch: 16\nlr: 1e-5\nbudgets: 64,128\ncosine: true\nstep-timeout: 2m\n", nil, values{16, 1e-5, "64,128", true, 2 * time.Minute}},
		"list":        {"budgets: [64, 128]\n", nil, values{1, 1, "64,128", false, time.Second}},
		"tall list":   {"budgets:\n  - 64\n  - 128\n", nil, values{1, 1, "64,128", false, time.Second}},
		"quoted":      {"budgets: \"64\"\nbatch: '2'\n", nil, values{2, 1, "64", false, time.Second}},
		"flag first":  {"batch: 16\nlr: 0.5\n", []string{"-batch", "4"}, values{4, 0.5, "8", false, time.Second}},
		"set to zero": {"batch: 16\n", []string{"-batch=0"}, values{0, 1, "8", false, time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parse(t, c.config, c.args...); err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
	for config, want := range map[string]string{
		"batch: 1\nbatchs: 2\n":  `line 2: there is no key "batchs"; the keys are batch, budgets, cosine, lr, step-timeout`,
		"config: other.yaml\n":   `there is no key "config"`,
		"batch: 1\nbatch: 2\n":   "line 2: batch comes twice",
		"batch: many\n":          `line 1: batch is "many", which is not right: it must be a whole number (problems: problems of a round)`,
		"cosine: yes\n":          `cosine is "yes", which is not right: it must be true or false`,
		"step-timeout: 5\n":      `step-timeout is "5", which is not right: it must be a time such as 5s or 10m`,
		"batch:\n":               "batch must be a value",
		"lr: {a: 1}\n":           "lr must be a value",
		"budgets: [[1]]\n":       "budgets must be a value",
		"budgets: []\n":          "budgets must be a value",
		"just text\n":            "it must be lines such as batch: 16",
		"batch: 1\n---\nlr: 1\n": "one YAML document",
		"batch: [\n":             "line 1",
	} {
		_, err := parse(t, config)
		failed(t, err, true, want)
	}
	flags := flag.NewFlagSet("test", flag.ContinueOnError)
	configFlag(flags)
	if err := flags.Parse([]string{"-config", "nowhere.yaml"}); err != nil {
		t.Fatal(err)
	}
	failed(t, readConfig(flags), false, "nowhere.yaml")
}

// TestRecipes: what a recipe says, and what goes before it.
func TestRecipes(t *testing.T) {
	for _, c := range []struct {
		config, args, want string
	}{
		{"", "", "[64 128] 4 uniform brpo siblings"},
		{"", "-recipe grpo", "[128] 1 base v2only group_last_budget_only"},
		{"", "-recipe grpo-linear", "[64 128] 1 linear v2only group_last_budget_only"},
		{"", "-recipe grpo-decouple", "[64 128] 4 base v2only siblings"},
		{"", "-recipe grpo-vr", "[64 128] 1 base brpo group_last_budget_only"},
		{"", "-recipe brpo-base", "[64 128] 4 base brpo siblings"},
		{"", "-recipe brpo-linear", "[64 128] 4 linear brpo siblings"},
		{"", "-recipe brpo-uniform -prior 1,3 -thinking none -summaries 2", "[64 128] 2 1,3 none siblings"},
		{"recipe: grpo-vr\nsummaries: 3\n", "", "[64 128] 3 base brpo group_last_budget_only"},
		{"recipe: grpo-vr\nsummaries: 3\n", "-recipe brpo-linear", "[64 128] 3 linear brpo siblings"},
	} {
		r, err := planned(t, append([]string{"-config", write(t, c.config+"budgets: [64, 128]\n")}, strings.Fields(c.args)...)...)
		if err != nil || r != c.want {
			t.Errorf("%s %s: %s, %v; want %s", c.config, c.args, r, err, c.want)
		}
	}
	_, err := planned(t, "-recipe", "ppo")
	failed(t, err, true, `no recipe "ppo": it must be one of grpo, grpo-linear`)
}

// planned is what rl would do: budgets, summaries, prior, baselines.
func planned(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var r rl
	flags := flag.NewFlagSet("rl", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	r.define(flags)
	if err := flags.Parse(append([]string{"-model", "m", "-out", "o", "-countdown", "train", "-n", "1"}, args...)); err != nil {
		t.Fatal(err)
	}
	if err := readConfig(flags); err != nil {
		return "", err
	}
	_, err := r.prepare(given(flags))
	s := r.settings
	return fmt.Sprint(s.Rollout.Budgets, " ", s.Rollout.Summaries, " ", s.Prior, " ", s.Thinking, " ", s.Summary), err
}
