package rollout_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/gguf/tiny"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
)

// The test binary is the engine process, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "engine" {
		if err := llamacpp.Serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// libDir finds the folder of the llama.cpp libraries.
func libDir(t testing.TB) string {
	if dir := os.Getenv("ANYTIME_ENGINE_LIB"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		lib := filepath.Join(dir, "engine", "lib")
		if m, _ := filepath.Glob(filepath.Join(lib, "libllama.*")); len(m) > 0 {
			return lib
		}
	}
	t.Fatal("the llama.cpp libraries are not there: run `make engine`")
	return ""
}

func open(t testing.TB, c llamacpp.Config) *llamacpp.Engine {
	t.Helper()
	c.LibDir, c.Threads = libDir(t), 1
	e, err := llamacpp.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// What a fork said is what the model says behind the same tokens prefilled by themselves, with the same probabilities.
func TestForksEqualPrefills(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{Rate: map[string]float64{tiny.ThinkClose: 0.02, tiny.EOS: 0.01}}); err != nil {
		t.Fatal(err)
	}
	e := open(t, llamacpp.Config{ModelPath: path, KVType: "f32", FlashAttention: "off", ContextTokens: 512, CacheTokens: 8192, Sequences: 16, BatchTokens: 256})
	problems, err := task.DefaultCountdown.Problems(task.HeldOut, 1, 4)
	if err != nil {
		t.Fatal(err)
	}
	c := rollout.Config{
		Settings: rollout.Settings{
			Model: "tiny", Seed: 5, Budgets: []int{8, 24, 64, 96}, Traces: 3, Summaries: 2, SummaryTokens: 12, Sampling: decode.Sampling{Temperature: 1},
		},
		Engine: e, Renderer: renderer(t, e),
	}
	traces, err := rollout.Run(t.Context(), c, problems)
	if err != nil {
		t.Fatal(err)
	}
	merged, eos := 0, 0
	for b, group := range traces {
		for g, tr := range group {
			same(t, e, tr.Thinking, c.SeedOf(problems[b].ID, g), 96, tr.Prompt)
			for _, p := range tr.Points {
				if len(p.Summaries) > c.Summaries {
					merged++
				}
				if p.EOS {
					eos++
				}
				for i, s := range p.Summaries {
					seed := c.SeedOf(problems[b].ID, g, p.Budget+i/c.Summaries, i%c.Summaries)
					same(t, e, s.Span, seed, c.SummaryTokens, tr.Prompt, tr.Thinking.IDs[:p.After], p.Closing)
				}
			}
		}
	}
	if merged == 0 || eos == 0 {
		t.Errorf("%d points with merged budgets and %d with an end of text: the test must see both", merged, eos)
	}
	if err := e.Ready(t.Context()); err != nil { // the child has heard of all that was closed
		t.Fatal(err)
	}
	if n := e.Stats().Sequences; n > 0 {
		t.Errorf("%d sequences were not closed", n)
	}
}

func same(t *testing.T, e decode.Engine, got rollout.Span, seed uint64, most int, prefix ...[]int32) {
	t.Helper()
	seq, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{{IDs: slices.Concat(prefix...)}}, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	defer seq.Close()
	if err := seq.Decode(decode.Span{MaxTokens: most, Until: []string{"</think>"}, Sampling: decode.Sampling{Temperature: 1}}); err != nil {
		t.Fatal(err)
	}
	var tokens []decode.Token
	var end decode.End
	for end == "" {
		chunk, err := seq.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tokens, end = append(tokens, chunk.Tokens...), chunk.End
		if eog := chunk.EOG; eog != nil && (got.EOG == nil || got.EOG.ID != eog.ID || math.Abs(float64(got.EOG.LogProb-eog.LogProb)) > 1e-4) {
			t.Fatalf("the end is %+v; prefilled: %+v", got.EOG, eog)
		}
	}
	if len(tokens) != got.Tokens || end != got.End {
		t.Fatalf("%d tokens, end %s; prefilled: %d, %s", got.Tokens, got.End, len(tokens), end)
	}
	for i, tok := range tokens {
		if tok.ID != got.IDs[i] || math.Abs(float64(tok.LogProb-got.LogProbs[i])) > 1e-4 {
			t.Fatalf("token %d is %d with %v; prefilled: %d with %v", i, got.IDs[i], got.LogProbs[i], tok.ID, tok.LogProb)
		}
	}
}
