package main

import (
	"bufio"
	"context"
	"flag"
	"io"

	"anytime/internal/train/task"
)

var generateCommand = command{
	name: "generate", about: "Write Countdown problems, or examples to learn them from, as JSON lines",
	manual: `
A puzzle has numbers, each of which is to be used once with + - * / to make the target. The same seed gives the same lines. Problems are
all different; no problem of one split is in the other. Examples (-sft) are of the train split and never end: every puzzle comes
once before any comes again, in other words and with another thought.

`,
	setup: func(flags *flag.FlagSet) runner {
		g := generate{countdown: task.DefaultCountdown, mix: task.DefaultMix}
		countdownFlags(flags, &g.countdown)
		flags.StringVar(&g.split, "split", "", "`split` of the problems: train or heldout (default heldout; train for -sft)")
		flags.IntVar(&g.n, "n", 0, "how `many`; 0 means all problems of the split, and is no number of examples")
		flags.Uint64Var(&g.seed, "seed", 1, "`seed` of the order, the words and the thoughts")
		flags.BoolVar(&g.sft, "sft", false, "write examples: problems with a teacher's thought and the right answer")
		flags.Float64Var(&g.mix.Cut, "cut", g.mix.Cut, "`share` of the examples whose thought breaks off at a random place")
		flags.Float64Var(&g.mix.Other, "other", g.mix.Other, "`share` of the examples that ask something else")
		return g.run
	},
}

func countdownFlags(flags *flag.FlagSet, c *task.Countdown) {
	flags.IntVar(&c.Numbers, "numbers", c.Numbers, "`how many` numbers a Countdown puzzle has, 2 to 4")
	flags.IntVar(&c.Max, "max", c.Max, "`largest` number of a Countdown puzzle, 1 to 25")
	flags.IntVar(&c.MaxTarget, "max-target", c.MaxTarget, "`largest` target of a Countdown puzzle, 1 to 999")
}

type generate struct {
	countdown task.Countdown
	mix       task.Mix
	split     string
	n         int
	seed      uint64
	sft       bool
}

func (g *generate) run(ctx context.Context, args []string, stdout, _ io.Writer) error {
	if err := noArguments(args); err != nil {
		return err
	}
	out := bufio.NewWriter(stdout)
	lines := plainJSON(out)
	if !g.sft {
		if g.split == "" {
			g.split = string(task.HeldOut)
		}
		problems, err := g.countdown.Problems(task.Split(g.split), g.seed, g.n)
		if err != nil {
			return usageError{err}
		}
		for _, p := range problems {
			if err := lines.Encode(p); err != nil {
				return err
			}
		}
		return out.Flush()
	}
	switch {
	case g.n < 1:
		return usagef("-n is %d: say how many examples, from 1", g.n)
	case g.split != "" && g.split != string(task.Train):
		return usagef("-split is %.32q: examples are of the train split only", g.split)
	}
	examples, err := g.countdown.Examples(g.seed, g.mix)
	if err != nil {
		return usageError{err}
	}
	n := 0
	for e := range examples {
		if err := lines.Encode(e); err != nil {
			return err
		}
		if n++; n == g.n || ctx.Err() != nil {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return out.Flush()
}
