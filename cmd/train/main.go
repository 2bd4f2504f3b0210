// Train fine-tunes anytime reasoning, and has the tools for it.
//
//	train COMMAND [flags] [FILE]
//
// Each command is in a file of its own, named as it is; train -h lists them, train COMMAND -h is a command's manual. It exits with 0
// when all went well, with 2 if it was used wrongly, with 1 after any other error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"anytime/internal/decode/llamacpp"
)

// commands are all there are, in the order of the manual. engine is not for people.
var commands = []command{generateCommand, newCommand, sftCommand, rolloutCommand, rlCommand, averageCommand, evalCommand, compareCommand, pushCommand, gradeCommand, advantageCommand, doctorCommand}

// command is a sub-command.
type command struct {
	name   string
	args   string // what follows the flags, for the manual
	about  string // one line
	manual string // what is to be known beyond that and the flags
	// setup defines the flags and returns what runs the command once they are parsed.
	setup func(*flag.FlagSet) runner
}

// runner runs a command with what is behind its flags. Results go to stdout, what is said about them to stderr.
type runner func(ctx context.Context, args []string, stdout, stderr io.Writer) error

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "train:", err)
	}
	switch {
	case errors.As(err, new(usageError)):
		os.Exit(2)
	case err != nil:
		os.Exit(1)
	}
}

// usageError is wrong use, as opposed to bad luck.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usagef("no command is given; train -h lists them")
	}
	switch args[0] {
	case "engine":
		return llamacpp.Serve()
	case "-h", "-help", "--help", "help":
		manual(stdout)
		return nil
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c.run(ctx, args[1:], stdout, stderr)
		}
	}
	return usagef("there is no command %.32q; train -h lists them", args[0])
}

func (c command) run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	runs := c.setup(flags)
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "train %s%s\n\n%s.\n%s", c.name, c.args, c.about, c.manual)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return usagef("%s: %w; train %s -h is its manual", c.name, err, c.name)
	}
	err := readConfig(flags)
	if err == nil {
		err = runs(ctx, flags.Args(), stdout, stderr)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

func manual(w io.Writer) {
	fmt.Fprint(w, "train fine-tunes anytime reasoning, and has the tools for it.\n\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  train %-24s %s\n", c.name+c.args, c.about)
	}
	fmt.Fprint(w, `
train COMMAND -h is a command's manual. FILE may be - for the standard input. It exits with 0 when all went well, with 2 if it was used
wrongly, with 1 after any other error.
`)
}

// input opens the one file that a command reads.
func input(args []string) (io.ReadCloser, error) {
	switch {
	case len(args) != 1:
		return nil, usagef("it takes one file, or - for the standard input; %d are given", len(args))
	case args[0] == "-":
		return io.NopCloser(os.Stdin), nil
	}
	return os.Open(args[0])
}

func noArguments(args []string) error {
	if len(args) > 0 {
		return usagef("%.64q is no flag; only flags are taken", args[0])
	}
	return nil
}
