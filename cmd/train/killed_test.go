package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"anytime/internal/gguf/tiny"
	"anytime/internal/train/rollout"
	"anytime/internal/train/trainer"
)

// asCommand, set in the environment, makes the test binary the command.
const asCommand = "ANYTIME_TRAIN_COMMAND"

// process prepares the command as a process of its own.
func process(ctx context.Context, args ...string) (cmd *exec.Cmd, said *bytes.Buffer) {
	cmd, said = exec.CommandContext(ctx, os.Args[0], args...), new(bytes.Buffer) //nolint:gosec // the test itself
	cmd.Env = append(os.Environ(), asCommand+"=1")
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = 10 * time.Second
	return cmd, said
}

// killed runs the command and kills it after a random time, some times, before it may come to its end.
func killed(t *testing.T, rng *rand.Rand, times int, longest time.Duration, args ...string) {
	t.Helper()
	for range times {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.Int64N(int64(longest))))
		cmd, said := process(ctx, args...)
		err := cmd.Run()
		killed := ctx.Err() != nil
		cancel()
		if err != nil && !killed {
			t.Fatalf("%v: %s", err, said)
		}
		t.Logf("ended with %v", err)
	}
	cmd, said := process(t.Context(), args...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("after %d kills: %v: %s", times, err, said)
	}
}

// metrics reads a run's.
func metrics[T any](t *testing.T, folder string) (list []T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var m T
		switch err := d.Decode(&m); {
		case errors.Is(err, io.EOF):
			return list
		case err != nil:
			t.Fatal(err)
		}
		list = append(list, m)
	}
}

// tinyRun are the flags of a run on a tiny model, whose rounding depends little on batches.
func tinyRun(t *testing.T) (dir string, flags []string) {
	t.Helper()
	dir = t.TempDir()
	model := filepath.Join(dir, "tiny.gguf")
	if err := tiny.WriteFile(model, 1, tiny.Options{Rate: map[string]float64{tiny.ThinkClose: 0.05, tiny.EOS: 0.05}}); err != nil {
		t.Fatal(err)
	}
	return dir, []string{
		"-model", model, "-engine-lib", libDir(t), "-threads", "1", "-ctx", "512", "-rank", "2", "-lr", "1e-3", "-kv-type", "f32", "-flash-attention", "off",
	}
}

// kills is how often a run is killed.
func kills() int {
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		return 12
	}
	return 3
}

// TestKilled kills fine-tuning and rounds at any moment; what comes of them is what comes of an undisturbed run.
func TestKilled(t *testing.T) {
	dir, flags := tinyRun(t)
	rng := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")

	sft := append([]string{"sft", "-numbers", "2", "-train", "lora", "-batch", "2", "-steps", "8", "-checkpoint-every", "2"}, flags...)
	began := time.Now()
	killed(t, rng, 0, 0, append(sft, "-out", a)...)
	killed(t, rng, kills(), time.Since(began), append(sft, "-out", b)...)
	want, got := metrics[trainer.SFTProgress](t, a), metrics[trainer.SFTProgress](t, b)
	if len(want) != 8 || len(got) != 8 {
		t.Fatalf("%d and %d steps", len(want), len(got))
	}
	for i := range want {
		if got[i].Step != want[i].Step || got[i].Loss != want[i].Loss {
			t.Errorf("killed: %+v; undisturbed: %+v", got[i], want[i])
		}
	}
	one, two := read(t, filepath.Join(a, "adapter.gguf")), read(t, filepath.Join(b, "adapter.gguf"))
	if !bytes.Equal(one, two) {
		t.Error("the adapters of fine-tuning differ")
	}

	a, b = filepath.Join(dir, "c"), filepath.Join(dir, "d")
	rl := append([]string{"rl", "-countdown", "train", "-n", "4", "-budgets", "4,12", "-traces", "2", "-summaries", "2",
		"-summary-tokens", "6", "-batch", "2", "-mini-batch", "1", "-rounds", "3"}, flags...)
	began = time.Now()
	killed(t, rng, 0, 0, append(rl, "-out", a)...)
	killed(t, rng, kills(), time.Since(began), append(rl, "-out", b)...)
	rounds, others := metrics[trainer.Round](t, a), metrics[trainer.Round](t, b)
	if len(rounds) != 3 || len(others) != 3 {
		t.Fatalf("%d and %d rounds", len(rounds), len(others))
	}
	for i := range rounds {
		if rounds[i].Sampled != others[i].Sampled || math.Abs(rounds[i].Loss-others[i].Loss) > 1e-5 {
			t.Errorf("killed: %+v; undisturbed: %+v", others[i], rounds[i])
		}
		name := fmt.Sprintf("rollouts-%06d.jsonl", i+1)
		if !same(t, filepath.Join(a, name), filepath.Join(b, name)) {
			t.Errorf("%s differs", name)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(b, ".*")); len(left) > 0 {
		t.Errorf("what was half written is still there: %q", left)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// same says whether two files have the same texts.
func same(t *testing.T, a, b string) bool {
	t.Helper()
	texts := func(path string) map[string]string {
		_, traces, err := rollout.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]string{}
		for _, tr := range traces {
			text := tr.Thinking.Text
			for _, p := range tr.Points {
				for _, s := range p.Summaries {
					text += "|" + s.Text
				}
			}
			all[fmt.Sprint(tr.Problem, tr.Index)] = text
		}
		return all
	}
	return fmt.Sprint(texts(a)) == fmt.Sprint(texts(b))
}

// TestFull: where no more can be written, the error says so, and with room again the same command goes on.
func TestFull(t *testing.T) {
	dir, flags := tinyRun(t)
	out := filepath.Join(dir, "run")
	rl := append([]string{"rl", "-countdown", "train", "-n", "4", "-budgets", "4,12", "-traces", "2", "-summaries", "2",
		"-summary-tokens", "6", "-batch", "2", "-mini-batch", "1", "-rounds", "2", "-out", out}, flags...)
	info, err := os.Stat(filepath.Join(dir, "tiny.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	// Blocks of 512 bytes: rollouts find room for a while, the checkpoint none.
	for _, blocks := range []int64{1, 8, 24, info.Size() / 512} {
		cmd, said := process(t.Context(), rl...)
		cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -f %d; exec "$0" "$@"`, blocks), os.Args[0]}, rl...)
		if cmd.Path, err = exec.LookPath("sh"); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Run(); err == nil && blocks < 100 {
			t.Errorf("%d blocks were enough: %s", blocks, said)
		} else if err != nil && !strings.Contains(said.String(), "file too large") {
			t.Errorf("%d blocks: %v: %s", blocks, err, said)
		}
	}
	killed(t, nil, 0, 0, rl...)
	if list := metrics[trainer.Round](t, out); len(list) != 2 {
		t.Errorf("%d rounds", len(list))
	}
}

// TestEngineDies kills the engine while it samples: it comes back, and the rollouts go on.
func TestEngineDies(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the engine's process is found in /proc")
	}
	dir, flags := tinyRun(t)
	cmd, said := process(t.Context(), append([]string{"rl", "-countdown", "train", "-n", "8", "-budgets", "64,128", "-traces", "4", "-summaries", "2",
		"-summary-tokens", "16", "-batch", "8", "-mini-batch", "8", "-rounds", "1", "-out", filepath.Join(dir, "run")}, flags...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rollouts, deaths := filepath.Join(dir, "run", "rollouts-000001.jsonl"), 0
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for size := int64(0); ; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("%v: %s", err, said)
			}
			if deaths < 2 || strings.Count(said.String(), "engine process died") < 2 {
				t.Errorf("the engine died %d times: %s", deaths, said)
			}
			if list := metrics[trainer.Round](t, filepath.Join(dir, "run")); len(list) != 1 || list[0].Mismatch.Max > 1e-3 {
				t.Errorf("rounds %+v", list)
			}
			return
		case <-tick.C:
		}
		info, err := os.Stat(rollouts)
		if err != nil || info.Size() <= size || deaths == 2 {
			continue
		}
		size = info.Size()
		children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid))
		for _, path := range children {
			list, _ := os.ReadFile(path) // the thread may be gone
			var pid int
			if n, _ := fmt.Sscan(string(list), &pid); n == 1 {
				if p, err := os.FindProcess(pid); err == nil && p.Kill() == nil {
					deaths++
				}
			}
		}
	}
}
