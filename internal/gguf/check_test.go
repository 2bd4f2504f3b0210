package gguf_test

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
)

// model is a small file that passes, to be spoilt by tests: its metadata and tensors.
type model struct {
	meta    []gguf.Pair
	tensors []gguf.Tensor
}

// dense describes a model of an architecture that Check knows in full.
func dense(arch string) *model {
	c := gguf.Config{
		Architecture: arch, Name: "test", ContextTokens: 64, Layers: 2, Width: 32, FeedForward: 64,
		Heads: 2, KVHeads: 1, HeadWidth: 16, RopeBase: 1e4, NormEps: 1e-5,
	}
	m := other(arch)
	m.tensors = nil
	for _, w := range c.Weights(4) {
		n := uint64(1)
		for _, d := range w.Dims {
			n *= d
		}
		m.tensors = append(m.tensors, tensor(w.Name, gguf.F32, make([]float32, n), w.Dims...))
	}
	return m
}

// other describes a model of an architecture of which Check knows only what all have in common.
func other(arch string) *model {
	return &model{
		meta: []gguf.Pair{
			{"general.architecture", arch}, {"general.type", "model"}, {"general.name", "test"},
			{arch + ".context_length", uint32(64)}, {arch + ".block_count", uint32(2)},
			{arch + ".embedding_length", uint32(32)}, {arch + ".feed_forward_length", uint32(64)},
			{arch + ".attention.head_count", uint32(2)}, {arch + ".attention.head_count_kv", uint32(1)},
			{arch + ".attention.layer_norm_rms_epsilon", float32(1e-5)}, {arch + ".rope.freq_base", float32(1e4)},
			{"tokenizer.ggml.model", "gpt2"}, {"tokenizer.ggml.pre", "qwen2"},
			{"tokenizer.ggml.tokens", []string{"a", "b", "ab", "<|end|>"}}, {"tokenizer.ggml.token_type", []int32{1, 1, 1, 3}},
			{"tokenizer.ggml.merges", []string{"a b"}}, {"tokenizer.ggml.eos_token_id", uint32(3)},
		},
		tensors: []gguf.Tensor{tensor("token_embd.weight", gguf.F32, make([]float32, 128), 32, 4)},
	}
}

// set replaces or adds a key; a nil value removes it.
func (m *model) set(key string, value any) *model {
	m.meta = slices.DeleteFunc(m.meta, func(p gguf.Pair) bool { return p.Key == key })
	if value != nil {
		m.meta = append(m.meta, gguf.Pair{Key: key, Value: value})
	}
	return m
}

// swap replaces a tensor; with nil dimensions it removes it.
func (m *model) swap(name string, typ gguf.Type, dims ...uint64) *model {
	m.tensors = slices.DeleteFunc(m.tensors, func(t gguf.Tensor) bool { return t.Name == name })
	if dims != nil {
		n := uint64(1)
		for _, d := range dims {
			n *= d
		}
		m.tensors = append(m.tensors, tensor(name, typ, make([]float32, n), dims...))
	}
	return m
}

func (m *model) check(t *testing.T) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := os.WriteFile(path, encode(t, m.meta, m.tensors...), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := gguf.Check(path)
	return err
}

func TestCheckAccepts(t *testing.T) {
	bytesOf := make([]string, 256)
	for i := range bytesOf {
		bytesOf[i] = fmt.Sprintf("<0x%02X>", i)
	}
	for name, m := range map[string]*model{
		"llama": dense("llama"),
		"qwen2": dense("qwen2"),
		"qwen3": dense("qwen3"),
		"tied":  dense("llama").swap("output.weight", 0),
		"rope frequencies": dense("llama").swap("rope_freqs.weight", gguf.F32, 8).
			set("llama.rope.scaling.type", "yarn").set("llama.rope.scaling.factor", float32(4)),
		"padding id that llama.cpp ignores": dense("llama").set("tokenizer.ggml.padding_token_id", uint32(math.MaxUint32)),
		"gemma3": other("gemma3").set("gemma3.attention.sliding_window", uint32(512)).set("gemma3.rope.freq_base_swa", float32(1e4)).
			set("tokenizer.ggml.model", "llama").set("tokenizer.ggml.merges", nil).set("tokenizer.ggml.tokens", bytesOf).
			set("tokenizer.ggml.token_type", nil).set("tokenizer.ggml.scores", make([]float32, 256)).
			swap("token_embd.weight", gguf.Q8_0, 32, 256),
		"gpt-oss": other("gpt-oss").set("gpt-oss.expert_count", uint32(32)).set("gpt-oss.expert_used_count", uint32(4)).
			set("gpt-oss.attention.key_length", uint32(64)).set("gpt-oss.attention.value_length", uint32(64)),
		"qwen3moe": other("qwen3moe").set("qwen3moe.expert_count", uint32(128)).set("qwen3moe.expert_used_count", uint32(8)),
		"mixtral":  dense("llama").set("llama.expert_count", uint32(8)).set("llama.expert_used_count", uint32(2)).swap("blk.0.ffn_up.weight", 0),
		"one head count for each layer": other("openelm").set("openelm.attention.head_count", []uint32{4, 2}).
			set("openelm.attention.head_count_kv", []int32{2, 1}).set("openelm.feed_forward_length", []uint32{64, 96}),
		"layers without attention": other("lfm2").set("lfm2.attention.head_count_kv", []uint32{0, 1}),
	} {
		if err := m.check(t); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		m    *model
		want string
	}{
		"adapter":          {dense("llama").set("general.type", "adapter"), `general.type is "adapter"`},
		"no architecture":  {dense("llama").set("general.architecture", nil), "general.architecture is <nil>"},
		"odd architecture": {other("LLAMA"), "general.architecture is"},
		"encoder":          {other("bert"), "continues text"},
		"name type":        {dense("llama").set("general.name", uint32(1)), "general.name is 1 (uint32): it must be a string"},

		"no layers":           {dense("llama").set("llama.block_count", nil), "llama.block_count is missing"},
		"zero layers":         {dense("llama").set("llama.block_count", uint32(0)), "llama.block_count is 0: it must be from 1 to 512"},
		"many layers":         {dense("llama").set("llama.block_count", uint32(513)), "llama.block_count is 513"},
		"type of layers":      {dense("llama").set("llama.block_count", uint64(2)), "llama.block_count is 2 (uint64): it must be a uint32"},
		"context":             {dense("llama").set("llama.context_length", uint32(1<<31)), "llama.context_length is 2147483648"},
		"heads":               {dense("llama").set("llama.attention.head_count", uint32(3)), "must divide"},
		"no heads":            {dense("llama").set("llama.attention.head_count", nil), "head_count"},
		"kv heads":            {dense("llama").set("llama.attention.head_count_kv", uint32(4)), "llama.attention.head_count_kv is 4"},
		"too few head counts": {other("deci").set("deci.attention.head_count", []uint32{2}), "has 1 values: the model has 2 layers"},
		"key width":           {dense("llama").set("llama.attention.key_length", uint32(8)), "value_length"},
		"rope width":          {dense("llama").set("llama.rope.dimension_count", uint32(7)), "must be even"},
		"rope width again":    {dense("llama").set("llama.rope.dimension_count", uint32(8)), "must be the heads' width"},
		"epsilon":             {dense("llama").set("llama.attention.layer_norm_rms_epsilon", float32(-1)), "above 0"},
		"no epsilon":          {dense("llama").set("llama.attention.layer_norm_rms_epsilon", nil), "epsilon is missing"},
		"nan":                 {dense("llama").set("llama.rope.freq_base", nan), "llama.rope.freq_base is NaN"},
		"infinite":            {dense("llama").set("llama.logit_scale", float32(math.Inf(1))), "must be finite"},
		"rope scaling":        {dense("llama").set("llama.rope.scaling.type", "yran"), `"yran": it must be one of`},
		"not causal":          {other("gemma-embedding").set("gemma-embedding.attention.causal", false), "attention.causal is false"},
		"experts":             {other("qwen3moe").set("qwen3moe.expert_count", uint32(513)), "expert_count is 513"},
		"no experts used":     {other("qwen3moe").set("qwen3moe.expert_count", uint32(8)), "expert_used_count is 0"},
		"more used":           {other("qwen3moe").set("qwen3moe.expert_used_count", uint32(8)), "expert_used_count is 8"},
		"expert groups":       {other("x").set("x.expert_count", uint32(8)).set("x.expert_used_count", uint32(2)).set("x.expert_group_count", uint32(3)), "expert_group_count is 3"},

		"no tokenizer":     {dense("llama").set("tokenizer.ggml.model", nil), "tokenizer.ggml.model is missing"},
		"no tokens":        {dense("llama").set("tokenizer.ggml.tokens", nil), "has 0 entries"},
		"tokens type":      {dense("llama").set("tokenizer.ggml.tokens", []uint32{1}), "it must be a []string"},
		"vocabulary size":  {dense("llama").set("llama.vocab_size", uint32(5)), "llama.vocab_size is 5"},
		"token twice":      {dense("llama").set("tokenizer.ggml.tokens", []string{"a", "b", "ab", "b"}), `"b" twice`},
		"token not UTF-8":  {dense("llama").set("tokenizer.ggml.tokens", []string{"a", "b", "ab", "\xff"}), "must be UTF-8"},
		"scores":           {dense("llama").set("tokenizer.ggml.scores", make([]float32, 3)), "scores has 3 entries"},
		"nan score":        {dense("llama").set("tokenizer.ggml.scores", []float32{0, 0, nan, 0}), "must be finite"},
		"token types":      {dense("llama").set("tokenizer.ggml.token_type", []int32{1, 1, 1}), "token_type has 3 entries"},
		"token type":       {dense("llama").set("tokenizer.ggml.token_type", []int32{1, 1, 7, 1}), "is 7 for token 2"},
		"token types type": {dense("llama").set("tokenizer.ggml.token_type", []uint8{1, 1, 1, 3}), "array of int32"},
		"no merges":        {dense("llama").set("tokenizer.ggml.merges", nil), "merges is missing"},
		"merge form":       {other("x").set("tokenizer.ggml.merges", []string{"ab"}), "two tokens with a space between"},
		"merge result":     {dense("llama").set("tokenizer.ggml.merges", []string{"b a"}), `needs "ba"`},
		"eos":              {dense("llama").set("tokenizer.ggml.eos_token_id", uint32(4)), "eos_token_id is 4: there are 4 tokens"},
		"byte tokens":      {other("x").set("tokenizer.ggml.model", "llama"), "lacks <0x00>"},
		"charsmap":         {other("x").set("tokenizer.ggml.precompiled_charsmap", "abc"), "array of bytes"},
		"template":         {dense("llama").set("tokenizer.chat_template", strings.Repeat("x", 2<<20)), "tokenizer.chat_template has 2097152 bytes"},

		"no embeddings":  {other("x").swap("token_embd.weight", 0), "token_embd.weight is []"},
		"embeddings":     {other("x").swap("token_embd.weight", gguf.F32, 32, 5), "each of the 4 tokens"},
		"missing tensor": {dense("llama").swap("blk.1.ffn_up.weight", 0), "tensor blk.1.ffn_up.weight is missing"},
		"missing bias":   {dense("qwen2").swap("blk.0.attn_k.bias", 0), "tensor blk.0.attn_k.bias is missing"},
		"missing norm":   {dense("qwen3").swap("blk.0.attn_q_norm.weight", 0), "attn_q_norm.weight is missing"},
		"shape":          {dense("llama").swap("blk.1.attn_k.weight", gguf.F32, 16, 32), "is [16 32]: it must be [32 16]"},
		"vector type":    {dense("llama").swap("output_norm.weight", gguf.F16, 32), "vectors must be F32"},
	} {
		if err := c.m.check(t); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

func TestCheckOfSplitModel(t *testing.T) {
	dir := t.TempDir()
	name := func(i int) string { return filepath.Join(dir, fmt.Sprintf("m-%05d-of-00002.gguf", i)) }
	part := func(i int, meta []gguf.Pair, tensors []gguf.Tensor) {
		meta = append(slices.Clone(meta), gguf.Pair{Key: "split.no", Value: uint16(i)}, gguf.Pair{Key: "split.count", Value: uint16(2)},
			gguf.Pair{Key: "split.tensors.count", Value: int32(21)})
		if err := os.WriteFile(name(i+1), encode(t, meta, tensors...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := dense("llama")
	part(0, m.meta, m.tensors[:5])
	if _, err := gguf.Check(name(1)); err == nil || !strings.Contains(err.Error(), "00002-of-00002") {
		t.Errorf("without its second file: %v", err)
	}
	part(1, nil, m.tensors[5:])
	h, err := gguf.Check(name(1))
	if err != nil || len(h.Tensors) != len(m.tensors) {
		t.Errorf("whole: %v", err)
	}
	if _, err := gguf.Check(name(2)); err == nil || !strings.Contains(err.Error(), "first file") {
		t.Errorf("second file: %v", err)
	}
	part(1, nil, m.tensors[6:])
	if _, err := gguf.Check(name(1)); err == nil || !strings.Contains(err.Error(), "split.tensors.count") {
		t.Errorf("one tensor short: %v", err)
	}
	part(1, nil, m.tensors[4:])
	if _, err := gguf.Check(name(1)); err == nil || !strings.Contains(err.Error(), "in an earlier file") {
		t.Errorf("one tensor twice: %v", err)
	}
}

func TestCheckAdapter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{}); err != nil {
		t.Fatal(err)
	}
	base, err := gguf.Check(path)
	if err != nil {
		t.Fatal(err)
	}
	lora := func(name string, in, out, rank int) gguf.LoRA {
		return gguf.LoRA{Tensor: name, In: in, Out: out, Rank: rank, A: make([]float32, rank*in), B: make([]float32, out*rank)}
	}
	good := gguf.Adapter{Architecture: "llama", Alpha: 16, Weights: []gguf.LoRA{lora("blk.0.attn_q.weight", 64, 64, 8)}}
	change := func(f func(*gguf.Adapter)) gguf.Adapter {
		a := good
		f(&a)
		return a
	}
	for name, c := range map[string]struct {
		adapter gguf.Adapter
		want    string // "" passes
	}{
		"good":         {good, ""},
		"architecture": {change(func(a *gguf.Adapter) { a.Architecture = "qwen2" }), `must be the string "llama"`},
		"alpha":        {change(func(a *gguf.Adapter) { a.Alpha = 0 }), "adapter.lora.alpha is 0"},
		"empty":        {change(func(a *gguf.Adapter) { a.Weights = nil }), "no tensors"},
		"other model":  {change(func(a *gguf.Adapter) { a.Weights = []gguf.LoRA{lora("blk.9.attn_q.weight", 64, 64, 8)} }), "no matrix blk.9.attn_q.weight"},
		"shape":        {change(func(a *gguf.Adapter) { a.Weights = []gguf.LoRA{lora("blk.0.attn_k.weight", 64, 64, 8)} }), "[64 rank] and [rank 32]"},
		"vector":       {change(func(a *gguf.Adapter) { a.Weights = []gguf.LoRA{lora("output_norm.weight", 64, 1, 8)} }), "no matrix"},
	} {
		path := filepath.Join(t.TempDir(), "adapter.gguf")
		if err := gguf.WriteFile(path, func(w io.Writer) error { return gguf.WriteAdapter(w, c.adapter) }); err != nil {
			t.Fatal(err)
		}
		_, err := gguf.CheckAdapter(path, base)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
	if _, err := gguf.CheckAdapter(path, base); err == nil || !strings.Contains(err.Error(), `general.type is model`) {
		t.Errorf("a model as an adapter: %v", err)
	}
	if _, err := gguf.Check(filepath.Join(t.TempDir(), "none.gguf")); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
}

func TestDescription(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{Type: gguf.Q8_0}); err != nil {
		t.Fatal(err)
	}
	h, err := gguf.Check(path)
	if err != nil {
		t.Fatal(err)
	}
	if h.Architecture() != "llama" || h.Name() != "Tiny" || h.ContextTokens() != 4096 || h.WeightType() != gguf.Q8_0 {
		t.Errorf("%s %s, context %d, %v", h.Architecture(), h.Name(), h.ContextTokens(), h.WeightType())
	}
	// 4 layers, one KV head of 32, keys and values
	for typ, want := range map[gguf.Type]uint64{gguf.F32: 1024, gguf.F16: 512, gguf.Q8_0: 272, 99: 0} {
		if got := h.KVBytesPerToken(typ); got != want {
			t.Errorf("%d bytes of %v for each token, want %d", got, typ, want)
		}
	}
	want := []string{tiny.BOS, tiny.TurnStart, tiny.EOS, tiny.ThinkOpen, tiny.ThinkClose}
	if got := h.SpecialTokens(); !slices.Equal(got, want) {
		t.Errorf("special tokens %q, want %q", got, want)
	}
	n := len(h.Tokens())
	if id, text, ok := h.SpecialToken("eos"); !ok || text != tiny.EOS || id != n-3 || h.TokenType(id) != gguf.TokenControl {
		t.Errorf("eos is %d, %q, %v", id, text, ok)
	}
	if _, _, ok := h.SpecialToken("unknown"); ok {
		t.Error("there is an unknown token")
	}
	if h.TokenType(n-1) != gguf.TokenUserDefined || h.TokenType('a') != gguf.TokenNormal || h.TokenType(n) != gguf.TokenNormal {
		t.Error("token types are mixed up")
	}
	if !strings.Contains(h.ChatTemplate(), "add_generation_prompt") {
		t.Errorf("template %q", h.ChatTemplate())
	}
	if h.TensorBytes() >= h.Parameters()*2 || h.Parameters() < 100_000 {
		t.Errorf("%d parameters in %d bytes", h.Parameters(), h.TensorBytes())
	}
}
