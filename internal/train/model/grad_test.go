package model_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"anytime/internal/train/model"
)

// examples weighs most tokens of the trees at random, as if they had been sampled by a policy a little apart.
func examples(t testing.TB, m *model.Model, trees []model.Tree) []model.Example {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, 5))
	var all []model.Example
	for i, old := range logProbs(t, m, trees...) {
		e := model.Example{Tree: trees[i]}
		for j, lp := range old {
			w, a := rng.Float32(), float32(rng.NormFloat64())
			if j == 0 || rng.IntN(4) == 0 {
				w, a, lp = 0, 1e6, 1e6 // what is not trained may have any values
			}
			e.Weight = append(e.Weight, w)
			e.Advantage = append(e.Advantage, a)
			e.Old = append(e.Old, lp+0.1*float32(rng.NormFloat64()))
			e.Reference = append(e.Reference, lp+0.5*float32(rng.NormFloat64()))
		}
		all = append(all, e)
	}
	return all
}

func gradients(t testing.TB, m *model.Model, ex []model.Example, loss model.Loss) (map[string][]float32, model.Stats) {
	t.Helper()
	g, s, err := m.Gradients(t.Context(), ex, loss)
	if err != nil {
		t.Fatal(err)
	}
	return g, s
}

func size(v []float32) float64 {
	var sum float64
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

// steps moves a model a few steps, so that an adapter's B is not 0 any more.
func steps(t testing.TB, m *model.Model, ex []model.Example, n int) model.Stats {
	t.Helper()
	var s model.Stats
	for range n {
		var err error
		if s, err = m.Step(t.Context(), ex, model.CrossEntropy{}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestGradients moves each parameter along its gradient, forth and back: the loss must change as the gradient says. That fails unless
// length and direction are right.
func TestGradients(t *testing.T) {
	policy := model.Policy{Low: 0.1, High: 0.2, KL: 0.3, Entropy: 0.2}
	for _, c := range []struct {
		arch   string
		tied   bool
		config model.Config
		loss   model.Loss
	}{
		{"llama", false, model.Config{Train: model.All}, model.CrossEntropy{}},
		{"qwen2", true, model.Config{Train: model.All}, policy},
		{"qwen3", false, model.Config{Train: model.All, Recompute: true, LogitTokens: 7, BatchTokens: 16}, policy},
		{"llama", true, model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2, Dropout: 0.2}, Recompute: true}, policy},
		{"qwen3", false, model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 2, Matrices: []string{"attn_v", "ffn_down"}}}, model.CrossEntropy{}},
	} {
		t.Run(fmt.Sprintf("%s %s %T", c.arch, c.config.Train, c.loss), func(t *testing.T) {
			c.config.Optimizer.Rate = 0.02
			m := open(t, smallFile(t, c.arch, c.tied), c.config)
			ex := examples(t, m, smallTrees(1))
			steps(t, m, ex, 2)
			g, s := gradients(t, m, ex, c.loss)
			if _, ok := c.loss.(model.Policy); ok && (s.Clipped < 0.02 || s.Clipped > 0.6) {
				t.Errorf("%.2f of the tokens are clipped: the test wants some", s.Clipped)
			}
			var worst float64
			for _, name := range slices.Sorted(maps.Keys(g)) {
				length := size(g[name])
				if length < 1e-3 {
					t.Errorf("%s: the gradient's norm is %g: too small to see", name, length)
					continue
				}
				at := func(distance float64) float64 {
					m.Move(name, g[name], distance/length)
					_, s := gradients(t, m, ex, c.loss)
					m.Move(name, g[name], -distance/length)
					return s.Loss
				}
				const h = 2e-3
				slope := (at(h) - at(-h)) / (2 * h)
				off := math.Abs(slope-length) / length
				worst = max(worst, off)
				if off > 0.02 {
					t.Errorf("%s: the loss rises by %.5g per unit, the gradient says %.5g", name, slope, length)
				}
			}
			t.Logf("%d parameters, worst relative difference %.1e", len(g), worst)
		})
	}
}

// TestPackedEqualsSeparate compares trees with their paths as sequences of their own: log-probabilities, and the gradient of a loss in
// which every path counts its own tokens.
func TestPackedEqualsSeparate(t *testing.T) {
	for _, arch := range []string{"llama", "qwen2", "qwen3"} {
		t.Run(arch, func(t *testing.T) {
			m := open(t, smallFile(t, arch, false), model.Config{Train: model.All})
			trees := append(smallTrees(2), raggedTree(1))
			packed := examples(t, m, trees)
			var alone []model.Example
			var dl float64
			for i, tree := range trees {
				together := logProbs(t, m, trees...)[i]
				e := packed[i]
				next := len(tree.Trunk)
				for j, path := range separate(tree) {
					own := make([]float32, 0, len(path.Trunk))
					x := model.Example{Tree: path}
					from, n := 0, len(path.Trunk)
					if j > 0 {
						n = len(tree.Branches[j-1].Tokens)
						from, next = next, next+n
					}
					shared := make([]float32, len(path.Trunk)-n) // the trunk's tokens count once
					x.Weight = append(append(x.Weight, shared...), e.Weight[from:from+n]...)
					x.Advantage = append(append(x.Advantage, shared...), e.Advantage[from:from+n]...)
					x.Old = append(append(x.Old, shared...), e.Old[from:from+n]...)
					alone = append(alone, x)
					own = append(own, logProbs(t, m, path)[0][len(shared):]...)
					dl = max(dl, apart(own, together[from:from+n]))
				}
			}
			loss := model.Policy{Low: 0.2, High: 0.2}
			g, s := gradients(t, m, packed, loss)
			g1, s1 := gradients(t, m, alone, loss)
			var dg float64
			for name := range g {
				dg = max(dg, apart(g[name], g1[name])/size(g[name]))
			}
			t.Logf("log-probs differ by at most %.1e, gradients by %.1e of their norms; %d tokens packed, %d separate", dl, dg, s.Tokens, s1.Tokens)
			if !(dl <= 1e-5 && dg <= 1e-5) {
				t.Error("that is more than 1e-5")
			}
			if s.Trained != s1.Trained || math.Abs(s.Loss-s1.Loss) > 1e-4*math.Abs(s1.Loss) {
				t.Errorf("packed: loss %v of %d tokens; separate: %v of %d", s.Loss, s.Trained, s1.Loss, s1.Trained)
			}
		})
	}
}

// TestHowItIsComputedDoesNotMatter compares gradients under all options that trade memory for time.
func TestHowItIsComputedDoesNotMatter(t *testing.T) {
	path := smallFile(t, "qwen2", true)
	loss := model.Policy{Low: 0.2, High: 0.2, KL: 0.1, Entropy: 0.1}
	trees := append(smallTrees(1), append(smallTrees(2), smallTrees(3)...)...)
	plain := open(t, path, model.Config{Train: model.All})
	ex := examples(t, plain, trees)
	want, s := gradients(t, plain, ex, loss)
	for _, c := range []model.Config{{Recompute: true}, {LogitTokens: 5}, {BatchTokens: 1}, {BatchTokens: 64, LogitTokens: 9, Recompute: true}} {
		c.Train = model.All
		m := open(t, path, c)
		g, s1 := gradients(t, m, ex, loss)
		for name := range g {
			if d := apart(g[name], want[name]) / size(want[name]); d > 1e-5 {
				t.Errorf("%+v: gradient of %s differs by %.1e of its norm", c, name, d)
			}
		}
		if math.Abs(s.Loss-s1.Loss) > 1e-4*math.Abs(s.Loss) || math.Abs(s.Entropy-s1.Entropy) > 1e-5 || math.Abs(s.KL-s1.KL) > 1e-5 {
			t.Errorf("%+v: %+v, want %+v", c, s1, s)
		}
	}
}
