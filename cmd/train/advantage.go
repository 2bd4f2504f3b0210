package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"anytime/internal/train/advantage"
	"anytime/internal/train/task"
)

var advantageCommand = command{
	name: "advantage", args: " FILE", about: "Compute the advantages of scores",
	manual: `
FILE has a JSON object with "cases", each of which says how to compute ("prior", "thinking_baseline", "summary_baseline"), its shape
("prompts", "traces", "budgets", "summaries"), "scores" and "budget_index". The same is printed with "thinking_advantage" and
"summary_advantage" computed, and "budget_probs" where it was absent.
`,
	setup: func(*flag.FlagSet) runner { return runAdvantage },
}

func runAdvantage(_ context.Context, args []string, stdout, _ io.Writer) error {
	r, err := input(args)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := advantage.Read(r)
	if err != nil {
		return fmt.Errorf("%s: %w; it must be one JSON object with \"cases\"", args[0], task.Explain(err))
	}
	if err := f.Compute(); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	out := bufio.NewWriter(stdout)
	return errors.Join(f.Write(out), out.Flush())
}
