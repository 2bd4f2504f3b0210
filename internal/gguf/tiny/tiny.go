// Package tiny makes models for tests: a few hundred kilobytes of seeded random weights that llama.cpp loads and decodes like
// any other model, so that the engine can be tested without a download.
//
// Their text is lively nonsense in printable ASCII. How often special tokens come is chosen, by a direction that the model keeps
// apart: the first entry of every embedding is the same large constant, no layer reads or writes it, and behind the final
// norm, which it dominates, it is nearly 1. So the first entry of an output row acts as the token's bias, and a row that is zero
// elsewhere gives its token the same logit everywhere.
package tiny

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"anytime/internal/gguf"
	"anytime/internal/gguf/scratch"
)

// Options choose the model; the zero value is a good one.
type Options struct {
	Architecture  string    // "llama" (default), "qwen2" or "qwen3"
	Type          gguf.Type // of the matrices; F32 by default
	ContextTokens int       // 4096 by default
	// Rate is about how often a token is sampled at temperature 1, within a factor of two, as a share of all tokens:
	// {ThinkClose: 0.02} closes the thinking after 50 tokens on average. At temperature 0 the likeliest of the named tokens comes
	// where nothing else stands out. Keys are texts of single tokens. All rates together must be below 1.
	// Special tokens and bytes other than printable ASCII and line breaks are never sampled unless they are named here.
	Rate map[string]float64
}

const (
	layers      = 4
	width       = 64
	feedForward = 128
	heads       = 2
	headWidth   = 32 // the least that a q8_0 cache can hold

	spread = 1.8 // standard deviation of the logits
	never  = -60 // a bias that no sampling overcomes
)

// WriteFile writes the model of a seed.
func WriteFile(path string, seed uint64, opts Options) error {
	m, err := newModel(seed, opts)
	if err != nil {
		return fmt.Errorf("tiny model: %w", err)
	}
	return gguf.WriteFile(path, m.write)
}

// Write writes the model of a seed to w.
func Write(w io.Writer, seed uint64, opts Options) error {
	m, err := newModel(seed, opts)
	if err != nil {
		return fmt.Errorf("tiny model: %w", err)
	}
	return m.write(w)
}

type model struct {
	config    gguf.Config
	tokenizer gguf.Tokenizer
	typ       gguf.Type
	rng       *rand.Rand
	bias      []float32 // of each token
	constant  []bool    // tokens whose logit is their bias alone
}

func newModel(seed uint64, opts Options) (*model, error) {
	m := &model{
		config: gguf.Config{
			Architecture:  cmp.Or(opts.Architecture, "llama"),
			Name:          "Tiny",
			ContextTokens: cmp.Or(opts.ContextTokens, 4096),
			Layers:        layers, Width: width, FeedForward: feedForward, Heads: heads, KVHeads: heads / 2, HeadWidth: headWidth,
			RopeBase: 10000, NormEps: 1e-5,
		},
		tokenizer: tokenizer(),
		typ:       opts.Type,
		rng:       rand.New(rand.NewPCG(seed, 0)),
	}
	if !slices.Contains([]string{"llama", "qwen2", "qwen3"}, m.config.Architecture) {
		return nil, fmt.Errorf("architecture is %q: it must be llama, qwen2 or qwen3", m.config.Architecture)
	}
	return m, m.setBias(opts.Rate)
}

// setBias turns rates into logits: a constant logit takes the share p of all when its exponential is p/(1-Σp) times the sum of the
// exponentials of the lively tokens' logits.
func (m *model) setBias(rates map[string]float64) error {
	m.bias = make([]float32, len(m.tokenizer.Tokens))
	m.constant = make([]bool, len(m.tokenizer.Tokens))
	ids := map[string]int{}
	lively := 0
	for id, text := range m.tokenizer.Tokens {
		ids[text] = id
		if m.tokenizer.Types[id] != gguf.TokenNormal || id < 256 && id != '\n' && (id < ' ' || id > '~') {
			m.bias[id], m.constant[id] = never, true
			continue
		}
		lively++
	}
	var all float64
	chosen := map[int]float64{}
	for _, text := range slices.Sorted(maps.Keys(rates)) {
		id, ok := ids[scratch.Spell(text)]
		if !ok {
			id, ok = ids[text] // a special token
		}
		p := rates[text]
		if !ok || !(p >= 0 && p < 1) {
			return fmt.Errorf("rate %v of %q: it must be from 0 to below 1, of a text that is one token", p, text)
		}
		if !m.constant[id] {
			lively--
		}
		all += p
		chosen[id] = p
	}
	if all >= 1 {
		return fmt.Errorf("the rates add up to %v: they must stay below 1", all)
	}
	others := logSumExp(lively)
	for id, p := range chosen {
		m.bias[id], m.constant[id] = never, true
		if p > 0 {
			m.bias[id] = float32(others + math.Log(p/(1-all)))
		}
	}
	return nil
}

// logSumExp is about log Σ exp of n logits, which are normal with deviation spread: the mean over some draws.
func logSumExp(n int) float64 {
	rng := rand.New(rand.NewPCG(0, 2))
	const draws = 200
	var mean float64
	for range draws {
		var sum float64
		for range n {
			sum += math.Exp(spread * rng.NormFloat64())
		}
		mean += math.Log(sum) / draws
	}
	return mean
}

func (m *model) write(w io.Writer) error {
	return gguf.WriteModel(w, m.config, m.tokenizer, m.typ, m.weights)
}

// The residual stream. Entry 0 is kept apart; the others begin with deviation 1 and grow as each layer adds to them.
const (
	branch = 1   // deviation of what attention and feed-forward each add, per layer
	apart  = 40  // entry 0 of every embedding: far above the rest, so that norms hardly depend on the text
	sharp  = 5   // queries and keys are this much larger than usual, so that attention picks few tokens
	gated  = 0.6 // deviation of silu(gate)·up for inputs of deviation 1
)

// stream is the deviation of the entries behind the first, and the root mean square of all, ahead of a layer.
func stream(layer int) (deviation, rms float64) {
	variance := 1 + 2*float64(layer)*branch*branch
	return math.Sqrt(variance), math.Sqrt((apart*apart + (width-1)*variance) / width)
}

// weights draws one tensor.
func (m *model) weights(t gguf.WeightInfo) ([]float32, error) {
	in, out := int(t.Dims[0]), 1
	if len(t.Dims) == 2 {
		out = int(t.Dims[1])
	}
	w := make([]float32, in*out)
	fill := func(deviation float64) {
		for i := range w {
			w[i] = float32(m.rng.NormFloat64() * deviation)
		}
	}
	layer, name := layers, t.Name
	if rest, ok := strings.CutPrefix(t.Name, "blk."); ok {
		number, rest, _ := strings.Cut(rest, ".")
		layer, _ = strconv.Atoi(number)
		name = rest
	}
	deviation, rms := stream(layer)
	switch name {
	case "token_embd.weight":
		fill(1)
		for row := range out { // all of one length
			e := w[row*in : (row+1)*in]
			e[0] = 0
			var square float64
			for _, v := range e {
				square += float64(v * v)
			}
			for i := range e {
				e[i] *= float32(math.Sqrt((width - 1) / square))
			}
			e[0] = apart
		}
	case "attn_norm.weight", "ffn_norm.weight", "output_norm.weight": // make the deviation 1, whatever the constant's size
		for i := range w {
			w[i] = float32(rms / deviation)
		}
		w[0] = 0
		if name == "output_norm.weight" {
			w[0] = float32(rms / apart)
		}
	case "attn_q_norm.weight", "attn_k_norm.weight":
		for i := range w {
			w[i] = float32(math.Sqrt(sharp))
		}
	case "attn_q.weight", "attn_k.weight":
		fill(math.Sqrt(sharp / float64(in)))
	case "attn_output.weight":
		fill(branch / math.Sqrt(float64(in)))
		clear(w[:in]) // row 0: nothing is added to the constant
	case "ffn_down.weight":
		fill(branch / gated / math.Sqrt(float64(in)))
		clear(w[:in])
	case "output.weight":
		fill(spread / math.Sqrt(float64(in)))
		for row := range out {
			if m.constant[row] {
				clear(w[row*in : (row+1)*in])
			}
			w[row*in] = m.bias[row]
		}
	default: // matrices keep the size of what they read; biases are small
		if len(t.Dims) == 2 {
			fill(1 / math.Sqrt(float64(in)))
		} else {
			fill(0.1)
		}
	}
	return w, nil
}

// WriteAdapter writes a random LoRA adapter of rank 4 for the tiny models of an architecture ("" is llama), strong enough to
// change what they say.
func WriteAdapter(path string, seed uint64, architecture string) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	a := gguf.Adapter{Architecture: cmp.Or(architecture, "llama"), Name: "Tiny adapter", Alpha: 8}
	draw := func(n int, deviation float64) []float32 {
		w := make([]float32, n)
		for i := range w {
			w[i] = float32(rng.NormFloat64() * deviation)
		}
		return w
	}
	const rank = 4
	for i := range layers {
		for _, l := range []gguf.LoRA{
			{Tensor: "attn_q", In: width, Out: heads * headWidth},
			{Tensor: "attn_v", In: width, Out: heads / 2 * headWidth},
			{Tensor: "ffn_up", In: width, Out: feedForward},
		} {
			l.Tensor = fmt.Sprintf("blk.%d.%s.weight", i, l.Tensor)
			l.Rank = rank
			l.A = draw(l.Rank*l.In, 1/math.Sqrt(float64(l.In)))
			l.B = draw(l.Out*l.Rank, 0.5)
			a.Weights = append(a.Weights, l)
		}
	}
	return gguf.WriteFile(path, func(w io.Writer) error { return gguf.WriteAdapter(w, a) })
}
