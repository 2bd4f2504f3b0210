// Server serves reasoning models over HTTP: a good answer at any thinking budget, deadline or interrupt.
//
//	server [serve] [flags]     serve; the first of both words may be left out
//	server ask QUESTION        ask a running server, or one started for it
//	server doctor [flags]      say what a server with these settings would run on, and what it lacks
//	server completion SHELL    print what makes bash, zsh or fish complete its commands, flags and models
//	server health [-addr A]    exit with 0 if a server at that address is ready
//	server version             print the version
//	server engine              the engine's process, which the server starts by itself
//
// Settings come from defaults, a YAML file (-config), ANYTIME_* environment variables and flags; server -h is their manual, and
// config.example.yaml has all of them. It listens on 127.0.0.1:8080, reads the llama.cpp libraries in engine/lib, and keeps runs and
// fetched models in ~/.local/share/anytime.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"anytime/internal/decode/llamacpp"
)

//go:generate go test -run ^Test(ExampleFile|ConfigurationPage)$ . -update

func main() {
	ctx, stop := context.WithCancel(context.Background())
	hurry, cut := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	signal.Ignore(syscall.SIGXFSZ) // a file that may not grow is an error of the store, not the end of the server
	go func() {
		<-signals
		stop()
		<-signals
		cut()
	}()
	err := command(ctx, hurry, os.Args[1:], os.LookupEnv, os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
	}
	switch {
	case errors.As(err, new(usageError)):
		os.Exit(2)
	case err != nil:
		os.Exit(1)
	}
}

// subcommand is the first word of a command line.
type subcommand struct{ name, args, about string }

var commands = []subcommand{
	{"serve", "[flags]", "serve; the first of both words may be left out"},
	{"ask", "QUESTION", "ask a running server, or one started for it; server ask -h says more"},
	{"doctor", "[flags]", "say what a server with these settings would run on, and what it lacks"},
	{"health", "[-addr A]", "exit with 0 if a server at that address is ready, with 1 if not"},
	{"completion", "SHELL", "print what makes bash, zsh or fish complete commands, flags and models"},
	{"version", "", "print the version"},
	{"help", "", "print this"},
	{"engine", "", "the engine's process, which the server starts by itself"},
}

// command runs a sub-command.
func command(ctx, hurry context.Context, args []string, env func(string) (string, bool), stdin io.Reader, stdout, stderr io.Writer) error {
	name := "serve"
	if len(args) > 0 && slices.ContainsFunc(commands, func(c subcommand) bool { return c.name == args[0] }) {
		name, args = args[0], args[1:]
	}
	switch name {
	case "help":
		manual(stdout)
		return nil
	case "version":
		fmt.Fprintln(stdout, version())
		return nil
	case "engine":
		return llamacpp.Serve()
	case "ask":
		return ask(ctx, hurry, args, env, stdin, stdout, stderr)
	case "doctor":
		return examine(ctx, args, env, stdout)
	case "completion":
		return completion(args, stdout)
	}
	cfg, err := load(args, env)
	switch {
	case errors.Is(err, flag.ErrHelp):
		manual(stdout)
		return nil
	case err != nil:
		return usageError{err}
	case name == "health":
		return health(ctx, cfg.Addr)
	}
	return run(ctx, hurry, cfg, stdout, stderr)
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "anytime, built without information"
	}
	text := "anytime " + info.Main.Version + " " + info.GoVersion
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			text += " " + s.Value
		}
	}
	return text
}
