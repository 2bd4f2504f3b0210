package model_test

import (
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"anytime/internal/gguf"
	"anytime/internal/train/model"
)

const smallVocabulary = 40

// smallFile writes a model of two layers with gentle random weights: rounding is not blown up, and gradients are easy to check.
func smallFile(t testing.TB, arch string, tied bool) string {
	t.Helper()
	c := gguf.Config{
		Architecture: arch, Name: "Small", ContextTokens: 512, Layers: 2, Width: 24, FeedForward: 32, Heads: 4, KVHeads: 2, HeadWidth: 8,
		RopeBase: 10000, NormEps: 1e-5, Tied: tied,
	}
	tok := gguf.Tokenizer{Pre: "gpt-2", BOS: 0, EOS: 1}
	for i := range smallVocabulary {
		tok.Tokens = append(tok.Tokens, "t"+strconv.Itoa(i))
		tok.Types = append(tok.Types, gguf.TokenNormal)
	}
	tok.Merges = []string{}
	rng := rand.New(rand.NewPCG(7, 7))
	path := filepath.Join(t.TempDir(), "small.gguf")
	err := gguf.WriteFile(path, func(w io.Writer) error {
		return gguf.WriteModel(w, c, tok, gguf.F32, func(info gguf.WeightInfo) ([]float32, error) {
			n, mean, deviation := int(info.Dims[0]), 0., 0.2
			if len(info.Dims) == 2 {
				n, deviation = n*int(info.Dims[1]), 1.5/math.Sqrt(float64(info.Dims[0]))
			}
			if strings.HasSuffix(info.Name, "norm.weight") {
				mean = 1
			}
			values := make([]float32, n)
			for i := range values {
				values[i] = float32(mean + deviation*rng.NormFloat64())
			}
			return values, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func smallText(rng *rand.Rand, n int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = rng.Int32N(smallVocabulary)
	}
	return tokens
}

// smallTrees are a trunk with branches at several points, two of them at the same and one at its end, and a plain sequence.
func smallTrees(seed uint64) []model.Tree {
	rng := rand.New(rand.NewPCG(seed, 3))
	return []model.Tree{
		{Trunk: smallText(rng, 20), Branches: []model.Branch{
			{At: 1, Tokens: smallText(rng, 3)}, {At: 9, Tokens: smallText(rng, 5)}, {At: 9, Tokens: smallText(rng, 2)},
			{At: 20, Tokens: smallText(rng, 6)},
		}},
		{Trunk: smallText(rng, 13)},
	}
}

// raggedTree has a trunk that attention goes over in several stretches, and branches that fill several blocks in part.
func raggedTree(seed uint64) model.Tree {
	rng := rand.New(rand.NewPCG(seed, 5))
	tree := model.Tree{Trunk: smallText(rng, 150)}
	for _, n := range []int{30, 7, 1, 24, 0, 30, 11, 18, 2, 29} {
		tree.Branches = append(tree.Branches, model.Branch{At: 1 + rng.IntN(150), Tokens: smallText(rng, n)})
	}
	return tree
}

// separate cuts a tree into its trunk and, of each branch, a sequence of its own.
func separate(tree model.Tree) []model.Tree {
	all := []model.Tree{{Trunk: tree.Trunk}}
	for _, b := range tree.Branches {
		all = append(all, model.Tree{Trunk: append(append([]int32{}, tree.Trunk[:b.At]...), b.Tokens...)})
	}
	return all
}

// rewrite copies a model with other metadata and, if there are any, factors of its rotary embedding.
func rewrite(t testing.TB, path string, factors []float32, changed ...gguf.Pair) string {
	t.Helper()
	h, err := gguf.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	meta := slices.Clone(changed)
	for _, k := range h.Keys() {
		if slices.ContainsFunc(changed, func(p gguf.Pair) bool { return p.Key == k }) {
			continue
		}
		var v any
		if s, ok := h.String(k); ok {
			v = s
		} else if n, ok := h.Uint(k); ok {
			v = uint32(n)
		} else if f, ok := h.Float(k); ok {
			v = float32(f)
		} else if b, ok := h.Bool(k); ok {
			v = b
		} else if s, ok := h.Strings(k); ok {
			v = s
		} else {
			continue // the tokens' types
		}
		meta = append(meta, gguf.Pair{Key: k, Value: v})
	}
	m := open(t, path, model.Config{})
	var all []gguf.Tensor
	if factors != nil {
		all = append(all, gguf.Tensor{Name: "rope_freqs.weight", Dims: []uint64{uint64(len(factors))}, Values: func() ([]float32, error) {
			return factors, nil
		}})
	}
	for _, info := range h.Tensors {
		all = append(all, gguf.Tensor{Name: info.Name, Dims: info.Dims, Values: func() ([]float32, error) { return m.Values(info.Name), nil }})
	}
	out := filepath.Join(t.TempDir(), "changed.gguf")
	if err := gguf.WriteFile(out, func(w io.Writer) error { return gguf.Write(w, meta, all) }); err != nil {
		t.Fatal(err)
	}
	return out
}

// A compiled backend gets few shapes: a compilation takes longer than many passes.
func TestFewShapes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	var trees []model.Tree
	for range 1000 {
		tree := model.Tree{Trunk: smallText(rng, 100+rng.IntN(500))}
		for range 16 {
			tree.Branches = append(tree.Branches, model.Branch{At: 1 + rng.IntN(100), Tokens: smallText(rng, 10+rng.IntN(30))})
		}
		trees = append(trees, tree)
	}
	few, many := model.Shapes(trees, true), model.Shapes(trees, false)
	if few > 15 || few*2 > many {
		t.Errorf("%d shapes of compiled programs, %d of others", few, many)
	}
}
