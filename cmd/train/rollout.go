package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
	"anytime/internal/train/trainer"
)

var rolloutCommand = command{
	name: "rollout", about: "Sample thoughts and their summaries at each budget, and reward them",
	manual: `
Each problem is thought about in some traces; at each budget of a trace, and where a thought ended by itself, summaries are forced and
rewarded. Whole traces are added to -out as JSON lines, the first of which has the settings: run again with the same, it goes on where it
was stopped. At the end the accuracy at each budget is printed with its 95 % interval.

Problems come from a file (-data) with JSON lines of "id", "problem" and "answers", or of "id", "problem", "numbers" and "target", or are
Countdown puzzles (-countdown).

`,
	setup: func(flags *flag.FlagSet) runner {
		r := rollouts{countdown: task.DefaultCountdown}
		r.model.define(flags)
		r.model.defineRemote(flags)
		countdownFlags(flags, &r.countdown)
		flags.StringVar(&r.data, "data", "", "`file` of problems")
		flags.StringVar(&r.split, "countdown", "", "Countdown puzzles of the `split` train or heldout")
		flags.IntVar(&r.n, "n", 0, "how `many` problems, the first of a file; 0: all")
		flags.StringVar(&r.out, "out", "", "`file` of the rollouts; needed")
		flags.Uint64Var(&r.settings.Seed, "seed", 1, "`seed` of the sampling, and of the choice of puzzles")
		flags.StringVar(&r.budgets, "budgets", "64,128,256,512", "`list` of ascending numbers of thinking tokens")
		flags.IntVar(&r.settings.Traces, "traces", 1, "`traces` of each problem")
		flags.IntVar(&r.settings.Summaries, "summaries", 1, "`summaries` at each budget of a trace")
		flags.IntVar(&r.settings.SummaryTokens, "summary-tokens", 118, "`tokens` of the longest summary")
		flags.Float64Var(&r.temperature, "temperature", 1, "`temperature` of the sampling, 0 to 5; for training 1")
		flags.Float64Var(&r.topP, "top-p", 1, "`share` of the probability that tokens are drawn from; for training 1")
		flags.StringVar(&r.settings.Instruction, "instruction", "", "`text` that follows each problem (default for -data: "+strconv.Quote(boxInstruction)+")")
		flags.IntVar(&r.concurrency, "concurrency", 0, "`traces` under way at once; 0: half of -sequences")
		return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
			if err := noArguments(args); err != nil {
				return err
			}
			flags.Visit(func(f *flag.Flag) { r.instructed = r.instructed || f.Name == "instruction" })
			return r.run(ctx, stdout, stderr)
		}
	},
}

// boxInstruction asks models that were not trained on these problems for an answer that can be found.
const boxInstruction = `Please reason step by step, and put your final answer within \boxed{}.`

type rollouts struct {
	model                     modelFlags
	countdown                 task.Countdown
	data, split, out, budgets string
	n, concurrency            int
	temperature, topP         float64
	instructed                bool
	settings                  rollout.Settings
}

// prepare checks the flags and returns the problems, before anything that takes long.
func (r *rollouts) prepare() ([]task.Problem, error) {
	if err := r.model.named(); err != nil {
		return nil, err
	}
	switch {
	case r.out == "":
		return nil, usagef("-out is needed: name the file of the rollouts")
	case (r.data == "") == (r.split == ""):
		return nil, usagef("either -data or -countdown is needed, and not both")
	case r.n < 0:
		return nil, usagef("-n is %d: it must be a number of problems, or 0 for all", r.n)
	case !(r.temperature >= 0 && r.temperature <= 5):
		return nil, usagef("-temperature is %v: it must be from 0 to 5", r.temperature)
	case !(r.topP > 0 && r.topP <= 1):
		return nil, usagef("-top-p is %v: it must be above 0 and at most 1", r.topP)
	}
	var err error
	if r.settings.Budgets, err = parseBudgets(r.budgets); err != nil {
		return nil, err
	}
	r.settings.Sampling.Temperature, r.settings.Sampling.TopP = float32(r.temperature), float32(r.topP)
	if err := r.settings.Validate(); err != nil {
		return nil, usageError{err}
	}
	if r.split != "" {
		problems, err := r.countdown.Problems(task.Split(r.split), r.settings.Seed, r.n)
		if err != nil {
			return nil, usageError{err}
		}
		return problems, nil
	}
	if !r.instructed {
		r.settings.Instruction = boxInstruction
	}
	problems, err := task.ReadFile(r.data)
	if err == nil && r.n > 0 {
		problems = problems[:min(r.n, len(problems))]
	}
	return problems, err
}

func (r *rollouts) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	problems, err := r.prepare()
	if err != nil {
		return err
	}
	loaded, err := r.model.open(ctx, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loaded.engine.Close()) }()
	r.settings.Model, r.settings.Adapter = loaded.id, loaded.adapter
	lock, err := trainer.Lock(r.out + "." + trainer.LockFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	record, err := rollout.OpenFile(r.out, r.settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, record.Close()) }()

	kept := record.Traces()
	bar := newProgress(stderr, "rollouts", len(problems)*r.settings.Traces)
	seen := tally{began: time.Now()}
	traces, err := rollout.Run(ctx, rollout.Config{
		Settings: r.settings, Engine: loaded.engine, Renderer: loaded.renderer, Concurrency: r.concurrency, Record: record,
		OnTrace: func(t rollout.Trace) {
			seen.add(t, len(r.settings.Budgets))
			bar.set(kept+seen.traces, "%.0f tokens/s, accuracy %s", seen.speed(), seen.accuracy())
		},
	}, problems)
	if err != nil {
		return advise(err, "%d rollouts are kept in %s, and the same command goes on from there", record.Traces(), r.out)
	}
	fmt.Fprintf(stderr, "%d tokens in %.1f s, %.1f tokens/s\n", seen.tokens, time.Since(seen.began).Seconds(), seen.speed())
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "budget\taccuracy\t95 % interval\t\n")
	for _, a := range rollout.Curve(r.settings, traces) {
		fmt.Fprintf(table, "%d\t%.4f\t%.4f to %.4f\t\n", a.Budget, a.Mean, a.Low, a.High)
	}
	return table.Flush()
}
