package rollout_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/decode/prompt"
	"anytime/internal/gguf/tiny"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
)

// BenchmarkRollouts samples the same thoughts and summaries through forks and with every summary's prefix prefilled anew, by the model
// of ANYTIME_TEST_MODEL, else by the tiny one.
func BenchmarkRollouts(b *testing.B) {
	path := os.Getenv("ANYTIME_TEST_MODEL")
	if path == "" {
		path = filepath.Join(b.TempDir(), "tiny.gguf")
		if err := tiny.WriteFile(path, 1, tiny.Options{}); err != nil {
			b.Fatal(err)
		}
	}
	e := open(b, llamacpp.Config{ModelPath: path, ContextTokens: 1024, CacheTokens: 16384, Sequences: 32})
	r, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
	if err != nil {
		b.Fatal(err)
	}
	problems, err := task.DefaultCountdown.Problems(task.HeldOut, 1, 2)
	if err != nil {
		b.Fatal(err)
	}
	c := rollout.Config{
		Settings: rollout.Settings{
			Seed: 1, Budgets: []int{64, 128, 192, 256}, Traces: 2, Summaries: 2, SummaryTokens: 32, Sampling: decode.Sampling{Temperature: 1},
		},
		Engine: e, Renderer: r, Concurrency: 4,
	}
	last := slices.Max(c.Budgets)
	speed := map[string]float64{}
	for _, by := range []struct {
		name   string
		sample func(context.Context) (int, error)
	}{
		{"forks", func(ctx context.Context) (tokens int, err error) {
			traces, err := rollout.Run(ctx, c, problems)
			for _, t := range slices.Concat(traces...) {
				tokens += t.Thinking.Tokens + t.SummaryTokens()
			}
			return tokens, err
		}},
		{"prefills", func(ctx context.Context) (int, error) {
			thoughts := c
			thoughts.Budgets = []int{last}
			return separate(ctx, thoughts, c.Budgets, problems)
		}},
	} {
		b.Run(by.name, func(b *testing.B) {
			tokens := 0
			for b.Loop() {
				n, err := by.sample(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				tokens += n
			}
			speed[by.name] = float64(tokens) / b.Elapsed().Seconds()
			b.ReportMetric(speed[by.name], "tokens/s")
			if by.name == "prefills" {
				b.ReportMetric(speed["forks"]/speed["prefills"], "x-forks")
			}
		})
	}
}

var round atomic.Int64

// separate samples thoughts whose summary at the last budget is taken as ever, and then prefills those at the others.
func separate(ctx context.Context, c rollout.Config, budgets []int, problems []task.Problem) (int, error) {
	var mu sync.Mutex
	var failure error
	tokens := 0
	var wg sync.WaitGroup
	places := make(chan struct{}, c.Concurrency*len(budgets)*c.Summaries)
	c.OnTrace = func(t rollout.Trace) {
		mu.Lock()
		tokens += t.Thinking.Tokens + t.SummaryTokens()
		mu.Unlock()
		for i, budget := range budgets[:len(budgets)-1] {
			thinking := t.Thinking.IDs[:min(budget, t.Thinking.Tokens)]
			for a := range c.Summaries {
				wg.Go(func() {
					places <- struct{}{}
					defer func() { <-places }()
					// Another first word: nothing is cached.
					first := decode.Text(fmt.Sprint(round.Add(1), " "))
					prefix := []decode.Part{first, {IDs: t.Prompt}, {IDs: thinking}, {IDs: t.Points[0].Closing}}
					n, err := one(ctx, c, prefix, uint64(i*100+a))
					mu.Lock()
					defer mu.Unlock()
					tokens += n
					if err != nil {
						failure = err
					}
				})
			}
		}
	}
	_, err := rollout.Run(ctx, c, problems)
	wg.Wait()
	if err == nil {
		err = failure
	}
	return tokens, err
}

func one(ctx context.Context, c rollout.Config, prefix []decode.Part, seed uint64) (n int, err error) {
	seq, err := c.Engine.Open(ctx, decode.Request{Prompt: prefix, Seed: seed})
	if err != nil {
		return 0, err
	}
	defer seq.Close()
	if err := seq.Decode(decode.Span{MaxTokens: c.SummaryTokens, Until: []string{"</think>"}, Sampling: c.Sampling}); err != nil {
		return 0, err
	}
	for {
		chunk, err := seq.Next(ctx)
		if n += len(chunk.Tokens); err != nil || chunk.End != "" {
			return n, err
		}
	}
}
