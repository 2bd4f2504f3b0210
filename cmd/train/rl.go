package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"

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
step of the clipped policy loss for each mini-batch, and samples the next round with the adapter that came of it. The defaults are
BRPO with the uniform prior. GRPO is one budget, -summaries 1, -prior base, -thinking v2only, -summary group_last_budget_only.

Problems come from a file (-data), as for train rollout, or are Countdown puzzles (-countdown). -out gets the adapter and the rollouts of
every round and metrics.jsonl with a line for each. Run again with the same flags it goes on with the round in which it was stopped, with a
larger -rounds it trains on.

`,
	setup: func(flags *flag.FlagSet) runner {
		r := rl{countdown: task.DefaultCountdown}
		s := &r.settings
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
		flags.IntVar(&s.Rollout.Summaries, "summaries", 4, "`summaries` at each budget of a trace")
		flags.IntVar(&s.Rollout.SummaryTokens, "summary-tokens", 118, "`tokens` of the longest summary")
		flags.StringVar(&s.Rollout.Instruction, "instruction", "", "`text` that follows each problem (default for -data: "+strconv.Quote(boxInstruction)+")")
		flags.StringVar((*string)(&s.Prior), "prior", "uniform", "`prior` over the budgets: uniform, linear, base, or a weight for each such as 1,1,2,4")
		flags.StringVar((*string)(&s.Thinking), "thinking", string(advantage.BRPO), "`baseline` of thinking tokens: brpo, v1only, v2only or none")
		flags.StringVar((*string)(&s.Summary), "summary", string(advantage.Siblings), "`baseline` of summary tokens: siblings or group_last_budget_only")
		flags.IntVar(&r.rounds, "rounds", 100, "`rounds` in all")
		flags.IntVar(&s.Batch, "batch", 64, "`problems` of a round")
		flags.IntVar(&s.Mini, "mini-batch", 32, "`problems` of a step")
		flags.Float64Var(&s.Clip, "clip", 0.2, "how far a token's probability ratio may be from 1 for its gain to count")
		flags.Float64Var(&s.Entropy, "entropy", 0, "`weight` of a bonus on entropy")
		return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
			if err := noArguments(args); err != nil {
				return err
			}
			instructed := false
			flags.Visit(func(f *flag.Flag) { instructed = instructed || f.Name == "instruction" })
			if r.data != "" && !instructed {
				s.Rollout.Instruction = boxInstruction
			}
			return r.run(ctx, stdout, stderr)
		}
	},
}

type rl struct {
	model                     modelFlags
	training                  trainingFlags
	countdown                 task.Countdown
	data, split, out, budgets string
	n, rounds                 int
	settings                  trainer.RLSettings
}

// prepare checks the flags and returns the problems, before anything that takes long.
func (r *rl) prepare() (problems []task.Problem, err error) {
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
	case r.rounds < 1:
		return nil, usagef("-rounds is %d: it must be at least 1", r.rounds)
	case s.Rollout.Seed >= 1<<40:
		return nil, usagef("-seed is %d: it must be below 2^40", s.Rollout.Seed)
	}
	if s.Rollout.Budgets, err = parseBudgets(r.budgets); err != nil {
		return nil, err
	}
	s.Rollout.Sampling.Temperature = 1
	r.training.Train, r.training.Seed = trainmodel.Adapter, s.Rollout.Seed
	if err := s.Rollout.Validate(); err != nil {
		return nil, usageError{err}
	}
	if _, err := advantage.New(s.Prior, s.Rollout.Budgets, s.Thinking, s.Summary); err != nil {
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

func (r *rl) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	problems, err := r.prepare()
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
	trained, err := r.training.open(r.model)
	if err != nil {
		return err
	}
	defer trained.Close()
	r.settings.Rollout.Model, r.settings.Training = loaded.id, r.training.Training

	var bar *progressbar.ProgressBar // of a round's traces
	run, err := trainer.OpenRL(ctx, trainer.RLConfig{
		RLSettings: r.settings, Model: trained, Engine: loaded.engine, Renderer: loaded.renderer, Problems: problems, Folder: r.out,
		OnTrace: func(rollout.Trace) { _ = bar.Add(1) }, // it only shows something
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	for run.Done() < r.rounds {
		bar = progressbar.NewOptions(r.settings.Batch*r.settings.Rollout.Traces, progressbar.OptionSetWriter(stderr),
			progressbar.OptionSetDescription(fmt.Sprintf("round %d, rollouts", run.Done()+1)), progressbar.OptionShowCount(),
			progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionClearOnFinish())
		m, err := run.Next(ctx)
		if err != nil {
			return fmt.Errorf("%w; the same command goes on from there", err)
		}
		fmt.Fprintf(stdout, "round %d: accuracy", m.Round)
		for _, a := range m.Accuracy {
			fmt.Fprintf(stdout, " %.3f", a.Mean)
		}
		fmt.Fprintf(stdout, ", reward %.3f, thinking %.0f, advantage variance %.4f, clipped %.3f, mismatch %.1e, sampled %.0f tokens/s, trained %.0f\n",
			m.Reward, m.Thinking, m.AdvantageVariance, m.Clipped, m.Mismatch.Mean, m.SampledPerS, m.TokensPerS)
	}
	fmt.Fprintln(stdout, run.Adapter(run.Done()))
	return nil
}
