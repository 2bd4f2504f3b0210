package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"anytime/internal/train/advantage"
	trainmodel "anytime/internal/train/model"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
	"anytime/internal/train/trainer"
)

var rlCommand = command{
	name: "rl", about: "Train an adapter by BRPO, or GRPO, on the model's own thoughts",
	manual: `
Each round samples -traces thoughts about each of -batch problems and -summaries answers at each budget of each, rewards them, takes a
step of the clipped policy loss for each mini-batch, and samples the next round with the adapter that came of it.

A recipe is one of the methods that the paper compares; what is given besides goes before it:
  recipe         budgets   -summaries  -prior   -thinking  -summary
` + recipeTable() + `
Problems come from a file (-data), as for train rollout, or are Countdown puzzles (-countdown). -out gets the adapter and the rollouts of
every round and metrics.jsonl with a line for each. Run again with the same flags it goes on with the round in which it was stopped, with a
larger -rounds it trains on.

`,
	setup: func(flags *flag.FlagSet) runner {
		var r rl
		r.define(flags)
		return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
			if err := noArguments(args); err != nil {
				return err
			}
			return r.run(ctx, given(flags), stdout, stderr)
		}
	},
}

type rl struct {
	model                     modelFlags
	training                  trainingFlags
	countdown                 task.Countdown
	data, split, out, budgets string
	n, rounds, keep           int
	recipe                    string
	settings                  trainer.RLSettings
	method                    advantage.Method
}

func (r *rl) define(flags *flag.FlagSet) {
	r.countdown = task.DefaultCountdown
	s := &r.settings
	configFlag(flags)
	flags.StringVar(&r.recipe, "recipe", "brpo-uniform", "`method` of the paper, as listed above")
	r.model.define(flags)
	r.training.define(flags, 1e-4)
	countdownFlags(flags, &r.countdown)
	flags.StringVar(&r.data, "data", "", "`file` of problems")
	flags.StringVar(&r.split, "countdown", "", "Countdown puzzles of the `split` train or heldout")
	flags.IntVar(&r.n, "n", 0, "how `many` problems, the first of a file; 0: all")
	flags.StringVar(&r.out, "out", "", "`folder` of the run; needed")
	flags.Uint64Var(&s.Rollout.Seed, "seed", 1, "`seed` of the sampling, the problems, a new adapter and dropout; below 2^40")
	flags.StringVar(&r.budgets, "budgets", "64,128,256,512", "`list` of ascending numbers of thinking tokens")
	flags.IntVar(&s.Rollout.Traces, "traces", 8, "`traces` of each problem")
	flags.IntVar(&s.Rollout.Summaries, "summaries", 0, "`summaries` at each budget of a trace")
	flags.IntVar(&s.Rollout.SummaryTokens, "summary-tokens", 118, "`tokens` of the longest summary")
	flags.StringVar(&s.Rollout.Instruction, "instruction", "", "`text` that follows each problem (default for -data: "+strconv.Quote(boxInstruction)+")")
	flags.StringVar((*string)(&s.Prior), "prior", "", "`prior` over the budgets: uniform, linear, base, or a weight for each such as 1,1,2,4")
	flags.StringVar((*string)(&s.Thinking), "thinking", "", "`baseline` of thinking tokens: brpo, v1only, v2only or none")
	flags.StringVar((*string)(&s.Summary), "summary", "", "`baseline` of summary tokens: siblings or group_last_budget_only")
	flags.BoolVar(&s.AnswersOnly, "answers-only", false, "train what is said after a cut, and not the thinking")
	flags.IntVar(&r.keep, "keep", 0, "`rounds` whose rollouts and adapters stay in the folder, the last ones; 0: all")
	flags.IntVar(&r.rounds, "rounds", 100, "`rounds` in all")
	flags.IntVar(&s.Batch, "batch", 64, "`problems` of a round")
	flags.IntVar(&s.Mini, "mini-batch", 32, "`problems` of a step")
	flags.Float64Var(&s.Clip, "clip", 0.2, "how far a token's probability ratio may be from 1 for its gain to count")
	flags.Float64Var(&s.Correction, "correction", 2, "largest importance `weight` by which the difference between the engine's and the trainer's log-probs is corrected; 0: it is not")
	flags.Float64Var(&s.KL, "kl", 0, "`weight` of a penalty on the divergence from the model without its adapter")
	flags.Float64Var(&s.Entropy, "entropy", 0, "`weight` of a bonus on entropy")
}

// recipeTable has a line of the manual for each recipe.
func recipeTable() string {
	var b strings.Builder
	for _, x := range trainer.Recipes {
		budgets := "all"
		if x.Last {
			budgets = "the last"
		}
		fmt.Fprintf(&b, "  %-14s %-9s %-11d %-8s %-10s %s\n", x.Name, budgets, x.Summaries, x.Prior, x.Thinking, x.Summary)
	}
	return b.String()
}

// cook sets what the recipe says and no flag has set.
func (r *rl) cook(set map[string]bool) error {
	recipe, err := trainer.LookupRecipe(r.recipe)
	if err != nil {
		return usageError{err}
	}
	s := &r.settings
	if s.Rollout.Budgets, err = parseBudgets(r.budgets); err != nil {
		return err
	}
	if recipe.Last {
		s.Rollout.Budgets = s.Rollout.Budgets[len(s.Rollout.Budgets)-1:]
	}
	if !set["summaries"] {
		s.Rollout.Summaries = recipe.Summaries
	}
	if !set["prior"] {
		s.Prior = recipe.Prior
	}
	if !set["thinking"] {
		s.Thinking = recipe.Thinking
	}
	if !set["summary"] {
		s.Summary = recipe.Summary
	}
	return nil
}

// prepare checks the flags, of which some were set, and returns the problems, before anything that takes long.
func (r *rl) prepare(set map[string]bool) (problems []task.Problem, err error) {
	s := &r.settings
	switch {
	case r.model.model == "":
		return nil, usagef("-model is needed: name the GGUF file of a model")
	case r.out == "":
		return nil, usagef("-out is needed: name the folder of the run")
	case (r.data == "") == (r.split == ""):
		return nil, usagef("either -data or -countdown is needed, and not both")
	case r.n < 0:
		return nil, usagef("-n is %d: it must be a number of problems, or 0 for all", r.n)
	case r.rounds < 1 || r.keep < 0:
		return nil, usagef("-rounds is %d, -keep %d: they must be at least 1, and at least 0", r.rounds, r.keep)
	case s.Rollout.Seed >= 1<<40:
		return nil, usagef("-seed is %d: it must be below 2^40", s.Rollout.Seed)
	}
	if r.data != "" && !set["instruction"] {
		s.Rollout.Instruction = boxInstruction
	}
	if err := r.cook(set); err != nil {
		return nil, err
	}
	s.Rollout.Sampling.Temperature = 1
	r.training.Train, r.training.Seed = trainmodel.Adapter, s.Rollout.Seed
	if err := s.Rollout.Validate(); err != nil {
		return nil, usageError{err}
	}
	if r.method, err = advantage.New(s.Prior, s.Rollout.Budgets, s.Thinking, s.Summary); err != nil {
		return nil, usageError{err}
	}
	if r.split != "" {
		s.Data = fmt.Sprintf("countdown %s %+v %d", r.split, r.countdown, r.n)
		if problems, err = r.countdown.Problems(task.Split(r.split), s.Rollout.Seed, r.n); err != nil {
			return nil, usageError{err}
		}
		return problems, nil
	}
	if problems, err = task.ReadFile(r.data); err != nil {
		return nil, err
	}
	if r.n > 0 {
		problems = problems[:min(r.n, len(problems))]
	}
	id, err := identify(r.data)
	s.Data = fmt.Sprintf("%s %d", id, r.n)
	return problems, err
}

func (r *rl) run(ctx context.Context, set map[string]bool, stdout, stderr io.Writer) (err error) {
	problems, err := r.prepare(set)
	if err != nil {
		return err
	}
	samples := r.model
	samples.adapter = "" // the run has its own names
	loaded, err := samples.open(ctx, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loaded.engine.Close()) }()
	r.model.model = samples.model // where it was fetched to
	open, err := r.training.opener(r.model)
	if err != nil {
		return err
	}
	r.settings.Rollout.Model, r.settings.Training = loaded.id, r.training.Training

	var bar *progress // of what a round is at
	var seen tally    // of the round
	round := 0
	show := func(what string, total int) {
		bar = newProgress(stderr, fmt.Sprintf("round %d, %s", round, what), total)
	}
	run, err := trainer.OpenRL(ctx, trainer.RLConfig{
		RLSettings: r.settings, Open: open, Engine: loaded.engine.(trainer.Engine), Renderer: loaded.renderer, Problems: problems, Folder: r.out, Keep: r.keep,
		OnTrace: func(t rollout.Trace) {
			seen.add(t, len(r.settings.Rollout.Budgets))
			bar.set(seen.traces, "%.0f tokens/s, reward %.3f, accuracy %s", seen.speed(), seen.reward(r.method.Probabilities), seen.accuracy())
		},
		OnStep: func(step, steps int, s trainmodel.Stats) {
			if step == 1 {
				show("steps", steps)
			}
			bar.set(step, "loss %.4f, clipped %.3f, %.0f tokens/s", s.Loss, s.Clipped, float64(s.Trained)/s.Elapsed.Seconds())
		},
		OnHang: onHang(stderr),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	for run.Done() < r.rounds {
		round, seen = run.Done()+1, tally{began: time.Now()}
		show("rollouts", r.settings.Batch*r.settings.Rollout.Traces)
		m, err := run.Next(ctx)
		if err != nil {
			return advise(err, "the same command goes on from there")
		}
		fmt.Fprintf(stdout, "round %d: accuracy", m.Round)
		for _, a := range m.Accuracy {
			fmt.Fprintf(stdout, " %.3f", a.Mean)
		}
		fmt.Fprintf(stdout, ", reward %.3f, thinking %.0f, advantage variance %.4f, clipped %.3f, mismatch %.1e (truncated %.4f), sampled %.0f tokens/s, trained %.0f\n",
			m.Reward, m.Thinking, m.AdvantageVariance, m.Clipped, m.Mismatch.Mean, m.Mismatch.Truncated, m.SampledPerS, m.TokensPerS)
	}
	fmt.Fprintln(stdout, run.Adapter(run.Done()))
	return nil
}
