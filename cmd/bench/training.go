package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// training measures the trainer, by its packages' own benchmarks.
func (b *bench) training(ctx context.Context) error {
	b.printf("A step on what BRPO makes of one thought (512 tokens of thinking, 16 summaries), packed as a tree and as sequences of their own, of a model of 0.9M\n" +
		"weights. Tokens/s are those of the same work.\n\n")
	b.printf("| backend | packed, tokens/s | separate, tokens/s | ratio |\n|---|---|---|---|\n")
	backends := append([]string{"go"}, strings.Fields(os.Getenv("ANYTIME_BENCH_BACKENDS"))...)
	for _, backend := range backends {
		var flags, env []string
		if backend != "go" {
			kind, _, _ := strings.Cut(backend, ":")
			flags, env = []string{"-tags", kind}, []string{"ANYTIME_TEST_BACKEND=" + backend}
		}
		m, err := b.benchmark(ctx, "./internal/train/model", "BenchmarkStep", env, flags...)
		if err != nil {
			return err
		}
		b.printf("| %s | %.0f | %.0f | %.2f |\n", filepath.Base(backend), m["packed-tokens/s"], m["separate-tokens/s"], m["x"])
	}
	b.printf("\nRollouts: two problems, two thoughts of up to 256 tokens each, two summaries at each of four budgets; summaries as forks of the thought, and with each\n" +
		"one's prefix prefilled anew.\n\n| model | forks, tokens/s | prefills, tokens/s | ratio |\n|---|---|---|---|\n")
	models := []string{"models/reasoner/reasoner.gguf"}
	if !b.quick {
		models = append(models, b.model)
	}
	for _, path := range models {
		path, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		m, err := b.benchmark(ctx, "./internal/train/rollout", "BenchmarkRollouts", []string{"ANYTIME_TEST_MODEL=" + path})
		if err != nil {
			return err
		}
		b.printf("| %s | %.0f | %.0f | %.2f |\n", filepath.Base(path), m["forks:tokens/s"], m["prefills:tokens/s"], m["x-forks"])
	}
	return nil
}

// benchmark runs a Go benchmark and returns its metrics by unit; those of a sub-benchmark also by its name and unit.
func (b *bench) benchmark(ctx context.Context, pkg, name string, env []string, flags ...string) (map[string]float64, error) {
	lib, err := filepath.Abs(b.lib)
	if err != nil {
		return nil, err
	}
	args := append([]string{"test", "-run", "^$", "-bench", "^" + name + "$", "-benchtime", strconv.Itoa(b.runs) + "x", "-timeout", "1h"}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = append(append(os.Environ(), "GOEXPERIMENT=simd", "ANYTIME_ENGINE_LIB="+lib), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, out)
	}
	metrics := map[string]float64{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], name) {
			continue
		}
		_, sub, _ := strings.Cut(fields[0], "/")
		sub, _, _ = strings.Cut(sub, "-")
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, err
			}
			metrics[fields[i+1]] = value
			metrics[sub+":"+fields[i+1]] = value
		}
	}
	if len(metrics) == 0 {
		return nil, errors.Join(fmt.Errorf("%s said nothing: %s", name, out))
	}
	return metrics, nil
}
