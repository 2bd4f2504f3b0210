// Command bench measures what the server promises, as ratios within one run, and writes BENCHMARKS.md.
//
//	go run ./cmd/bench [-quick] [-only interrupts,votes] [-runs 5] [-limit 15m] [-model GGUF] [-engine-lib DIR] [-server bin/server] [-out BENCHMARKS.md]
//
// Each part writes its section of the file when it is done; sections of parts that are not measured stay as they are.
//
// The two sides of a ratio are measured in turn (A B A B …), so that a machine that others use too disturbs both alike; the ratio is the
// median of the pairs' ratios. Run by another name it is one of its own parts: "bench engine" the engine's child process, "bench bare"
// the loop against llama.cpp without any server that the server is compared with.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

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
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = run(ctx)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the benchmarks.
type bench struct {
	model, lib, server string
	runs, threads      int
	count              int // requests with a deadline
	quick              bool
	limit              time.Duration // of a part
	until              time.Time     // when the part under way begins nothing more
	pid                int           // of the server that was started last
	out                io.Writer
}

// part is one of the benchmarks, a section of the report.
type part struct {
	name, title string
	run         func(context.Context) error
}

func (b *bench) parts() []part {
	return []part{
		{"interrupts", "Interrupt to first summary token", b.interrupts},
		{"votes", "Four votes on one thought", b.votes},
		{"streams", "Throughput and time to first token beside llama-server", b.streams},
		{"loop", "Server against the bare engine loop", b.throughput},
		{"checkpoints", "Thinking with and without checkpoints", b.checkpoints},
		{"deadlines", "Deadlines", b.deadlines},
		{"remote", "In front of llama-server", b.remote},
		{"ollama", "In front of Ollama", b.ollama},
		{"readers", "A thousand streams on one replica", b.readers},
		{"replicas", "Interrupts across replicas", b.replicas},
		{"kills", "Answers when the engine is killed", b.kills},
		{"idle", "Idle readers", b.idle},
		{"load", "After a load", b.load},
		{"training", "Training", b.training},
	}
}

func run(ctx context.Context) error {
	b := &bench{}
	var path, only string
	flag.StringVar(&b.model, "model", "models/cache/SmolLM2-135M-Instruct.Q4_1.gguf", "GGUF file")
	flag.StringVar(&b.lib, "engine-lib", "engine/lib", "folder of the llama.cpp libraries")
	flag.StringVar(&b.server, "server", "bin/server", "server binary")
	flag.IntVar(&b.runs, "runs", 0, "pairs of measurements for each row; 0: 5, with -quick 1")
	flag.IntVar(&b.threads, "threads", max(1, runtime.NumCPU()-1), "threads of the engine, on both sides")
	flag.StringVar(&path, "out", "BENCHMARKS.md", "file to write")
	flag.IntVar(&b.count, "deadlines", 0, "requests with a deadline for each of its rows; 0: 200, with -quick 40")
	flag.StringVar(&only, "only", "", "parts to measure, with commas between: "+strings.Join(b.names(), ", ")+"; those of the file stay as they are")
	flag.BoolVar(&b.quick, "quick", false, "all in about a quarter of an hour, from fewer and shorter measurements")
	flag.DurationVar(&b.limit, "limit", 0, "time for each part, after which it begins no further measurement; 0: 15m, with -quick 1m")
	flag.Parse()
	runs, count, limit := 5, 200, 15*time.Minute
	if b.quick {
		runs, count, limit = 1, 40, time.Minute
	}
	b.runs, b.count, b.limit = cmp.Or(b.runs, runs), cmp.Or(b.count, count), cmp.Or(b.limit, limit)
	for name := range strings.SplitSeq(only, ",") {
		if only != "" && !slices.Contains(b.names(), name) {
			return fmt.Errorf("-only: there is no part %q; there are %s", name, strings.Join(b.names(), ", "))
		}
	}
	r, err := readReport(path)
	if err != nil {
		return err
	}
	var failed error
	for _, p := range b.parts() {
		if only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		fmt.Printf("\n## %s\n\n", p.title)
		text := b.measure(ctx, p)
		if err := ctx.Err(); err != nil {
			return err
		}
		if text.err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.name, text.err))
			continue // what the file has of it stays
		}
		r[p.title] = text.section
		// After each part, so that what was measured is kept if the next one is broken off.
		if err := r.write(path, b.head(), b.parts()); err != nil {
			return err
		}
	}
	return failed
}

func (b *bench) names() (names []string) {
	for _, p := range b.parts() {
		names = append(names, p.name)
	}
	return names
}

// measure runs a part and returns its section.
func (b *bench) measure(ctx context.Context, p part) (result struct {
	section string
	err     error
}) {
	var text strings.Builder
	b.out = io.MultiWriter(os.Stdout, &text)
	began := time.Now()
	b.until = began.Add(b.limit)
	load := loadAverage()
	if result.err = p.run(ctx); result.err != nil {
		return result
	}
	flags := fmt.Sprintf("-only %s -runs %d", p.name, b.runs)
	if b.quick {
		flags += " -quick"
	}
	b.printf("\n%s, in %v, at a load of %s before (`%s`).\n", began.UTC().Format("2006-01-02 15:04 UTC"), time.Since(began).Round(time.Second), load, flags)
	result.section = text.String()
	return result
}

// late says that the part's time is up. What has begun goes on.
func (b *bench) late() bool { return time.Now().After(b.until) }

func (b *bench) head() string {
	return fmt.Sprintf("# Benchmarks\n\nRatios within one run of `cmd/bench`, a part of `make bench`.\n\n- Machine: %s, %d cores, %s/%s\n"+
		"- Model: `%s`, threads: %d; llama.cpp v0.5.0 by yzma v1.27.0; %s\n"+
		"- A ratio of pairs is the median of the ratios of `-runs` pairs measured in turn. Below each table: when, how long, and how busy the machine was with other\n  things before it (load average over a minute; a quiet machine has 0).\n",
		cpu(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, filepath.Base(b.model), b.threads, runtime.Version())
}

func (b *bench) printf(format string, args ...any) { fmt.Fprintf(b.out, format, args...) }

// loadAverage is the system's over the last minute.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	load, _, _ := strings.Cut(string(text), " ")
	return load
}

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

// paired is what pairs measured: medians of both sides and the median of the ratios a/b.
type paired struct{ a, b, ratio float64 }

// pairs measures two things in turn, b.runs times or until the part's time is up, but once at least.
func (b *bench) pairs(first, second func() (float64, error)) (paired, error) {
	var as, bs, ratios []float64
	for i := range b.runs {
		if i > 0 && b.late() {
			break
		}
		x, err := first()
		if err != nil {
			return paired{}, err
		}
		y, err := second()
		if err != nil {
			return paired{}, err
		}
		as, bs, ratios = append(as, x), append(bs, y), append(ratios, x/y)
	}
	return paired{median(as), median(bs), median(ratios)}, nil
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
