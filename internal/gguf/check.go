package gguf

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of hyperparameters. The first two are llama.cpp's own (beyond them it ends the process), the others leave the largest
// known models far inside.
const (
	maxLayers     = 512
	maxExperts    = 512
	maxContext    = 1 << 26
	maxWidth      = 1 << 17
	maxFeed       = 1 << 20
	maxHeads      = 1 << 12
	maxHeadWidth  = 1 << 13
	maxVocabulary = 1 << 21
	maxTemplate   = 1 << 20 // bytes
)

// architectureName is what a general.architecture looks like; llama.cpp says itself which it knows.
var architectureName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// splitName matches the parts of a model in several files.
var splitName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// Check reads the header of a model and returns an error unless llama.cpp may be given the file. Of a model in several files it is
// given the first; it checks all, and the header it returns has the tensors of all. An error says which key or tensor is wrong,
// what it holds and what would be right.
func Check(path string) (*Header, error) {
	h, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	if parts, ok := h.Uint("split.count"); ok && parts > 1 {
		if err := h.addParts(path, parts); err != nil {
			return nil, fmt.Errorf("check %s: %w", path, err)
		}
	}
	if err := h.Check(); err != nil {
		return nil, fmt.Errorf("check %s: %w", path, err)
	}
	return h, nil
}

// addParts appends the tensors of the model's other files.
func (h *Header) addParts(path string, parts uint64) error {
	m := splitName.FindStringSubmatch(filepath.Base(path))
	if m == nil || m[3] != fmt.Sprintf("%05d", parts) {
		return fmt.Errorf("split.count is %d: the file's name must end in -00001-of-%05d.gguf", parts, parts)
	}
	if no, ok := h.Uint("split.no"); !ok || no != 0 || m[2] != "00001" {
		return fmt.Errorf("split.no is %d: give the model's first file, %s-00001-of-%s.gguf", no, m[1], m[3])
	}
	have := map[string]bool{}
	for _, t := range h.Tensors {
		have[t.Name] = true
	}
	for i := range parts - 1 {
		name := fmt.Sprintf("%s-%05d-of-%s.gguf", m[1], i+2, m[3])
		part, err := ReadFile(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			return err
		}
		if no, ok := part.Uint("split.no"); !ok || no != i+1 {
			return fmt.Errorf("%s: split.no is %d: it must be %d", name, no, i+1)
		}
		for _, t := range part.Tensors {
			if have[t.Name] {
				return fmt.Errorf("%s: tensor %s is in an earlier file too", name, t.Name)
			}
			have[t.Name] = true
			h.Tensors = append(h.Tensors, t)
		}
	}
	if n, ok := h.Uint("split.tensors.count"); ok && n != uint64(len(h.Tensors)) {
		return fmt.Errorf("split.tensors.count is %d, but the files hold %d tensors", n, len(h.Tensors))
	}
	return nil
}

// Check returns an error unless llama.cpp may be given a model with this header: hyperparameters, vocabulary and tensors have the
// types it expects, are plausible, and fit one another. For llama, qwen2 and qwen3 every tensor's shape is checked; other
// architectures pass with what all have in common.
func (h *Header) Check() error {
	c := &checker{h: h, arch: h.Architecture()}
	c.general()
	c.hyperparameters()
	c.vocabulary()
	c.tensors()
	return c.err
}

// checker keeps the first thing that is wrong; after it all checks pass by.
type checker struct {
	h      *Header
	arch   string
	layers uint64
	heads  []uint64 // of each layer
	err    error
}

func (c *checker) failf(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// want returns the value of a key, which must have type T; ok is false if the key is absent.
func want[T any](c *checker, key string) (v T, ok bool) {
	got, ok := c.h.values[key]
	if !ok {
		return v, false
	}
	if v, ok = got.(T); !ok {
		c.failf("%s is %s: it must be a %T", key, brief(got), v)
	}
	return v, ok
}

// brief prints a value for an error message.
func brief(v any) string {
	s := fmt.Sprintf("%v (%T)", v, v)
	if str, ok := v.(string); ok {
		s = fmt.Sprintf("%q", str)
	}
	if len(s) > 80 {
		s = fmt.Sprintf("%.60s… (%T)", strings.ToValidUTF8(s, "?"), v)
	}
	return s
}

// count returns a uint32 that must lie within bounds; ok is false if the key is absent.
func (c *checker) count(key string, least, most uint32) (uint64, bool) {
	n, ok := want[uint32](c, key)
	if ok && (n < least || n > most) {
		c.failf("%s is %d: it must be from %d to %d", key, n, least, most)
		return 0, false
	}
	return uint64(n), ok
}

// required is count for a key that must be there.
func (c *checker) required(key string, least, most uint32) uint64 {
	n, ok := c.count(key, least, most)
	if !ok {
		c.failf("%s is missing: it must be a uint32 from %d to %d", key, least, most)
	}
	return n
}

// eachLayer returns one count for each layer from a key that holds a uint32 or an array; nil if it is absent.
func (c *checker) eachLayer(key string, most uint64) []uint64 {
	v, ok := c.h.values[key]
	if !ok || c.err != nil {
		return nil
	}
	n := -1
	switch v := v.(type) {
	case uint32:
	case []uint32:
		n = len(v)
	case []int32:
		n = len(v)
		if slices.ContainsFunc(v, func(x int32) bool { return x < 0 }) {
			c.failf("%s is %s: no value may be negative", key, brief(v))
		}
	default:
		c.failf("%s is %s: it must be a uint32, or an array of them with one for each layer", key, brief(v))
		return nil
	}
	if n >= 0 && uint64(n) < c.layers {
		c.failf("%s has %d values: the model has %d layers", key, n, c.layers)
		return nil
	}
	all := c.h.perLayer(key, c.layers)
	for i, x := range all {
		if x > most {
			c.failf("%s is %d in layer %d: it must be at most %d", key, x, i, most)
		}
	}
	return all
}

func (c *checker) general() {
	if kind, ok := want[string](c, "general.type"); ok && kind != "model" {
		c.failf("general.type is %q: a file to be loaded as a model has \"model\"", kind)
	}
	arch, _ := want[string](c, "general.architecture")
	if !architectureName.MatchString(arch) {
		c.failf("general.architecture is %s: it must name an architecture, such as \"llama\"", brief(c.h.values["general.architecture"]))
	}
	if slices.Contains([]string{"bert", "clip", "t5", "t5encoder", "wavtokenizer-dec"}, arch) {
		c.failf("general.architecture is %q: it must be that of a model that continues text, such as \"llama\"", arch)
	}
	want[string](c, "general.name")
	want[uint32](c, "general.file_type")
	want[uint32](c, "general.quantization_version")
}

func (c *checker) hyperparameters() {
	key := func(name string) string { return c.arch + "." + name }
	c.layers = c.required(key("block_count"), 1, maxLayers)
	c.required(key("context_length"), 1, maxContext)
	width := c.required(key("embedding_length"), 1, maxWidth)
	c.eachLayer(key("feed_forward_length"), maxFeed)
	c.heads = c.eachLayer(key("attention.head_count"), maxHeads)
	for i, kv := range c.eachLayer(key("attention.head_count_kv"), maxHeads) {
		if c.heads == nil || kv > 0 && (c.heads[i] == 0 || c.heads[i]%kv != 0) {
			c.failf("%s is %d in layer %d: it must divide %s, %v", key("attention.head_count_kv"), kv, i, key("attention.head_count"), brief(c.h.values[key("attention.head_count")]))
		}
	}
	head := width
	if len(c.heads) > 0 && c.heads[0] > 0 {
		head = width / c.heads[0]
	}
	if n, ok := c.count(key("attention.key_length"), 1, maxHeadWidth); ok {
		head = n
	}
	c.count(key("attention.value_length"), 1, maxHeadWidth)
	if n, ok := c.count(key("rope.dimension_count"), 0, maxHeadWidth); ok && (n > head || n%2 != 0) {
		c.failf("%s is %d: it must be even and at most the heads' width, %d", key("rope.dimension_count"), n, head)
	}
	c.experts(key)

	for _, name := range []string{"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"} {
		if v, ok := want[float32](c, key(name)); ok && !(v > 0 && v <= 0.1) {
			c.failf("%s is %v: it must be above 0 and at most 0.1", key(name), v)
		}
	}
	for _, name := range []string{"rope.freq_base", "rope.freq_base_swa"} {
		if v, ok := want[float32](c, key(name)); ok && !(v >= 1 && v <= 1e12) {
			c.failf("%s is %v: it must be from 1 to 1e12", key(name), v)
		}
	}
	for _, name := range []string{"rope.scaling.factor", "rope.scale_linear"} {
		if v, ok := want[float32](c, key(name)); ok && !(v >= 0 && v <= 1e4) {
			c.failf("%s is %v: it must be from 0 to 10000", key(name), v)
		}
	}
	scalings := []string{"none", "linear", "yarn", "longrope"}
	if s, ok := want[string](c, key("rope.scaling.type")); ok && !slices.Contains(scalings, s) {
		c.failf("%s is %q: it must be one of %q", key("rope.scaling.type"), s, scalings)
	}
	c.count(key("pooling_type"), 0, 4)
	if causal, ok := want[bool](c, key("attention.causal")); ok && !causal {
		c.failf("%s is false: only models that continue text can be loaded, which attend to what is before", key("attention.causal"))
	}
	// Every number of the architecture must be one.
	for _, k := range c.h.keys {
		if !strings.HasPrefix(k, c.arch+".") {
			continue
		}
		switch v := c.h.values[k].(type) {
		case float32:
			c.finite(k, v)
		case []float32:
			c.finite(k, v...)
		}
	}
}

// experts checks what llama.cpp asserts of mixtures of experts.
func (c *checker) experts(key func(string) string) {
	n, _ := c.count(key("expert_count"), 0, maxExperts)
	var most uint64
	for _, used := range c.eachLayer(key("expert_used_count"), maxExperts) {
		most = max(most, used)
	}
	if most > n || n > 0 && most == 0 {
		c.failf("%s is %d: it must be from 1 to %s, %d, or absent without experts", key("expert_used_count"), most, key("expert_count"), n)
	}
	groups, _ := c.count(key("expert_group_count"), 0, maxExperts)
	used, _ := c.count(key("expert_group_used_count"), 0, maxExperts)
	if groups > 0 && groups >= n || groups > 1 && (n%groups != 0 || used == 0 || used >= groups) {
		c.failf("%s is %d, %d of them used: they must divide the %d experts, and some but not all be used", key("expert_group_count"), groups, used, n)
	}
	c.count(key("expert_gating_func"), 0, 4)
	c.count(key("nextn_predict_layers"), 0, uint32(c.layers))
}

func (c *checker) finite(key string, values ...float32) {
	for _, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			c.failf("%s holds %v: it must be finite", key, v)
		}
	}
}

func (c *checker) vocabulary() {
	const p = "tokenizer.ggml."
	model, _ := want[string](c, p+"model")
	if model == "" {
		c.failf("%smodel is missing or empty: it must name the kind of tokenizer, such as \"gpt2\"", p)
	}
	want[string](c, p+"pre")
	want[bool](c, p+"add_bos_token")
	want[bool](c, p+"add_eos_token")
	tokens, _ := want[[]string](c, p+"tokens")
	n := len(tokens)
	if n == 0 || n > maxVocabulary {
		c.failf("%stokens has %d entries: a vocabulary has 1 to %d", p, n, maxVocabulary)
	}
	if v, ok := c.count(c.arch+".vocab_size", 1, maxVocabulary); ok && v != uint64(n) {
		c.failf("%s.vocab_size is %d, but %stokens has %d entries", c.arch, v, p, n)
	}
	if scores, ok := want[[]float32](c, p+"scores"); ok {
		if len(scores) != n {
			c.failf("%sscores has %d entries: there are %d tokens", p, len(scores), n)
		}
		c.finite(p+"scores", scores...)
	}
	c.tokenTypes(p+"token_type", n)
	ids := make(map[string]int, n)
	for id, text := range tokens {
		if other, ok := ids[text]; ok && text != "" {
			c.failf("%stokens has %q twice, as %d and %d: every token needs its own text", p, text, other, id)
		}
		if !utf8.ValidString(text) || strings.Contains(text, "\x00") && text != "\x00" {
			c.failf("%stokens: token %d, %q, must be UTF-8 without a zero byte", p, id, text)
		}
		ids[text] = id
	}
	c.merges(p+"merges", model, ids)
	if model == "llama" { // SentencePiece ends the process over a byte that has no token
		for b := range 256 {
			if _, ok := ids[fmt.Sprintf("<0x%02X>", b)]; ok {
				continue
			}
			if _, ok := ids[string([]byte{byte(b)})]; !ok {
				c.failf("%stokens lacks <0x%02X>: a %q vocabulary needs a token for each of the 256 bytes", p, b, model)
			}
		}
	}
	for _, role := range []string{"bos", "eos", "eot", "eom"} {
		if id, ok := want[uint32](c, p+role+"_token_id"); ok && uint64(id) >= uint64(n) {
			c.failf("%s%s_token_id is %d: there are %d tokens", p, role, id, n)
		}
	}
	if v, ok := c.h.values[p+"precompiled_charsmap"]; ok {
		switch v.(type) {
		case []uint8, []int8:
		default:
			c.failf("%sprecompiled_charsmap is a %T: it must be an array of bytes", p, v)
		}
	}
	if t, ok := want[string](c, "tokenizer.chat_template"); ok && (len(t) > maxTemplate || !utf8.ValidString(t)) {
		c.failf("tokenizer.chat_template has %d bytes: it must be UTF-8 of at most %d", len(t), maxTemplate)
	}
}

func (c *checker) tokenTypes(key string, tokens int) {
	v, ok := c.h.values[key]
	if !ok {
		return
	}
	n := 0
	switch v := v.(type) {
	case []int32:
		n = len(v)
	case []uint32:
		n = len(v)
	default:
		c.failf("%s is %s: it must be an array of int32", key, brief(v))
		return
	}
	if n != tokens {
		c.failf("%s has %d entries: there are %d tokens", key, n, tokens)
		return
	}
	for id := range n {
		if t := c.h.TokenType(id); t < 0 || t > TokenByte {
			c.failf("%s is %d for token %d: a type is from 0 to 6", key, t, id)
		}
	}
}

// merges checks the rules of byte pair encoding: each joins two tokens into a third.
func (c *checker) merges(key, model string, ids map[string]int) {
	merges, ok := want[[]string](c, key)
	if model != "gpt2" {
		return
	}
	if !ok {
		c.failf("%s is missing: a \"gpt2\" vocabulary needs its array of strings \"left right\"", key)
	}
	for i, m := range merges {
		left, right, ok := strings.Cut(m, " ")
		if !ok || left == "" || right == "" || strings.Contains(right, " ") {
			c.failf("%s: rule %d, %q, must be two tokens with a space between", key, i, m)
			return
		}
		if !dense[c.arch] {
			continue
		}
		for _, text := range []string{left, right, left + right} {
			if _, ok := ids[text]; !ok {
				c.failf("%s: rule %d, %q, needs %q, which is not in the vocabulary", key, i, m, text)
				return
			}
		}
	}
}

// dense lists the architectures whose tensors Config describes.
var dense = map[string]bool{"llama": true, "qwen2": true, "qwen3": true}

func (c *checker) tensors() {
	if c.err != nil {
		return
	}
	dims := map[string]TensorInfo{}
	for _, t := range c.h.Tensors {
		dims[t.Name] = t
	}
	embd, ok := dims["token_embd.weight"]
	if vocabulary := uint64(len(c.h.Tokens())); !ok || len(embd.Dims) != 2 || embd.Dims[1] != vocabulary {
		c.failf("token_embd.weight is %v: it must be a matrix with a column for each of the %d tokens", embd.Dims, vocabulary)
	}
	experts, _ := c.h.Uint(c.arch + ".expert_count")
	if !dense[c.arch] || experts > 0 || c.err != nil {
		return
	}
	cfg, err := c.config()
	if err != nil {
		c.err = err
		return
	}
	for _, w := range cfg.layout(len(c.h.Tokens())) {
		t, ok := dims[w.Name]
		fused := strings.Contains(w.Name, ".attn_q.") || strings.Contains(w.Name, ".attn_k.") || strings.Contains(w.Name, ".attn_v.")
		_, qkv := dims[w.Name[:max(0, strings.LastIndex(w.Name, ".attn_"))]+".attn_qkv.weight"]
		switch {
		case !ok && (w.optional || fused && qkv):
		case !ok:
			c.failf("tensor %s is missing: %s needs it as %v", w.Name, c.arch, w.Dims)
		case !slices.Equal(t.Dims, w.Dims):
			c.failf("tensor %s is %v: it must be %v", w.Name, t.Dims, w.Dims)
		case len(w.Dims) == 1 && t.Type != F32:
			c.failf("tensor %s is %s: vectors must be F32", w.Name, t.Type)
		case !layouts[t.Type].weight:
			c.failf("tensor %s is %s, which cannot be multiplied with", w.Name, t.Type)
		}
	}
}

// config reads the shape of a dense model.
func (c *checker) config() (Config, error) {
	h, key := c.h, func(name string) string { return c.arch + "." + name }
	n := func(name string) int { v, _ := h.Uint(key(name)); return int(v) }
	cfg := Config{
		Architecture: c.arch,
		Layers:       int(c.layers),
		Width:        n("embedding_length"),
		FeedForward:  n("feed_forward_length"),
		Heads:        n("attention.head_count"),
		KVHeads:      n("attention.head_count_kv"),
		Tied:         true,
	}
	if cfg.KVHeads == 0 {
		cfg.KVHeads = cfg.Heads
	}
	if _, ok := h.Float(key("attention.layer_norm_rms_epsilon")); !ok {
		return cfg, fmt.Errorf("%s is missing: it must be a float32, such as 1e-5", key("attention.layer_norm_rms_epsilon"))
	}
	if cfg.Heads == 0 || cfg.FeedForward == 0 {
		return cfg, fmt.Errorf("%s and %s must each be one number above 0", key("attention.head_count"), key("feed_forward_length"))
	}
	value := cfg.Width / cfg.Heads
	cfg.HeadWidth = value
	if k := n("attention.key_length"); k > 0 {
		cfg.HeadWidth = k
	} else if cfg.Width%cfg.Heads != 0 {
		return cfg, fmt.Errorf("%s is %d: it must divide %s, %d", key("attention.head_count"), cfg.Heads, key("embedding_length"), cfg.Width)
	}
	if v := n("attention.value_length"); v > 0 {
		value = v
	}
	if value != cfg.HeadWidth {
		return cfg, fmt.Errorf("%s is %d: it must be as wide as the keys, %d", key("attention.value_length"), value, cfg.HeadWidth)
	}
	if r, ok := h.Uint(key("rope.dimension_count")); ok && int(r) != cfg.HeadWidth {
		return cfg, fmt.Errorf("%s is %d: it must be the heads' width, %d", key("rope.dimension_count"), r, cfg.HeadWidth)
	}
	if cfg.HeadWidth%2 != 0 {
		return cfg, errors.New("the heads' width is odd: rotary embeddings need an even one")
	}
	return cfg, nil
}
