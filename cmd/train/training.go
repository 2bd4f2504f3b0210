package main

import (
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	trainmodel "anytime/internal/train/model"
	"anytime/internal/train/trainer"
)

// trainingFlags say how a model is trained, for the commands that do.
type trainingFlags struct {
	trainer.Training
	backend     string
	batchTokens int
	recompute   bool
	timeout     time.Duration
}

func (t *trainingFlags) define(flags *flag.FlagSet, rate float64) {
	flags.StringVar(&t.backend, "backend", "go", "`what` computes: go, or xla:PLUGIN.so")
	flags.IntVar(&t.LoRA.Rank, "rank", 16, "`rank` of a new adapter, 1 to 4096; 0: 16")
	flags.Float64Var(&t.LoRA.Alpha, "alpha", 0, "`alpha` of a new adapter, which is scaled by alpha/rank; 0: twice the rank")
	flags.Float64Var(&t.LoRA.Dropout, "dropout", 0, "`share` of an adapter's inputs that are dropped, 0 to 0.9")
	flags.Float64Var(&t.Optimizer.Rate, "lr", rate, "learning `rate`")
	flags.IntVar(&t.Optimizer.Warmup, "warmup", 0, "`steps` over which the learning rate rises")
	flags.Float64Var(&t.Optimizer.Decay, "weight-decay", 0, "weight `decay` of matrices")
	flags.Float64Var(&t.Optimizer.Clip, "gradient-clip", 1, "largest `norm` of the gradient; 0: 1")
	flags.IntVar(&t.batchTokens, "batch-tokens", 2048, "`tokens` that are computed at once, with padding; 0: 2048")
	flags.BoolVar(&t.recompute, "recompute", false, "keep less for the gradient and compute it again: a third more work for a fraction of the memory")
	flags.DurationVar(&t.timeout, "step-timeout", 10*time.Minute, "longest `time` of a pass, such as 90s or 10m, beyond which the backend is taken to hang; 0: 10m")
}

// opener returns what loads the model to be trained.
func (t *trainingFlags) opener(m modelFlags) (trainer.Open, error) {
	if m.adapter != "" {
		var err error
		if t.Adapter, err = identify(m.adapter); err != nil {
			return nil, fmt.Errorf("adapter: %w", err)
		}
	}
	c := trainmodel.Config{
		Backend: t.backend, Train: t.Train, Adapter: m.adapter, LoRA: t.LoRA, Optimizer: t.Optimizer, Seed: t.Seed,
		BatchTokens: t.batchTokens, Recompute: t.recompute, PassTimeout: t.timeout,
	}
	return func() (*trainmodel.Model, error) { return trainmodel.Open(m.model, c) }, nil
}

// onHang says that a step is tried again.
func onHang(stderr io.Writer) func(error) {
	return func(err error) { fmt.Fprintf(stderr, "%v; going on from the last checkpoint\n", err) }
}

func parseBudgets(list string) (budgets []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		b, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return nil, usagef("-budgets: %.32q is not a number of tokens; the list must be such as 64,128,256", text)
		}
		budgets = append(budgets, b)
	}
	return budgets, nil
}
