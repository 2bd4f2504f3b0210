package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	trainmodel "anytime/internal/train/model"
)

var averageCommand = command{
	name: "average", args: " ADAPTER...", about: "Average adapters of one run",
	manual: `
The matrices of the adapter that is written are the means of those of the others (stochastic weight averaging): those of the last rounds of train
rl, which keeps as many as its -keep says. Each of them was pushed about by the noise of its few thoughts; their mean was pushed less, and is
often better than any.

  train average -out adapter.gguf data/rl/adapter-*.gguf

`,
	setup: func(flags *flag.FlagSet) runner {
		out := flags.String("out", "", "GGUF `file` to write; needed")
		return func(_ context.Context, args []string, stdout, _ io.Writer) error {
			switch {
			case *out == "":
				return usagef("-out is needed: name the GGUF file to write")
			case len(args) == 0:
				return usagef("name the adapters to average, such as data/rl/adapter-*.gguf")
			}
			if err := trainmodel.Average(*out, args); err != nil {
				return err
			}
			_, err := fmt.Fprintln(stdout, *out)
			return err
		}
	},
}
