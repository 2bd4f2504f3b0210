package trainer_test

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/decode/prompt"
	"anytime/internal/gguf"
	"anytime/internal/train/advantage"
	"anytime/internal/train/model"
	"anytime/internal/train/rollout"
	"anytime/internal/train/trainer"
)

// TestQuantisedEngine samples from the model of ANYTIME_TEST_MODEL, which is quantised, and compares the engine's log-probabilities with
// the trainer's, which has the same weights in float32: with them in float32 in the engine, too, the two must agree. What is left is the
// engine's rounding of what goes into its quantised products.
func TestQuantisedEngine(t *testing.T) {
	path := os.Getenv("ANYTIME_TEST_MODEL")
	if path == "" || os.Getenv("ANYTIME_TEST_ALL") == "" {
		t.Skip("a longer test, on the model of ANYTIME_TEST_MODEL: make test-all runs it")
	}
	m := load(t, path, model.Config{BatchTokens: 512})
	whole := filepath.Join(t.TempDir(), "f32.gguf")
	if err := m.WriteModel(whole, gguf.F32); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		config     llamacpp.Config
		most       float64 // mean divergence of a token
	}{
		{"float32", whole, llamacpp.Config{KVType: "f32", FlashAttention: "off"}, 1e-6},
		{"float32, as it serves", whole, llamacpp.Config{}, 1e-4},
		{"quantised, as it serves", path, llamacpp.Config{}, 1e-2},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.ModelPath, c.config.LibDir, c.config.ContextTokens, c.config.CacheTokens = c.path, libDir(t), 512, 4096
			c.config.Sequences, c.config.Threads = 8, 1
			e, err := llamacpp.Open(t.Context(), c.config)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			r, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
			if err != nil {
				t.Fatal(err)
			}
			s := rollout.Settings{
				Model: "smol", Seed: 1, Budgets: []int{96}, Traces: 2, Summaries: 1, SummaryTokens: 24, Sampling: decode.Sampling{Temperature: 1},
			}
			groups, err := rollout.Run(t.Context(), rollout.Config{Settings: s, Engine: e, Renderer: r}, problems())
			if err != nil {
				t.Fatal(err)
			}
			method, err := advantage.New(budget.PriorUniform, s.Budgets, advantage.BRPO, advantage.Siblings)
			if err != nil {
				t.Fatal(err)
			}
			var examples []model.Example
			var trees []model.Tree
			for _, group := range groups {
				list, err := trainer.FromTraces(method, s, false, group)
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range list {
					examples, trees = append(examples, x), append(trees, x.Tree)
				}
			}
			got, err := m.LogProbs(t.Context(), trees)
			if err != nil {
				t.Fatal(err)
			}
			var kl, entropy float64
			tokens := 0
			for i, x := range examples {
				for j, w := range x.Weight {
					if w != 0 {
						d := float64(got[i][j] - x.Old[j]) // sampled by the engine: E[exp(d)-d-1] is KL(engine || trainer)
						kl, entropy = kl+math.Exp(d)-d-1, entropy-float64(x.Old[j])
						tokens++
					}
				}
			}
			mismatch := trainer.Correct(examples, got, 2)
			t.Logf("%d tokens: KL %.2e, entropy %.2f, log-probs differ by %.2e on average and at most %.2e, %.4f truncated",
				tokens, kl/float64(tokens), entropy/float64(tokens), mismatch.Mean, mismatch.Max, mismatch.Truncated)
			if tokens < 500 || !(kl/float64(tokens) < c.most) {
				t.Errorf("KL is %v over %d tokens, want less than %v over 500", kl/float64(tokens), tokens, c.most)
			}
		})
	}
}
