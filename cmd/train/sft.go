package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"

	trainmodel "anytime/internal/train/model"
	"anytime/internal/train/task"
	"anytime/internal/train/trainer"
)

var sftCommand = command{
	name: "sft", about: "Train a model on a teacher's thoughts and answers",
	manual: `
Each step lowers the cross-entropy of -batch examples: of their thoughts with the mark that ends them, unless they were cut, and of the
summaries and their ends. What is forced to cut a thought, as in serving, is not trained. Examples come from a file (-data) with JSON lines as
train generate -sft writes them, in an order that the seed draws, or are Countdown puzzles without end.

-train all trains all weights, and ends with model.gguf in -out; -train lora trains an adapter, a new one or -adapter, and ends with
adapter.gguf. metrics.jsonl has a line for each step. Run again with the same flags it goes on where it was stopped, with a larger
-steps it trains on (but not with -cosine, whose rate depends on -steps).

`,
	setup: func(flags *flag.FlagSet) runner {
		s := sft{countdown: task.DefaultCountdown, mix: task.DefaultMix}
		s.model.define(flags)
		s.training.define(flags, 1e-3)
		countdownFlags(flags, &s.countdown)
		flags.StringVar(&s.data, "data", "", "`file` of examples; by default Countdown puzzles")
		flags.Float64Var(&s.mix.Cut, "cut", s.mix.Cut, "`share` of the puzzles whose thought breaks off at a random place")
		flags.Float64Var(&s.mix.Other, "other", s.mix.Other, "`share` of questions that are no puzzles")
		flags.StringVar(&s.out, "out", "", "`folder` of the run; needed")
		flags.StringVar((*string)(&s.training.Train), "train", "all", "`what` is trained: all or lora")
		flags.StringVar(&s.instruction, "instruction", "", "`text` that follows each problem")
		flags.IntVar(&s.steps, "steps", 1000, "`steps` in all")
		flags.IntVar(&s.batch, "batch", 16, "`examples` of a step")
		flags.BoolVar(&s.cosine, "cosine", false, "let the learning rate fall to 0 by the last step")
		flags.IntVar(&s.every, "checkpoint-every", 1, "`steps` between checkpoints")
		flags.Uint64Var(&s.training.Seed, "seed", 1, "`seed` of the examples, a new adapter and dropout")
		configFlag(flags)
		return s.run
	},
}

type sft struct {
	model                  modelFlags
	training               trainingFlags
	countdown              task.Countdown
	mix                    task.Mix
	data, out, instruction string
	examples               []task.Example // of data
	steps, batch, every    int
	cosine                 bool
}

// prepare checks the flags and returns the examples and what tells them from others.
func (s *sft) prepare() (iter.Seq[task.Example], string, error) {
	switch {
	case s.model.model == "":
		return nil, "", usagef("-model is needed: name the GGUF file of a model")
	case s.out == "":
		return nil, "", usagef("-out is needed: name the folder of the run")
	case s.training.Train != trainmodel.All && s.training.Train != trainmodel.Adapter:
		return nil, "", usagef("-train is %.32q: it must be %s or %s", s.training.Train, trainmodel.All, trainmodel.Adapter)
	case s.steps < 1 || s.batch < 1 || s.every < 1:
		return nil, "", usagef("-steps is %d, -batch %d, -checkpoint-every %d: each must be at least 1", s.steps, s.batch, s.every)
	}
	if s.cosine {
		s.training.Optimizer.Steps = s.steps
	}
	if s.data == "" {
		examples, err := s.countdown.Examples(s.training.Seed, s.mix)
		if err != nil {
			return nil, "", usageError{err}
		}
		return examples, fmt.Sprintf("countdown %+v %+v", s.countdown, s.mix), nil
	}
	var err error
	if s.examples, err = task.ReadExamplesFile(s.data); err != nil {
		return nil, "", err
	}
	id, err := identify(s.data)
	return shuffled(s.examples, s.training.Seed), id, err
}

// shuffled goes over a list without end, each time in another order.
func shuffled(list []task.Example, seed uint64) iter.Seq[task.Example] {
	return func(yield func(task.Example) bool) {
		for epoch := uint64(0); ; epoch++ {
			for _, i := range rand.New(rand.NewPCG(seed, epoch)).Perm(len(list)) {
				if !yield(list[i]) {
					return
				}
			}
		}
	}
}

func (s *sft) run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	if err := noArguments(args); err != nil {
		return err
	}
	examples, data, err := s.prepare()
	if err != nil {
		return err
	}
	tokenizes := s.model
	tokenizes.adapter = ""
	loaded, err := tokenizes.open(ctx, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loaded.engine.Close()) }()
	s.model.model = tokenizes.model // where it was fetched to
	open, err := s.training.opener(s.model)
	if err != nil {
		return err
	}
	for _, e := range s.examples { // before one is come to after hours
		if _, err := trainer.FromExample(ctx, loaded.engine, loaded.renderer, e, s.instruction); err != nil {
			return err
		}
	}
	bar := newProgress(stderr, "sft", s.steps)
	var last trainer.SFTProgress
	result, err := trainer.SFT{
		SFTSettings: trainer.SFTSettings{
			Model: loaded.id, Data: data, Batch: s.batch, Instruction: s.instruction, Training: s.training.Training,
		},
		Open: open, Engine: loaded.engine, Renderer: loaded.renderer, Examples: examples, Folder: s.out, Every: s.every,
		OnStep: func(p trainer.SFTProgress) {
			last = p
			bar.set(p.Step, "loss %.4f, %.0f tokens/s", p.Loss, p.TokensPerS)
		},
		OnHang: onHang(stderr),
	}.Run(ctx, s.steps)
	if err != nil {
		return advise(err, "the same command goes on from the last checkpoint in %s, if there is one", s.out)
	}
	if last.Step > 0 {
		fmt.Fprintf(stdout, "step %d: loss %.4f\n", last.Step, last.Loss)
	}
	fmt.Fprintln(stdout, result)
	return nil
}
