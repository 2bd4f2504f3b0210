// Command bench measures what the server promises, as ratios within one run, and writes BENCHMARKS.md.
//
//	go run ./cmd/bench [-model GGUF] [-engine-lib DIR] [-server bin/server] [-runs 5] [-out BENCHMARKS.md]
//
// The two sides of a ratio are measured in turn (A B A B …), so that a machine that others use too disturbs both alike; the ratio is the
// median of the pairs' ratios. Run by another name it is one of its own parts: "bench engine" the engine's child process, "bench bare"
// the loop against llama.cpp without any server that the server is compared with.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
)

func main() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "engine":
		err = llamacpp.Serve()
	case len(os.Args) > 1 && os.Args[1] == "bare":
		err = bare(os.Args[2:])
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		err = run(ctx)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of all benchmarks.
type bench struct {
	model, lib, server string
	runs, threads      int
	count              int // requests with a deadline
	out                io.Writer
}

func run(ctx context.Context) error {
	b := &bench{}
	var path string
	flag.StringVar(&b.model, "model", "models/cache/SmolLM2-135M-Instruct.Q4_1.gguf", "GGUF file")
	flag.StringVar(&b.lib, "engine-lib", "engine/lib", "folder of the llama.cpp libraries")
	flag.StringVar(&b.server, "server", "bin/server", "server binary")
	flag.IntVar(&b.runs, "runs", 5, "pairs of measurements for each row")
	flag.IntVar(&b.threads, "threads", max(1, runtime.NumCPU()-1), "threads of the engine, on both sides")
	flag.StringVar(&path, "out", "BENCHMARKS.md", "file to write")
	flag.IntVar(&b.count, "deadlines", 200, "requests with a deadline for each of its rows")
	only := flag.String("only", "", "the one part to run: interrupts, throughput, checkpoints, deadlines or remote")
	flag.Parse()

	var report strings.Builder
	b.out = io.MultiWriter(os.Stdout, &report)
	b.head()
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"interrupts", b.interrupts}, {"throughput", b.throughput}, {"checkpoints", b.checkpoints}, {"deadlines", b.deadlines}, {"remote", b.remote}} {
		if *only != "" && *only != part.name {
			continue
		}
		if err := part.run(ctx); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte(report.String()), 0o644) //nolint:gosec // a document
}

func (b *bench) head() {
	b.printf("# Benchmarks\n\nRatios within one run of `cmd/bench`, a part of `make bench`. %s.\n\n", time.Now().UTC().Format("2006-01-02"))
	b.printf("- Machine: %s, %d cores, %s/%s\n", cpu(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	b.printf("- Model: `%s`, threads: %d; llama.cpp v0.5.0 by yzma v1.27.0; %s\n", b.model[strings.LastIndexByte(b.model, '/')+1:], b.threads, runtime.Version())
	b.printf("- Command: `%s`\n", strings.Join(append([]string{"go run ./cmd/bench"}, os.Args[1:]...), " "))
	b.printf("- Each figure is the median of %d (at 4096 tokens of %d), a ratio the median of the ratios of pairs measured in turn.\n", b.runs, b.long())
}

// long is how many pairs are measured where one takes a minute.
func (b *bench) long() int { return (b.runs + 2) / 3 }

func (b *bench) printf(format string, args ...any) { fmt.Fprintf(b.out, format, args...) }

// cpu names the processor.
func cpu() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// pairs measures two things n times in turn and returns their medians and the median of their ratios a/b.
func pairs(n int, first, second func() (float64, error)) (medianA, medianB, ratio float64, err error) {
	var as, bs, ratios []float64
	for range n {
		x, err := first()
		if err != nil {
			return 0, 0, 0, err
		}
		y, err := second()
		if err != nil {
			return 0, 0, 0, err
		}
		as, bs, ratios = append(as, x), append(bs, y), append(ratios, x/y)
	}
	return median(as), median(bs), median(ratios), nil
}

// engine opens the model in a child process of this program.
func (b *bench) engine(ctx context.Context) (*llamacpp.Engine, error) {
	return llamacpp.Open(ctx, llamacpp.Config{
		ModelPath: b.model, LibDir: b.lib, Threads: b.threads, ContextTokens: 8192, CacheTokens: 16384,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
}

// output runs this program as one of its parts and returns what it printed.
func output(ctx context.Context, args ...string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return string(out), err
}

// first waits for a sequence's first token.
func first(ctx context.Context, s decode.Sequence) error {
	for {
		chunk, err := s.Next(ctx)
		if err != nil {
			return err
		}
		if len(chunk.Tokens) > 0 {
			return nil
		}
		if chunk.End != "" {
			return fmt.Errorf("the span ended with %q before its first token", chunk.End)
		}
	}
}
