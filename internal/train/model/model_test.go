package model_test

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
	"anytime/internal/train/model"
)

func tinyFile(t testing.TB, arch string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{Architecture: arch}); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string, c model.Config) *model.Model {
	t.Helper()
	if c.Backend == "" {
		c.Backend = os.Getenv("ANYTIME_TEST_BACKEND") // such as xla:/path/plugin.so, to run these tests on it
	}
	m, err := model.Open(path, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// imitate weighs all tokens of a text but the first alike.
func imitate(tokens []int32) model.Example {
	w := make([]float32, len(tokens))
	for i := 1; i < len(w); i++ {
		w[i] = 1 / float32(len(w)-1)
	}
	return model.Example{Tree: model.Tree{Trunk: tokens}, Weight: w}
}

func TestStepsLowerTheLoss(t *testing.T) {
	for _, train := range []model.Train{model.All, model.Adapter} {
		m := open(t, smallFile(t, "llama", true), model.Config{Train: train, Optimizer: model.Optimizer{Rate: 0.02, Warmup: 2}})
		ex := []model.Example{imitate(smallTrees(1)[0].Trunk)}
		base, err := m.BaseLogProbs(t.Context(), []model.Tree{ex[0].Tree})
		if err != nil {
			t.Fatal(err)
		}
		if d := apart(base[0], logProbs(t, m, ex[0].Tree)[0]); d != 0 {
			t.Errorf("%s: a new adapter changes log-probs by %g", train, d)
		}
		first, last := steps(t, m, ex, 1), steps(t, m, ex, 19)
		if last.Loss > first.Loss/2 || last.Step != 20 || last.Trained != 19 || last.Tokens != 20 || last.Padded != 20 {
			t.Errorf("%s: step 1 %+v, step 20 %+v", train, first, last)
		}
		if math.Abs(first.Loss+first.LogProb) > 1e-5 {
			t.Errorf("%s: loss is %v, mean log-prob %v", train, first.Loss, first.LogProb)
		}
		again, err := m.BaseLogProbs(t.Context(), []model.Tree{ex[0].Tree})
		if err != nil {
			t.Fatal(err)
		}
		if d := apart(base[0], again[0]); (d == 0) != (train == model.Adapter) {
			t.Errorf("%s: the base's log-probs changed by %g", train, d)
		}
	}
}

// TestOptimizer follows three steps of AdamW by hand.
func TestOptimizer(t *testing.T) {
	o := model.Optimizer{Rate: 0.01, Beta1: 0.8, Beta2: 0.95, Epsilon: 1e-3, Decay: 0.1, Clip: 0.5}
	m := open(t, smallFile(t, "qwen2", false), model.Config{Train: model.All, Optimizer: o})
	ex := examples(t, m, smallTrees(1))
	first, second := map[string][]float64{}, map[string][]float64{}
	for step := 1; step <= 3; step++ {
		g, _ := gradients(t, m, ex, model.CrossEntropy{})
		var square float64
		before := map[string][]float32{}
		for name := range g {
			square += size(g[name]) * size(g[name])
			before[name] = m.Values(name)
		}
		s := steps(t, m, ex, 1)
		if norm := math.Sqrt(square); math.Abs(norm-s.GradientNorm) > 1e-4*norm || norm < o.Clip {
			t.Errorf("step %d: gradient norm %v, want %v, which is to be clipped", step, s.GradientNorm, norm)
		}
		for name, after := range before {
			if first[name] == nil {
				first[name], second[name] = make([]float64, len(after)), make([]float64, len(after))
			}
			decay := o.Decay
			if strings.Contains(name, "norm") || strings.HasSuffix(name, "bias") {
				decay = 0
			}
			got := m.Values(name)
			for i := range got {
				x, v := float64(g[name][i])*o.Clip/math.Sqrt(square), float64(before[name][i])
				first[name][i] = o.Beta1*first[name][i] + (1-o.Beta1)*x
				second[name][i] = o.Beta2*second[name][i] + (1-o.Beta2)*x*x
				m1, m2 := first[name][i]/(1-math.Pow(o.Beta1, float64(step))), second[name][i]/(1-math.Pow(o.Beta2, float64(step)))
				want := v - o.Rate*(m1/(math.Sqrt(m2)+o.Epsilon)+decay*v)
				if math.Abs(want-float64(got[i])) > 1e-5 {
					t.Fatalf("step %d: %s[%d] became %v, want %v", step, name, i, got[i], want)
				}
			}
		}
	}
}

func TestSchedule(t *testing.T) {
	o := model.Optimizer{Rate: 2, Warmup: 4, Steps: 14, Floor: 0.1}
	constant := model.Optimizer{Rate: 3}
	for _, c := range []struct {
		o    model.Optimizer
		step int
		want float64
	}{{o, 0, 0.5}, {o, 3, 2}, {o, 4, 2}, {o, 9, 1.1}, {o, 14, 0.2}, {o, 99, 0.2}, {constant, 0, 3}, {constant, 99, 3}} {
		if got := model.RateAt(c.o, c.step); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("%+v: rate at step %d is %v, want %v", c.o, c.step, got, c.want)
		}
	}
}

// TestPolicyLoss computes the loss by its definition.
func TestPolicyLoss(t *testing.T) {
	m := open(t, smallFile(t, "llama", false), model.Config{Train: model.All})
	trees := smallTrees(4)
	ex := examples(t, m, trees)
	p := model.Policy{Low: 0.05, High: 0.1, KL: 0.5}
	_, s := gradients(t, m, ex, p)
	var loss, clipped, kl, n float64
	for i, lp := range logProbs(t, m, trees...) {
		for j, w := range ex[i].Weight {
			if w == 0 {
				continue
			}
			ratio, a := math.Exp(float64(lp[j]-ex[i].Old[j])), float64(ex[i].Advantage[j])
			bound := min(max(ratio, 1-p.Low), 1+p.High)
			if bound*a < ratio*a {
				clipped++
			}
			d := float64(ex[i].Reference[j] - lp[j])
			loss += float64(w) * (-min(ratio*a, bound*a) + p.KL*(math.Exp(d)-d-1))
			kl += ratio - math.Log(ratio) - 1
			n++
		}
	}
	if math.Abs(s.Loss-loss) > 1e-4*math.Abs(loss) || math.Abs(s.Clipped-clipped/n) > 1e-6 || math.Abs(s.KL-kl/n) > 1e-5 || s.Trained != int(n) {
		t.Errorf("%+v, want loss %v, clipped %v, KL %v, trained %v", s, loss, clipped/n, kl/n, n)
	}
}

// TestCheckpoint goes on from a checkpoint in a new model: the weights must be those of the model that was never closed, to the bit.
func TestCheckpoint(t *testing.T) {
	for _, c := range []model.Config{
		{Train: model.All, Optimizer: model.Optimizer{Rate: 0.01, Warmup: 2, Steps: 9}},
		{Train: model.Adapter, LoRA: model.LoRA{Rank: 3, Alpha: 5, Dropout: 0.3}, Optimizer: model.Optimizer{Rate: 0.01}},
	} {
		t.Run(string(c.Train), func(t *testing.T) {
			path, file := smallFile(t, "qwen3", true), filepath.Join(t.TempDir(), "checkpoint")
			m := open(t, path, c)
			ex := examples(t, m, append(smallTrees(1), smallTrees(2)...))
			steps(t, m, ex, 3)
			if err := m.Checkpoint(file); err != nil {
				t.Fatal(err)
			}
			want := steps(t, m, ex, 3)

			c.LoRA.Alpha, c.Seed = 0, 0
			again := open(t, path, c)
			if n, err := again.Restore(file); err != nil || n != 3 {
				t.Fatal(n, err)
			}
			got := steps(t, again, ex, 3)
			want.Elapsed, got.Elapsed = 0, 0
			if got != want {
				t.Errorf("step 6 was %+v, want %+v", got, want)
			}
			g, _ := gradients(t, m, ex, model.CrossEntropy{})
			for name := range g {
				if !slices.Equal(m.Values(name), again.Values(name)) {
					t.Errorf("%s differs", name)
				}
			}
		})
	}
}

func TestCheckpointRefuses(t *testing.T) {
	dir := t.TempDir()
	path, file := smallFile(t, "llama", true), filepath.Join(dir, "checkpoint")
	m := open(t, path, model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2}, Optimizer: model.Optimizer{Rate: 0.01}})
	ex := []model.Example{imitate(smallTrees(1)[0].Trunk)}
	steps(t, m, ex, 1)
	if err := m.Checkpoint(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(dir, "cut")
	if err := os.WriteFile(cut, data[:len(data)-9], 0o600); err != nil {
		t.Fatal(err)
	}
	other := smallFile(t, "llama", false)
	for _, c := range []struct {
		name, model, file, want string
		config                  model.Config
	}{
		{"good", path, file, "", model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2}}},
		{"another model", other, file, "checkpoint.base", model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2}}},
		{"another rank", path, file, "must be [3 24]", model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 3}}},
		{"fewer matrices", path, file, "tensors", model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2, Matrices: []string{"attn_q"}}}},
		{"all weights", path, file, "checkpoint.train", model.Config{Train: model.All}},
		{"a model", path, path, "general.type", model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2}}},
		{"cut short", path, cut, "cut short", model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2}}},
		{"no file", path, file + "x", "no such file", model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := open(t, c.model, c.config)
			tree := model.Tree{Trunk: ex[0].Tree.Trunk}
			before := logProbs(t, m, tree)
			_, err := m.Restore(c.file)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if d := apart(before[0], logProbs(t, m, tree)[0]); d != 0 {
				t.Errorf("the model changed by %g", d)
			}
		})
	}
	frozen := open(t, path, model.Config{})
	if err := frozen.Checkpoint(file); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Error(err)
	}
	if err := m.Checkpoint(filepath.Join(dir, "none", "checkpoint")); err == nil {
		t.Error("wrote into a folder that is not there")
	}
}

// TestWriteModel writes a model in each type and reads it back: matrices are rounded as the type rounds, vectors not at all.
func TestWriteModel(t *testing.T) {
	m := open(t, tinyFile(t, "qwen2"), model.Config{})
	for _, typ := range []gguf.Type{gguf.F32, gguf.F16, gguf.Q8_0} {
		path := filepath.Join(t.TempDir(), "copy.gguf")
		if err := m.WriteModel(path, typ); err != nil {
			t.Fatal(err)
		}
		h, err := gguf.Check(path)
		if err != nil {
			t.Fatal(err)
		}
		if h.WeightType() != typ || h.ChatTemplate() == "" || h.Name() != "Tiny" {
			t.Errorf("%v: it became %v, %q", typ, h.WeightType(), h.Name())
		}
		again := open(t, path, model.Config{})
		for _, info := range h.Tensors {
			want, got := m.Values(info.Name), again.Values(info.Name)
			for block := 0; block < len(want); block += 32 {
				a, b := want[block:block+32], got[block:block+32]
				most := 0.
				if len(info.Dims) == 2 {
					most = map[gguf.Type]float64{gguf.F16: 1. / 2048, gguf.Q8_0: 0.6 / 127}[typ] * apart(a, make([]float64, 32))
				}
				if d := apart(a, b); d > most {
					t.Fatalf("%v: %s: values from %d on differ by %g, at most %g is right", typ, info.Name, block, d, most)
				}
			}
		}
	}
	if err := m.WriteModel(filepath.Join(t.TempDir(), "x"), gguf.Type(2)); err == nil || !strings.Contains(err.Error(), "F32, F16 or Q8_0") {
		t.Error(err)
	}
	if err := m.WriteAdapter(filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "no adapter") {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	good := smallFile(t, "llama", true)
	adapter := filepath.Join(t.TempDir(), "adapter.gguf")
	if err := tiny.WriteAdapter(adapter, 1, "llama"); err != nil {
		t.Fatal(err)
	}
	meta := func(key string, value any) string { return rewrite(t, good, nil, gguf.Pair{Key: key, Value: value}) }
	for _, c := range []struct {
		name, path, want string
		config           model.Config
	}{
		{"no file", good + "x", "no such file", model.Config{}},
		{"good", good, "", model.Config{}},
		{"yarn", meta("llama.rope.scaling.type", "yarn"), "none or linear", model.Config{}},
		{"partly turned", meta("llama.rope.dimension_count", uint32(4)), "heads' width", model.Config{}},
		{"scaled logits", meta("llama.logit_scale", float32(2)), "logit_scale", model.Config{}},
		{"adapter of another model", good, "lora_a", model.Config{Adapter: adapter}},
		{"adapter and all", good, "merge it", model.Config{Adapter: adapter, Train: model.All}},
		{"train", good, `"lora" or "all"`, model.Config{Train: "some"}},
		{"backend", good, "must be go or xla", model.Config{Backend: "torch"}},
		{"plugin", good, "XLA", model.Config{Backend: "xla:none.so"}},
		{"rank", good, "rank is -1", model.Config{LoRA: model.LoRA{Rank: -1}}},
		{"dropout", good, "dropout is 1", model.Config{LoRA: model.LoRA{Dropout: 1}}},
		{"matrix", good, "attn_output", model.Config{LoRA: model.LoRA{Matrices: []string{"attn_o"}}}},
		{"matrix twice", good, "another one", model.Config{LoRA: model.LoRA{Matrices: []string{"attn_q", "attn_q"}}}},
		{"rate", good, "learning rate", model.Config{Optimizer: model.Optimizer{Rate: math.NaN()}}},
		{"warm-up", good, "warm-up", model.Config{Optimizer: model.Optimizer{Warmup: 5, Steps: 5}}},
		{"batch", good, "negative", model.Config{BatchTokens: -1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := model.Open(c.path, c.config)
			if err == nil {
				m.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestBadBatches(t *testing.T) {
	m := open(t, smallFile(t, "llama", true), model.Config{Train: model.All, Optimizer: model.Optimizer{Rate: 0.1}})
	nan := float32(math.NaN())
	two := model.Tree{Trunk: []int32{1, 2}}
	policy := model.Policy{Low: 0.2, High: 0.2}
	for _, c := range []struct {
		name, want string
		example    model.Example
		loss       model.Loss
	}{
		{"good", "", model.Example{Tree: two, Weight: []float32{0, 1}}, model.CrossEntropy{}},
		{"no tokens", "no tokens", model.Example{}, model.CrossEntropy{}},
		{"unknown token", "vocabulary has 40", model.Example{Tree: model.Tree{Trunk: []int32{1, 40}}, Weight: []float32{0, 1}}, model.CrossEntropy{}},
		{"negative token", "token 1 is -1", model.Example{Tree: model.Tree{Trunk: []int32{1, -1}}, Weight: []float32{0, 1}}, model.CrossEntropy{}},
		{"branch at 0", "from 1 to 2", model.Example{Tree: model.Tree{Trunk: two.Trunk, Branches: []model.Branch{{At: 0}}}}, model.CrossEntropy{}},
		{"branch behind", "from 1 to 2", model.Example{Tree: model.Tree{Trunk: two.Trunk, Branches: []model.Branch{{At: 3}}}}, model.CrossEntropy{}},
		{"weights", "1 weights for 2", model.Example{Tree: two, Weight: []float32{1}}, model.CrossEntropy{}},
		{"not a number", "token 1 is NaN", model.Example{Tree: two, Weight: []float32{0, nan}}, model.CrossEntropy{}},
		{"first token", "nothing predicts", model.Example{Tree: two, Weight: []float32{1, 1}}, model.CrossEntropy{}},
		{"nothing weighs", "no token has a weight", model.Example{Tree: two, Weight: []float32{0, 0}}, model.CrossEntropy{}},
		{"no advantages", "0 advantages", model.Example{Tree: two, Weight: []float32{0, 1}}, policy},
		{"no reference", "0 reference", model.Example{Tree: two, Weight: []float32{0, 1}, Advantage: []float32{0, 1}, Old: []float32{0, 1}}, model.Policy{KL: 1}},
		{"clip", "low is 2", model.Example{Tree: two, Weight: []float32{0, 1}}, model.Policy{Low: 2}},
		{"no loss", "must be a CrossEntropy or a Policy", model.Example{Tree: two, Weight: []float32{0, 1}}, nil},
		{"pointer", "must be a CrossEntropy or a Policy", model.Example{Tree: two, Weight: []float32{0, 1}}, &policy},
		{"overflow", "not finite", model.Example{Tree: two, Weight: []float32{0, math.MaxFloat32}}, model.CrossEntropy{}},
		{"good again", "", model.Example{Tree: two, Weight: []float32{0, 1}}, model.CrossEntropy{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := m.Values("output_norm.weight")
			_, err := m.Step(t.Context(), []model.Example{c.example}, c.loss)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if !slices.Equal(before, m.Values("output_norm.weight")) {
				t.Error("the weights changed")
			}
		})
	}
	frozen := open(t, smallFile(t, "llama", true), model.Config{})
	if _, err := frozen.Step(t.Context(), []model.Example{imitate(two.Trunk)}, model.CrossEntropy{}); err == nil || !strings.Contains(err.Error(), "train nothing") {
		t.Error(err)
	}
}

func TestWatch(t *testing.T) {
	m := open(t, smallFile(t, "llama", true), model.Config{Train: model.All, Optimizer: model.Optimizer{Rate: 0.1}})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	ex := []model.Example{imitate([]int32{1, 2, 3})}
	if _, err := m.Step(ctx, ex, model.CrossEntropy{}); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("a step under an ended context: %v", err)
	}
	steps(t, m, ex, 1)

	m = open(t, smallFile(t, "llama", true), model.Config{Train: model.All, PassTimeout: time.Nanosecond})
	for range 2 {
		if _, err := m.Step(t.Context(), ex, model.CrossEntropy{}); !errors.Is(err, model.ErrHung) {
			t.Errorf("a step that hangs: %v", err)
		}
	}
	if err := m.Checkpoint(filepath.Join(t.TempDir(), "x")); !errors.Is(err, model.ErrHung) {
		t.Errorf("a checkpoint of a lost model: %v", err)
	}
	m = open(t, smallFile(t, "llama", true), model.Config{})
	m.Close()
	m.Close()
	if _, err := m.LogProbs(t.Context(), []model.Tree{ex[0].Tree}); err == nil {
		t.Error("a closed model computes")
	}
}
