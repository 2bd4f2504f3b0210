package trainer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/decode/prompt"
	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
	"anytime/internal/grade"
	"anytime/internal/train/advantage"
	"anytime/internal/train/model"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
	"anytime/internal/train/trainer"
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
	lib := filepath.Join("..", "..", "..", "engine", "lib")
	if m, _ := filepath.Glob(filepath.Join(lib, "libllama.*")); len(m) == 0 {
		t.Fatal("the llama.cpp libraries are not there: run `make engine`")
	}
	return lib
}

func tinyModel(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{Rate: map[string]float64{tiny.ThinkClose: 0.05, tiny.EOS: 0.05}}); err != nil {
		t.Fatal(err)
	}
	return path
}

// open loads a model into an engine whose log-probabilities depend little on its batches.
func open(t *testing.T, path string) (*llamacpp.Engine, *prompt.Renderer) {
	t.Helper()
	e, err := llamacpp.Open(t.Context(), llamacpp.Config{
		ModelPath: path, LibDir: libDir(t), KVType: "f32", FlashAttention: "off", ContextTokens: 256, CacheTokens: 4096, Sequences: 16, Threads: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	r, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	return e, r
}

func load(t *testing.T, path string, c model.Config) *model.Model {
	t.Helper()
	m, err := model.Open(path, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func problems() (list []task.Problem) {
	for i := range 4 {
		list = append(list, task.Problem{ID: fmt.Sprint("p", i), Text: "3 + 4", Task: "math", Problem: grade.Problem{Answers: []string{"7"}}})
	}
	return list
}

// teacher is right every other time, so that there is something left to learn.
func teacher() iter.Seq[task.Example] {
	return func(yield func(task.Example) bool) {
		for i := 0; ; i++ {
			e := task.Example{Problem: problems()[0], Thinking: "3+4", Cut: i%3 == 0, Summary: `\boxed{7}`}
			if i%2 == 0 {
				e.Summary = `\boxed{9}`
			}
			if !yield(e) {
				return
			}
		}
	}
}

// lines reads metrics.
func lines[T any](t *testing.T, folder string) (list []T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		list = append(list, v)
	}
	return list
}

func TestExample(t *testing.T) {
	e, r := open(t, tinyModel(t))
	ids := func(text string) (ids []int32) {
		tokens, err := e.Tokenize(t.Context(), decode.Text(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, tok := range tokens {
			ids = append(ids, tok.ID)
		}
		return ids
	}
	opening := ids("<|im_start|>user\n3 + 4<|im_end|>\n<|im_start|>assistant\n<think>\n")
	for _, c := range []struct {
		name   string
		change func(*task.Example)
		want   [][]int32 // forced, trained, forced, trained
	}{
		{"whole", func(*task.Example) {}, [][]int32{opening, ids("3+4</think>"), ids("\n\n**Final Answer**\n"), ids(`\boxed{9}<|im_end|>`)}},
		{"cut", func(e *task.Example) { e.Cut = true }, [][]int32{
			opening, ids("3+4"), ids("...\n\n...\n\n</think>\n\n**Final Answer**\n"), ids(`\boxed{9}<|im_end|>`),
		}},
		{"no thought", func(e *task.Example) { e.Thinking = "" }, [][]int32{
			opening, ids("</think>"), ids("\n\n**Final Answer**\n"), ids(`\boxed{9}<|im_end|>`),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var example task.Example
			for example = range teacher() {
				break
			}
			example.Cut = false
			c.change(&example)
			got, err := trainer.FromExample(t.Context(), e, r, example, "")
			if err != nil {
				t.Fatal(err)
			}
			var weight []float32
			for i, piece := range c.want {
				weight = append(weight, slices.Repeat([]float32{float32(i % 2)}, len(piece))...)
			}
			if want := slices.Concat(c.want...); !slices.Equal(got.Tree.Trunk, want) || !slices.Equal(got.Weight, weight) {
				t.Errorf("tokens %v\nwant   %v\nweights %v\nwant    %v", got.Tree.Trunk, want, got.Weight, weight)
			}
		})
	}
}

// TestSFT: the loss falls, and a run that was stopped goes on as if it had not been.
func TestSFT(t *testing.T) {
	path := tinyModel(t)
	e, r := open(t, path)
	config := model.Config{Train: model.Adapter, Seed: 1, Optimizer: model.Optimizer{Rate: 1e-2}}
	run := func(folder string, batch, steps int) error {
		return trainer.SFT{
			SFTSettings: trainer.SFTSettings{Model: "tiny", Batch: batch},
			Model:       load(t, path, config), Engine: e, Renderer: r, Examples: teacher(), Folder: folder, Every: 2,
		}.Run(t.Context(), steps)
	}
	whole, parts := t.TempDir(), t.TempDir()
	for _, c := range []struct {
		folder string
		steps  int
	}{{whole, 5}, {parts, 2}, {parts, 5}} {
		if err := run(c.folder, 3, c.steps); err != nil {
			t.Fatal(err)
		}
		if c.folder == parts && c.steps == 2 { // a step that was not committed leaves a line, or half of it
			f, err := os.OpenFile(filepath.Join(parts, "metrics.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(f, `{"step":3}`+"\n"+`{"st`)
			f.Close()
		}
	}
	want, got := lines[trainer.SFTProgress](t, whole), lines[trainer.SFTProgress](t, parts)
	if len(want) != 5 || len(got) != 5 {
		t.Fatalf("%d and %d steps", len(want), len(got))
	}
	for i := range want {
		if got[i].Step != i+1 || got[i].Loss != want[i].Loss || got[i].GradientNorm != want[i].GradientNorm {
			t.Errorf("step %d: %+v; without a stop %+v", i+1, got[i], want[i])
		}
	}
	if !(want[4].Loss < 0.9*want[0].Loss) {
		t.Errorf("the loss went from %v to %v", want[0].Loss, want[4].Loss)
	}
	if err := run(parts, 4, 6); err == nil || !strings.Contains(err.Error(), "begun with the settings") {
		t.Errorf("another batch size: %v", err)
	}
}

// fineTuned is a model that has learned to answer, and is right about every other time.
func fineTuned(t *testing.T) string {
	t.Helper()
	path := tinyModel(t)
	e, r := open(t, path)
	m := load(t, path, model.Config{Train: model.All, Optimizer: model.Optimizer{Rate: 3e-3}})
	err := trainer.SFT{Model: m, Engine: e, Renderer: r, Examples: teacher(), Folder: t.TempDir(), Every: 100, SFTSettings: trainer.SFTSettings{Batch: 6}}.Run(t.Context(), 40)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "tuned.gguf")
	if err := m.WriteModel(out, gguf.F32); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRounds does a round, stops the next while it samples and goes on with it as another process would: with another engine, and a model
// that knows nothing but the folder.
func TestRounds(t *testing.T) {
	path, folder := fineTuned(t), t.TempDir()
	e, r := open(t, path)
	config := model.Config{Train: model.Adapter, Seed: 1, Optimizer: model.Optimizer{Rate: 2e-3}}
	calls := 0
	c := trainer.RLConfig{
		RLSettings: trainer.RLSettings{
			Rollout: rollout.Settings{
				Model: "tuned", Seed: 3, Budgets: []int{2, 12}, Traces: 8, Summaries: 2, SummaryTokens: 14, Sampling: decode.Sampling{Temperature: 1},
			},
			Prior: budget.PriorUniform, Thinking: advantage.BRPO, Summary: advantage.Siblings, Batch: 4, Mini: 2,
			Clip: 0.2, Training: trainer.Training{Train: config.Train, Optimizer: config.Optimizer, Seed: config.Seed},
		},
		Engine: e, Renderer: r, Problems: problems(), Folder: folder, OnTrace: func(rollout.Trace) { calls++ },
	}
	begin := func(e *llamacpp.Engine) *trainer.RL {
		t.Helper()
		c.Model, c.Engine = load(t, path, config), e
		run, err := trainer.OpenRL(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return run
	}
	run := begin(e)
	first, err := run.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first.Steps != 2 || first.Reward == 0 || first.Reward == 1 || first.AdvantageVariance == 0 || first.GradientNorm == 0 || first.Trained == 0 {
		t.Errorf("the round has learned nothing: %+v", first)
	}
	if first.Mismatch.Max > 1e-3 || first.Mismatch.Max == 0 {
		t.Errorf("engine and trainer differ by %v", first.Mismatch)
	}
	if names := e.AdapterNames(); !slices.Equal(names, []string{"round-1"}) {
		t.Errorf("the engine has %q", names)
	}

	// The second round is stopped while it samples, and gone on with by another process.
	ctx, cancel := context.WithCancel(t.Context())
	calls = 0
	c.OnTrace = func(rollout.Trace) {
		if calls++; calls == 3 {
			cancel()
		}
	}
	if err := run.Close(); err != nil {
		t.Fatal(err)
	}
	run = begin(e)
	if _, err := run.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("a round that is stopped: %v", err)
	}
	if err := run.Close(); err != nil {
		t.Fatal(err)
	}
	kept := calls
	other, _ := open(t, path)
	run = begin(other)
	defer run.Close()
	if run.Done() != 1 {
		t.Fatalf("%d rounds are done", run.Done())
	}
	second, err := run.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if second.Round != 2 || calls != 4*8 {
		t.Errorf("round %d; %d traces before the stop, %d in all", second.Round, kept, calls)
	}
	if second.Reward < first.Reward+0.1 {
		t.Errorf("the reward went from %v to %v", first.Reward, second.Reward)
	}
	if all := lines[trainer.Round](t, folder); len(all) != 2 || all[0].Loss != first.Loss || all[1].Round != 2 {
		t.Errorf("metrics %+v", all)
	}

	// The second round was sampled with the weights that the first has learned.
	s, traces, err := rollout.Read(filepath.Join(folder, "rollouts-000002.jsonl"))
	if err != nil || s.Adapter != "round-1" || len(traces) != 32 {
		t.Fatalf("%d traces with adapter %q, %v", len(traces), s.Adapter, err)
	}
	away := func(round int) (far float64) {
		m := load(t, path, model.Config{Adapter: run.Adapter(round)})
		for _, tr := range traces {
			ids := slices.Concat(tr.Prompt, tr.Thinking.IDs)
			got, err := m.LogProbs(t.Context(), []model.Tree{{Trunk: ids}})
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range tr.Thinking.LogProbs {
				far = max(far, math.Abs(float64(p-got[0][len(tr.Prompt)+i])))
			}
		}
		return far
	}
	if with, without := away(1), away(0); with > 1e-3 || without < 1e-2 {
		t.Errorf("the second round's log-probs are off by %v from the adapter's and by %v from the bare model's", with, without)
	}

	c.Folder, c.Mini = t.TempDir(), 5
	if _, err := trainer.OpenRL(t.Context(), c); err == nil || !strings.Contains(err.Error(), "mini-batch has 5") {
		t.Errorf("mini-batch beyond the batch: %v", err)
	}
	c.Mini, c.Rollout.Sampling.Temperature = 1, 0.6
	if _, err := trainer.OpenRL(t.Context(), c); err == nil || !strings.Contains(err.Error(), "temperature 1") {
		t.Errorf("temperature 0.6: %v", err)
	}
	c.Rollout.Sampling.Temperature, c.Clip = 1, 0
	if _, err := trainer.OpenRL(t.Context(), c); err == nil || !strings.Contains(err.Error(), "clip is 0") {
		t.Errorf("clip 0: %v", err)
	}
}
