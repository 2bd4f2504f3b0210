package gguf

import (
	"fmt"
	"io"
	"slices"
)

// Config is the shape of a model of one of the architectures that this package writes: llama, qwen2 or qwen3.
type Config struct {
	Architecture  string
	Name          string
	ContextTokens int
	Layers        int
	Width         int // of the embeddings
	FeedForward   int // width of the hidden layer
	Heads         int
	KVHeads       int // divides Heads
	HeadWidth     int // even
	RopeBase      float32
	NormEps       float32 // of RMSNorm
	Tied          bool    // no output.weight: the embeddings are the output matrix too
}

// Tokenizer is a byte-level BPE vocabulary (tokenizer.ggml.model gpt2) and the chat template.
type Tokenizer struct {
	Pre          string   // how a text is split before merging, by llama.cpp's names: "gpt-2", "qwen2", "smollm", …
	Tokens       []string // bytes in GPT-2's alphabet, special tokens as they are
	Types        []TokenType
	Merges       []string // "left right", best first
	BOS, EOS     int      // ids
	AddBOS       bool     // the engine puts BOS before a prompt
	ChatTemplate string   // Jinja
}

// WeightInfo names a tensor of a model, with its dimensions as in TensorInfo.
type WeightInfo struct {
	Name     string
	Dims     []uint64
	optional bool // llama.cpp does without
}

// Weights lists the tensors of the model in file order, for a vocabulary of that size. Biases (qwen2) included.
func (c Config) Weights(vocabulary int) []WeightInfo {
	return slices.DeleteFunc(c.layout(vocabulary), func(w WeightInfo) bool { return w.optional })
}

// layout lists every tensor that llama.cpp looks for in a dense model of the architecture, its optional ones included.
func (c Config) layout(vocabulary int) []WeightInfo {
	var all []WeightInfo
	add := func(optional bool, name string, dims ...int) {
		w := WeightInfo{Name: name, optional: optional}
		for _, d := range dims {
			w.Dims = append(w.Dims, uint64(d))
		}
		all = append(all, w)
	}
	add(false, "token_embd.weight", c.Width, vocabulary)
	add(false, "output_norm.weight", c.Width)
	add(c.Tied, "output.weight", c.Width, vocabulary)
	q, kv := c.Heads*c.HeadWidth, c.KVHeads*c.HeadWidth
	biased := c.Architecture == "qwen2"
	for i := range c.Layers {
		p := fmt.Sprintf("blk.%d.", i)
		add(false, p+"attn_norm.weight", c.Width)
		for _, w := range []struct {
			name string
			out  int
		}{{"attn_q", q}, {"attn_k", kv}, {"attn_v", kv}} {
			add(false, p+w.name+".weight", c.Width, w.out)
			add(!biased, p+w.name+".bias", w.out)
		}
		if c.Architecture == "qwen3" {
			add(false, p+"attn_q_norm.weight", c.HeadWidth)
			add(false, p+"attn_k_norm.weight", c.HeadWidth)
		}
		add(false, p+"attn_output.weight", q, c.Width)
		add(true, p+"attn_output.bias", c.Width)
		add(false, p+"ffn_norm.weight", c.Width)
		add(false, p+"ffn_gate.weight", c.Width, c.FeedForward)
		add(false, p+"ffn_up.weight", c.Width, c.FeedForward)
		add(false, p+"ffn_down.weight", c.FeedForward, c.Width)
	}
	return all
}

// WriteModel writes a model. Matrices are stored as the given type, vectors as F32. weights is asked for one tensor at a time, in the
// order of Config.Weights; it returns the values row by row, a row being the first dimension.
func WriteModel(w io.Writer, c Config, t Tokenizer, as Type, weights func(WeightInfo) ([]float32, error)) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("write model: %w", err)
	}
	meta := c.metadata(as)
	meta = append(meta, t.metadata()...)
	var tensors []Tensor
	for _, info := range c.Weights(len(t.Tokens)) {
		typ := as
		if len(info.Dims) == 1 {
			typ = F32
		}
		tensors = append(tensors, Tensor{info.Name, typ, info.Dims, func() ([]float32, error) { return weights(info) }})
	}
	if err := checkMeta(meta, tensors); err != nil {
		return fmt.Errorf("write model: %w", err)
	}
	return Write(w, meta, tensors)
}

// check bounds what a list is made of, and what must fit a uint32.
func (c Config) check() error {
	for _, v := range []struct {
		name    string
		n, most int
	}{
		{"layers (block_count)", c.Layers, maxLayers}, {"context (context_length)", c.ContextTokens, maxContext},
		{"width (embedding_length)", c.Width, maxWidth}, {"hidden width (feed_forward_length)", c.FeedForward, maxFeed},
		{"heads (head_count)", c.Heads, maxHeads}, {"heads with keys (head_count_kv)", c.KVHeads, maxHeads},
		{"width of a head (key_length)", c.HeadWidth, maxHeadWidth},
	} {
		if v.n < 1 || v.n > v.most {
			return fmt.Errorf("%s: %d is out of range: it must be from 1 to %d", v.name, v.n, v.most)
		}
	}
	return nil
}

// checkMeta holds what is about to be written to the same rules as what is read.
func checkMeta(meta []Pair, tensors []Tensor) error {
	h := &Header{values: map[string]any{}}
	for _, p := range meta {
		h.keys = append(h.keys, p.Key)
		h.values[p.Key] = p.Value
	}
	for _, t := range tensors {
		h.Tensors = append(h.Tensors, TensorInfo{Name: t.Name, Type: t.Type, Dims: t.Dims})
	}
	return h.Check()
}

func (c Config) metadata(as Type) []Pair {
	a := c.Architecture
	return []Pair{
		{"general.architecture", a},
		{"general.type", "model"},
		{"general.name", c.Name},
		{"general.file_type", fileTypes[as]},
		{"general.quantization_version", uint32(2)},
		{a + ".context_length", uint32(c.ContextTokens)},
		{a + ".block_count", uint32(c.Layers)},
		{a + ".embedding_length", uint32(c.Width)},
		{a + ".feed_forward_length", uint32(c.FeedForward)},
		{a + ".attention.head_count", uint32(c.Heads)},
		{a + ".attention.head_count_kv", uint32(c.KVHeads)},
		{a + ".attention.key_length", uint32(c.HeadWidth)},
		{a + ".attention.value_length", uint32(c.HeadWidth)},
		{a + ".attention.layer_norm_rms_epsilon", c.NormEps},
		{a + ".rope.dimension_count", uint32(c.HeadWidth)},
		{a + ".rope.freq_base", c.RopeBase},
	}
}

func (t Tokenizer) metadata() []Pair {
	types := make([]int32, len(t.Types))
	for i, typ := range t.Types {
		types[i] = int32(typ)
	}
	meta := []Pair{
		{"tokenizer.ggml.model", "gpt2"},
		{"tokenizer.ggml.pre", t.Pre},
		{"tokenizer.ggml.tokens", t.Tokens},
		{"tokenizer.ggml.token_type", types},
		{"tokenizer.ggml.merges", t.Merges},
		{"tokenizer.ggml.bos_token_id", uint32(t.BOS)},
		{"tokenizer.ggml.eos_token_id", uint32(t.EOS)},
		{"tokenizer.ggml.padding_token_id", uint32(t.EOS)},
		{"tokenizer.ggml.add_bos_token", t.AddBOS},
	}
	if t.ChatTemplate != "" {
		meta = append(meta, Pair{"tokenizer.chat_template", t.ChatTemplate})
	}
	return meta
}

// fileTypes maps the type of the weights to general.file_type.
var fileTypes = map[Type]uint32{F32: 0, F16: 1, Q8_0: 7}
