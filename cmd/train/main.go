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
	"io/fs"
	"math"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	trainmodel "anytime/internal/train/model"
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

// advise adds to an error how to go on, where that is true: behind an interrupt, a failure of the engine or the backend, a full disk.
func advise(err error, format string, a ...any) error {
	file := new(fs.PathError)
	writes := errors.As(err, &file) && (file.Op == "write" || file.Op == "sync")
	if !writes && !errors.Is(err, context.Canceled) && !errors.Is(err, decode.ErrUnavailable) && !errors.Is(err, trainmodel.ErrHung) {
		return err
	}
	return fmt.Errorf("%w; "+format, append([]any{err}, a...)...)
}

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
	files, err := c.parse(flags, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "train %s%s\n\n%s.\n%s", c.name, c.args, c.about, c.manual)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return usagef("%s: %w; train %s -h is its manual", c.name, inWords(flags, err), c.name)
	}
	err = readConfig(flags)
	if err == nil {
		err = checkNumbers(flags)
	}
	if err == nil {
		err = runs(ctx, files, stdout, stderr)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

// parse sets the flags and returns the other arguments. Where a command takes any, flags may also stand behind them.
func (c command) parse(flags *flag.FlagSet, args []string) (others []string, err error) {
	err = flags.Parse(args)
	for err == nil && flags.NArg() > 0 {
		if c.args == "" {
			return flags.Args(), nil
		}
		others = append(others, flags.Arg(0))
		err = flags.Parse(flags.Args()[1:])
	}
	return others, err
}

// inWords says what a value must be, where the flag package only says that it could not be parsed.
func inWords(flags *flag.FlagSet, err error) error {
	text, ok := strings.CutSuffix(err.Error(), ": parse error")
	f := flags.Lookup(text[strings.LastIndex(text, " -")+2:])
	if !ok || f == nil {
		return err
	}
	return fmt.Errorf("%s: it must be %s", text, kind(f))
}

// kind says what the values of a flag are.
func kind(f *flag.Flag) string {
	switch f.Value.(flag.Getter).Get().(type) {
	case bool:
		return "true or false"
	case time.Duration:
		return "a time such as 5s or 10m"
	case float64:
		return "a number"
	}
	return "a whole number"
}

// checkNumbers refuses what is a float64 but no number: no setting can have it, nor can JSON.
func checkNumbers(flags *flag.FlagSet) (err error) {
	flags.Visit(func(f *flag.Flag) {
		if v, ok := f.Value.(flag.Getter).Get().(float64); ok && (math.IsNaN(v) || math.IsInf(v, 0)) {
			err = usagef("-%s is %v: it must be a number", f.Name, v)
		}
	})
	return err
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
