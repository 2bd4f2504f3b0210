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
	var err error
	if shared, err = os.MkdirTemp("", "trainer"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(shared)
	os.Exit(code)
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

func opener(path string, c model.Config) trainer.Open {
	return func() (*model.Model, error) { return model.Open(path, c) }
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
		want   [][]int32 // forced, trained, forced if the thought was cut, trained
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
				w := float32(1)
				if i == 0 || i == 2 && example.Cut {
					w = 0
				}
				weight = append(weight, slices.Repeat([]float32{w}, len(piece))...)
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
		_, err := trainer.SFT{
			SFTSettings: trainer.SFTSettings{Model: "tiny", Batch: batch},
			Open:        opener(path, config), Engine: e, Renderer: r, Examples: teacher(), Folder: folder, Every: 2,
		}.Run(t.Context(), steps)
		return err
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
	if err := run(parts, 4, 6); err == nil || !strings.Contains(err.Error(), "begun with the settings batch 3, not with batch 4:") {
		t.Errorf("another batch size: %v", err)
	}

	long := task.Example{Problem: problems()[0], Thinking: strings.Repeat("3+4 ", 100), Summary: "7"}
	_, err := trainer.FromExample(t.Context(), e, r, long, "")
	if err == nil || !strings.Contains(err.Error(), `problem "p0": it needs a context of`) || !strings.HasSuffix(err.Error(), "the engine's has 256") {
		t.Errorf("an example beyond the context: %v", err)
	}
}

// TestLost: what a folder lacks of its work is told, and nothing is done again over the rest.
func TestLost(t *testing.T) {
	path := tinyModel(t)
	e, r := open(t, path)
	folder := t.TempDir()
	sft := trainer.SFT{
		SFTSettings: trainer.SFTSettings{Batch: 1}, Open: opener(path, model.Config{Train: model.Adapter, Seed: 1}),
		Engine: e, Renderer: r, Examples: teacher(), Folder: folder, Every: 1,
	}
	if _, err := sft.Run(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	metrics, checkpoint := filepath.Join(folder, "metrics.jsonl"), filepath.Join(folder, "checkpoint-000003.gguf")
	whole, err := os.ReadFile(metrics)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(whole), "\n")
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{lines[0], lines[0] + lines[2], lines[0] + lines[0] + lines[2]} {
		put(metrics, text)
		if _, err := sft.Run(t.Context(), 4); err == nil || !strings.Contains(err.Error(), "metrics.jsonl, line 2: it must be of step or round 2") {
			t.Errorf("metrics %s: %v", text, err)
		}
	}
	put(metrics, string(whole))
	if err := os.Rename(checkpoint, checkpoint+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := sft.Run(t.Context(), 4); err == nil || !strings.Contains(err.Error(), "it had come to 3, but the last checkpoint is of 0") {
		t.Errorf("without the checkpoint: %v", err)
	}
	put(metrics, "")
	put(filepath.Join(folder, "rollouts-000002.jsonl"), "")
	if _, err := sft.Run(t.Context(), 4); err == nil || !strings.Contains(err.Error(), "it had come to 2") {
		t.Errorf("with rollouts of the second round: %v", err)
	}
	put(metrics, string(whole))
	if err := os.Rename(checkpoint+".away", checkpoint); err != nil {
		t.Fatal(err)
	}
	if _, err := sft.Run(t.Context(), 4); err != nil {
		t.Errorf("with all back in place: %v", err)
	}
}

// TestBegunWrongly: settings with which nothing came about give way to others.
func TestBegunWrongly(t *testing.T) {
	path := tinyModel(t)
	c := rlConfig(t, path)
	good := c.Open
	c.Clip, c.Open = 0.3, opener(path, model.Config{Train: model.Adapter, LoRA: model.LoRA{Dropout: 2}})
	if _, err := trainer.OpenRL(t.Context(), c); err == nil || !strings.Contains(err.Error(), "dropout is 2") {
		t.Fatalf("a wrong dropout: %v", err)
	}
	c.Clip, c.Open, c.Rollout.Budgets = 0.2, good, []int{2, 4096}
	run, err := trainer.OpenRL(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Next(t.Context()); err == nil || !strings.Contains(err.Error(), "needs a context") {
		t.Errorf("a budget beyond the context: %v", err)
	}
	if err := run.Close(); err != nil {
		t.Fatal(err)
	}
	c.Rollout.Budgets = []int{2, 12}
	rounds(t, c, 1)
	c.Clip = 0.3
	if _, err := trainer.OpenRL(t.Context(), c); err == nil || !strings.Contains(err.Error(), "begun with the settings clip 0.2, not with clip 0.3:") {
		t.Errorf("another clip behind a round: %v", err)
	}
}

// fineTuned is a model that has learned to answer, and is right about every other time. It is made once.
func fineTuned(t *testing.T) string {
	t.Helper()
	if tunedModel != "" {
		return tunedModel
	}
	path := tinyModel(t)
	e, r := open(t, path)
	config := model.Config{Train: model.All, Optimizer: model.Optimizer{Rate: 3e-3}}
	tuned, err := trainer.SFT{
		SFTSettings: trainer.SFTSettings{Batch: 6, Training: trainer.Training{Train: model.All}},
		Open:        opener(path, config), Engine: e, Renderer: r, Examples: teacher(), Folder: filepath.Join(shared, "tuned"), Every: 100,
	}.Run(t.Context(), 40)
	if err != nil {
		t.Fatal(err)
	}
	tunedModel = tuned
	return tuned
}

var tunedModel, shared string // shared is a folder for all tests

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
		Open: opener(path, config), Engine: e, Renderer: r, Problems: problems(), Folder: folder, OnTrace: func(rollout.Trace) { calls++ },
	}
	begin := func(e *llamacpp.Engine) *trainer.RL {
		t.Helper()
		c.Engine = e
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
		var trees []model.Tree
		var sampled [][]float32
		for _, tr := range traces {
			p := tr.Points[0]
			y := p.Summaries[0]
			trees = append(trees, model.Tree{Trunk: slices.Concat(tr.Prompt, tr.Thinking.IDs[:p.After], p.Closing, y.IDs)})
			sampled = append(sampled, y.LogProbs)
		}
		got, err := m.LogProbs(t.Context(), trees)
		if err != nil {
			t.Fatal(err)
		}
		for i, y := range sampled {
			for j, p := range y {
				far = max(far, math.Abs(float64(p-got[i][len(got[i])-len(y)+j])))
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

// rlConfig is a run on the fine-tuned model.
func rlConfig(t *testing.T, path string) trainer.RLConfig {
	t.Helper()
	e, r := open(t, path)
	config := model.Config{Train: model.Adapter, Seed: 1, Optimizer: model.Optimizer{Rate: 2e-3}}
	return trainer.RLConfig{
		RLSettings: trainer.RLSettings{
			Rollout: rollout.Settings{
				Model: "tuned", Seed: 3, Budgets: []int{2, 12}, Traces: 4, Summaries: 2, SummaryTokens: 14, Sampling: decode.Sampling{Temperature: 1},
			},
			Prior: budget.PriorUniform, Thinking: advantage.BRPO, Summary: advantage.Siblings, Batch: 2, Mini: 1,
			Clip: 0.2, Training: trainer.Training{Train: config.Train, Optimizer: config.Optimizer, Seed: config.Seed},
		},
		Engine: e, Renderer: r, Problems: problems(), Folder: t.TempDir(), Open: opener(path, config),
	}
}

func rounds(t *testing.T, c trainer.RLConfig, n int) (list []trainer.Round) {
	t.Helper()
	run, err := trainer.OpenRL(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	for run.Done() < n {
		m, err := run.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	return list
}

// TestPenalties: the divergence from the bare model, none before the first round, is reported and held back by its penalty; the entropy
// is reported where there is a bonus. Only the last round is kept.
func TestPenalties(t *testing.T) {
	path := fineTuned(t)
	with := func(kl, entropy float64) []trainer.Round {
		c := rlConfig(t, path)
		c.Keep = 1
		defer func() {
			if left, _ := filepath.Glob(filepath.Join(c.Folder, "*-000001.*")); len(left) > 0 {
				t.Errorf("of the first round there is still %q", left)
			}
		}()
		c.KL, c.Entropy = kl, entropy
		return rounds(t, c, 2)
	}
	free, held := with(1e-9, 1e-9), with(10, 0)
	if free[0].Reference > 1e-9 || free[1].Reference < 1e-4 {
		t.Errorf("the divergence from the reference goes from %v to %v", free[0].Reference, free[1].Reference)
	}
	if !(held[1].Reference < free[1].Reference/2) {
		t.Errorf("with a penalty the divergence is %v, without %v", held[1].Reference, free[1].Reference)
	}
	if free[1].Entropy == 0 || held[1].Entropy != 0 {
		t.Errorf("with a bonus the entropy is %v, without it is told as %v", free[1].Entropy, held[1].Entropy)
	}
}

// near says that two losses are the same but for the rounding of the engine's batches.
func near(a, b float64) bool { return math.Abs(a-b) < 1e-5 }

// TestHang: a step that hangs is tried again from the last checkpoint, and in the end given up.
func TestHang(t *testing.T) {
	path := fineTuned(t)
	var opened, hung int
	// The n-th model that is opened hangs if any has that number.
	opener := func(train model.Train, hangs ...int) trainer.Open {
		opened, hung = 0, 0
		return func() (*model.Model, error) {
			opened++
			c := model.Config{Train: train, Seed: 1, Optimizer: model.Optimizer{Rate: 2e-3}}
			if slices.Contains(hangs, opened) {
				c.PassTimeout = 1
			}
			return model.Open(path, c)
		}
	}
	onHang := func(err error) {
		if hung++; !errors.Is(err, model.ErrHung) {
			t.Errorf("hung: %v", err)
		}
	}
	c := rlConfig(t, path)
	want := rounds(t, c, 1)
	c.Folder, c.Open, c.OnHang = t.TempDir(), opener(model.Adapter, 1, 2), onHang
	got := rounds(t, c, 1)
	if hung != 2 || opened != 3 || !near(got[0].Loss, want[0].Loss) || got[0].Sampled != want[0].Sampled {
		t.Errorf("hung %d times, opened %d models; rounds %+v, undisturbed %+v", hung, opened, got, want)
	}
	c.Folder, c.Open = t.TempDir(), opener(model.Adapter, 1, 2, 3)
	run, err := trainer.OpenRL(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Next(t.Context()); !errors.Is(err, model.ErrHung) || !strings.Contains(err.Error(), "tried 3 times") {
		t.Errorf("hangs for ever: %v", err)
	}
	if m, err := run.Next(t.Context()); err != nil || !near(m.Loss, want[0].Loss) {
		t.Errorf("tried again: %+v, %v; undisturbed %+v", m, err, want[0])
	}
	run.Close()

	e, r := open(t, path)
	sft := trainer.SFT{
		SFTSettings: trainer.SFTSettings{Batch: 2, Training: trainer.Training{Train: model.Adapter}},
		Engine:      e, Renderer: r, Examples: teacher(), Every: 2, OnHang: onHang,
	}
	for _, test := range []struct {
		hangs []int
		want  string
	}{{nil, ""}, {[]int{1, 2}, ""}, {[]int{1, 2, 3}, "tried 3 times"}} {
		sft.Folder, sft.Open = t.TempDir(), opener(model.Adapter, test.hangs...)
		_, err := sft.Run(t.Context(), 3)
		switch {
		case test.want == "" && (err != nil || hung != len(test.hangs) || len(lines[trainer.SFTProgress](t, sft.Folder)) != 3):
			t.Errorf("hangs %v: hung %d times, %v", test.hangs, hung, err)
		case test.want != "" && (!errors.Is(err, model.ErrHung) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("hangs %v: %v", test.hangs, err)
		}
	}
}

// TestLock: a folder has one process at a time.
func TestLock(t *testing.T) {
	c := rlConfig(t, tinyModel(t))
	run, err := trainer.OpenRL(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trainer.OpenRL(t.Context(), c); err == nil || !strings.Contains(err.Error(), "another process is at work and holds "+c.Folder) {
		t.Errorf("the second: %v", err)
	}
	if err := run.Close(); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(c.Folder, ".checkpoint-000001.gguf.123")
	if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if run, err = trainer.OpenRL(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left half written is still there: %v", err)
	}
}
