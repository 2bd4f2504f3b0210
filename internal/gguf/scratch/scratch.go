// Package scratch makes models that know nothing yet: random weights of the size that training wants, a byte-level BPE vocabulary
// learned from some texts, and a chat template. llama.cpp loads them like any other model.
package scratch

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"anytime/internal/gguf"
)

// WriteFile writes the model of a shape, a vocabulary and a seed. Matrices are stored as the given type.
func WriteFile(path string, seed uint64, c gguf.Config, t gguf.Tokenizer, as gguf.Type) error {
	if err := check(c); err != nil {
		return fmt.Errorf("new model: %w", err)
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	return gguf.WriteFile(path, func(w io.Writer) error {
		return gguf.WriteModel(w, c, t, as, func(info gguf.WeightInfo) ([]float32, error) { return draw(rng, c, info), nil })
	})
}

// check says what of a shape is wrong, in the words of gguf.Config. How large a model may be is checked when it is written.
func check(c gguf.Config) error {
	switch {
	case !slices.Contains([]string{"llama", "qwen2", "qwen3"}, c.Architecture):
		return fmt.Errorf("the architecture is %.32q: it must be llama, qwen2 or qwen3", c.Architecture)
	case c.Layers < 1 || c.Width < 1 || c.FeedForward < 1 || c.Heads < 1 || c.KVHeads < 1 || c.ContextTokens < 1:
		return fmt.Errorf("%d layers, width %d, feed-forward width %d, %d heads, %d of keys, context of %d tokens: each must be at least 1",
			c.Layers, c.Width, c.FeedForward, c.Heads, c.KVHeads, c.ContextTokens)
	case c.Heads%c.KVHeads != 0:
		return fmt.Errorf("%d heads share %d of keys: the latter must divide the former", c.Heads, c.KVHeads)
	case c.HeadWidth < 2 || c.HeadWidth%2 != 0:
		return fmt.Errorf("a head is %d wide: it must be an even number", c.HeadWidth)
	case c.Architecture == "qwen2" && c.Heads*c.HeadWidth != c.Width:
		return fmt.Errorf("%d heads of %d in a width of %d: llama.cpp wants those of a qwen2 to fill it", c.Heads, c.HeadWidth, c.Width)
	case !(c.RopeBase > 0) || !(c.NormEps > 0):
		return errors.New("the base of rotary embedding and epsilon of the norms must be above 0")
	}
	return nil
}

// draw draws a tensor. Norms are 1, biases 0. Matrices keep the size of what they read, a row of n inputs having deviation 1/√n, but for
// those that add to the residual stream, which together add as much as one would (GPT-2), and the output, which begins near the uniform
// distribution.
func draw(rng *rand.Rand, c gguf.Config, info gguf.WeightInfo) []float32 {
	in, n := float64(info.Dims[0]), 1
	for _, d := range info.Dims {
		n *= int(d)
	}
	w := make([]float32, n)
	var deviation float64
	switch {
	case len(info.Dims) == 1 && strings.HasSuffix(info.Name, "norm.weight"):
		for i := range w {
			w[i] = 1
		}
		return w
	case len(info.Dims) == 1:
		return w
	case info.Name == "token_embd.weight" || info.Name == "output.weight":
		deviation = 0.02
	case strings.HasSuffix(info.Name, "attn_output.weight") || strings.HasSuffix(info.Name, "ffn_down.weight"):
		deviation = 1 / math.Sqrt(2*float64(c.Layers)*in)
	default:
		deviation = 1 / math.Sqrt(in)
	}
	for i := range w {
		w[i] = float32(rng.NormFloat64() * deviation)
	}
	return w
}
