package model_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"anytime/internal/gguf"
	"anytime/internal/train/model"
)

// BenchmarkStep trains a model of 0.9 million weights on what the recipes of BRPO make of a thought: a prompt of 40 tokens, 512 of
// thinking, and at each quarter of it four summaries of 24 behind 12 that close the thought; packed, and as sequences of their own.
// ANYTIME_TEST_BACKEND names another backend.
func BenchmarkStep(b *testing.B) {
	const prompt, thinking, budgets, summaries, closing, summary = 40, 512, 4, 4, 12, 24
	path := filepath.Join(b.TempDir(), "bench.gguf")
	c := gguf.Config{
		Architecture: "llama", ContextTokens: 1024, Layers: 4, Width: 128, FeedForward: 384, Heads: 4, KVHeads: 4, HeadWidth: 32,
		RopeBase: 10000, NormEps: 1e-5, Tied: true,
	}
	tok := gguf.Tokenizer{Pre: "gpt-2", Merges: []string{}}
	for i := range 128 {
		tok.Tokens, tok.Types = append(tok.Tokens, fmt.Sprint("t", i)), append(tok.Types, gguf.TokenNormal)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	err := gguf.WriteFile(path, func(w io.Writer) error {
		return gguf.WriteModel(w, c, tok, gguf.F32, func(info gguf.WeightInfo) ([]float32, error) {
			n := int(info.Dims[0])
			if len(info.Dims) == 2 {
				n *= int(info.Dims[1])
			}
			values := make([]float32, n)
			for i := range values {
				values[i] = float32(0.1 * rng.NormFloat64())
			}
			return values, nil
		})
	})
	if err != nil {
		b.Fatal(err)
	}
	draw := func(n int) []int32 {
		tokens := make([]int32, n)
		for i := range tokens {
			tokens[i] = rng.Int32N(128)
		}
		return tokens
	}
	tree := model.Tree{Trunk: draw(prompt + thinking)}
	trained := thinking + budgets*summaries*summary
	for s := 1; s <= budgets; s++ {
		for range summaries {
			tree.Branches = append(tree.Branches, model.Branch{At: prompt + s*thinking/budgets, Tokens: draw(closing + summary)})
		}
	}
	learn := func(t model.Tree, trained int) model.Example {
		e := model.Example{Tree: t, Weight: make([]float32, t.Len())}
		for i := range trained {
			e.Weight[len(e.Weight)-1-i] = 1 / float32(thinking)
		}
		return e
	}
	packed := learn(tree, budgets*summaries*(closing+summary)+thinking)
	var alone []model.Example
	for i, path := range separate(tree) {
		n := summary
		if i == 0 {
			n = thinking
		}
		alone = append(alone, learn(path, n))
	}
	m := open(b, path, model.Config{Train: model.All, Optimizer: model.Optimizer{Rate: 1e-4}})
	step := func(examples []model.Example) time.Duration {
		s, err := m.Step(b.Context(), examples, model.CrossEntropy{})
		if err != nil {
			b.Fatal(err)
		}
		return s.Elapsed
	}
	one := []model.Example{packed}
	step(one)   // compiles
	step(alone) // this, too
	var together, apart time.Duration
	for b.Loop() { // in turn, so that what else the machine does weighs on both
		together += step(one)
		apart += step(alone)
	}
	// Of the same work, whichever way it is done.
	speed := func(took time.Duration) float64 { return float64(trained*b.N) / took.Seconds() }
	b.ReportMetric(speed(together), "packed-tokens/s")
	b.ReportMetric(speed(apart), "separate-tokens/s")
	b.ReportMetric(speed(together)/speed(apart), "x")
}
