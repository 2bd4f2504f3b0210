// Package gguf reads the headers of GGUF files, judges whether llama.cpp may be given one, and writes models and LoRA adapters.
//
// A GGUF file is metadata (typed key-value pairs), a table of tensors and, aligned behind them, the tensors' data, all little
// endian. The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; versions 2 and 3 are read.
// Nothing here reads tensor data: headers are enough to check, describe and budget for a model.
//
// llama.cpp trusts a model file: a wrong type or a number out of range in its header ends the process or loads as nonsense.
// So ReadHeader takes nothing on trust (no length is believed beyond the bytes that are really there), Check judges what the
// header means, and only what passes both should reach the engine.
package gguf

import (
	"fmt"
	"math"
	"slices"
)

// Header is the metadata and tensor table of a GGUF file.
type Header struct {
	Version    uint32
	Alignment  uint64 // of each tensor's data, in bytes
	DataOffset uint64 // where the tensor data begins in the file
	Tensors    []TensorInfo

	keys   []string       // in file order
	values map[string]any // uint8 … float64, bool, string, or a slice of one of these
}

// TensorInfo describes one tensor.
type TensorInfo struct {
	Name   string
	Type   Type
	Dims   []uint64 // 1 to 4, the contiguous one first: a matrix that maps in to out is [in, out]
	Offset uint64   // of its data, from Header.DataOffset
}

// Elements is the number of values in the tensor.
func (t TensorInfo) Elements() uint64 {
	n := uint64(1)
	for _, d := range t.Dims {
		n *= d
	}
	return n
}

// Bytes is the size of the tensor's data.
func (t TensorInfo) Bytes() uint64 {
	l := layouts[t.Type]
	return t.Elements() / l.block * l.bytes
}

// Type is how a tensor's values are stored.
type Type uint32

// The types that this package writes.
const (
	F32  Type = 0
	F16  Type = 1
	Q8_0 Type = 8
)

// layouts holds, for each type that llama.cpp v0.5.0 knows, how many values share a block and the block's bytes.
// weight is false for types that it cannot multiply with.
var layouts = map[Type]struct {
	name         string
	block, bytes uint64
	weight       bool
}{
	F32: {"F32", 1, 4, true}, F16: {"F16", 1, 2, true}, 30: {"BF16", 1, 2, true},
	2: {"Q4_0", 32, 18, true}, 3: {"Q4_1", 32, 20, true}, 6: {"Q5_0", 32, 22, true}, 7: {"Q5_1", 32, 24, true},
	Q8_0: {"Q8_0", 32, 34, true}, 9: {"Q8_1", 32, 36, false},
	10: {"Q2_K", 256, 84, true}, 11: {"Q3_K", 256, 110, true}, 12: {"Q4_K", 256, 144, true},
	13: {"Q5_K", 256, 176, true}, 14: {"Q6_K", 256, 210, true}, 15: {"Q8_K", 256, 292, false},
	16: {"IQ2_XXS", 256, 66, true}, 17: {"IQ2_XS", 256, 74, true}, 18: {"IQ3_XXS", 256, 98, true}, 19: {"IQ1_S", 256, 50, true},
	20: {"IQ4_NL", 32, 18, true}, 21: {"IQ3_S", 256, 110, true}, 22: {"IQ2_S", 256, 82, true}, 23: {"IQ4_XS", 256, 136, true},
	29: {"IQ1_M", 256, 56, true}, 34: {"TQ1_0", 256, 54, true}, 35: {"TQ2_0", 256, 66, true},
	39: {"MXFP4", 32, 17, true}, 40: {"NVFP4", 64, 36, true}, 41: {"Q1_0", 128, 18, true}, 42: {"Q2_0", 64, 18, true},
	24: {"I8", 1, 1, false}, 25: {"I16", 1, 2, false}, 26: {"I32", 1, 4, false}, 27: {"I64", 1, 8, false}, 28: {"F64", 1, 8, false},
}

// String is the type's name, such as "Q8_0".
func (t Type) String() string {
	if l, ok := layouts[t]; ok {
		return l.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// TokenType says what a token of the vocabulary is.
type TokenType int32

// The token types of tokenizer.ggml.token_type.
const (
	TokenNormal      TokenType = 1
	TokenUnknown     TokenType = 2
	TokenControl     TokenType = 3 // matched in a text only where special tokens are parsed, such as <|im_end|>
	TokenUserDefined TokenType = 4 // always matched in a text, such as <think> in many models
	TokenUnused      TokenType = 5
	TokenByte        TokenType = 6
)

// Keys lists the metadata keys in file order.
func (h *Header) Keys() []string { return slices.Clone(h.keys) }

// String returns a string value; false if the key is absent or holds something else. So do the other accessors.
func (h *Header) String(key string) (string, bool) {
	s, ok := h.values[key].(string)
	return s, ok
}

// Bool returns a boolean value.
func (h *Header) Bool(key string) (bool, bool) {
	b, ok := h.values[key].(bool)
	return b, ok
}

// Uint returns the value of any integer type that is not negative.
func (h *Header) Uint(key string) (uint64, bool) {
	switch v := h.values[key].(type) {
	case uint8:
		return uint64(v), true
	case uint16:
		return uint64(v), true
	case uint32:
		return uint64(v), true
	case uint64:
		return v, true
	case int8:
		return uint64(v), v >= 0
	case int16:
		return uint64(v), v >= 0
	case int32:
		return uint64(v), v >= 0
	case int64:
		return uint64(v), v >= 0
	}
	return 0, false
}

// Float returns a floating-point value.
func (h *Header) Float(key string) (float64, bool) {
	switch v := h.values[key].(type) {
	case float32:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// Strings returns an array of strings, shared with the header: the caller must not change it.
func (h *Header) Strings(key string) ([]string, bool) {
	s, ok := h.values[key].([]string)
	return s, ok
}

// Architecture is general.architecture, such as "qwen2".
func (h *Header) Architecture() string {
	s, _ := h.String("general.architecture")
	return s
}

// Name is general.name; "" if the file has none.
func (h *Header) Name() string {
	s, _ := h.String("general.name")
	return s
}

// ContextTokens is the longest sequence that the model was made for; 0 if unknown.
func (h *Header) ContextTokens() int {
	n, _ := h.Uint(h.Architecture() + ".context_length")
	return int(min(n, math.MaxInt32))
}

// ChatTemplate is the Jinja source of the model's chat template; "" if the file has none.
func (h *Header) ChatTemplate() string {
	s, _ := h.String("tokenizer.chat_template")
	return s
}

// Tokens is the vocabulary as stored: byte-level BPE vocabularies write bytes in GPT-2's alphabet. The caller must not change it.
func (h *Header) Tokens() []string {
	s, _ := h.Strings("tokenizer.ggml.tokens")
	return s
}

// TokenType is the type of a token; TokenNormal where the file does not say.
func (h *Header) TokenType(id int) TokenType {
	switch v := h.values["tokenizer.ggml.token_type"].(type) {
	case []int32:
		if id >= 0 && id < len(v) {
			return TokenType(v[id])
		}
	case []uint32:
		if id >= 0 && id < len(v) {
			return TokenType(v[id])
		}
	}
	return TokenNormal
}

// SpecialTokens lists the texts of all control and user-defined tokens, in the order of their ids.
func (h *Header) SpecialTokens() []string {
	var special []string
	for id, text := range h.Tokens() {
		if t := h.TokenType(id); t == TokenControl || t == TokenUserDefined {
			special = append(special, text)
		}
	}
	return special
}

// SpecialToken returns id and text of a role such as "bos", "eos" or "padding"; false if the file names none or a wrong one.
func (h *Header) SpecialToken(role string) (id int, text string, ok bool) {
	n, ok := h.Uint("tokenizer.ggml." + role + "_token_id")
	tokens := h.Tokens()
	if !ok || n >= uint64(len(tokens)) {
		return 0, "", false
	}
	return int(n), tokens[n], true
}

// TensorBytes is the size of all tensor data: about the memory that the loaded weights take.
func (h *Header) TensorBytes() uint64 {
	var n uint64
	for _, t := range h.Tensors {
		n += t.Bytes()
	}
	return n
}

// Parameters is the number of values in all tensors.
func (h *Header) Parameters() uint64 {
	var n uint64
	for _, t := range h.Tensors {
		n += t.Elements()
	}
	return n
}

// WeightType is the type that holds most of the parameters: what the file is quantised to.
func (h *Header) WeightType() Type {
	counts := map[Type]uint64{}
	best := F32
	for _, t := range h.Tensors {
		counts[t.Type] += t.Elements()
		if counts[t.Type] > counts[best] {
			best = t.Type
		}
	}
	return best
}

// KVBytesPerToken estimates the cache of one position, keys and values of every layer, when stored as the given type.
// It is exact for llama-like models and an upper bound where layers use a sliding window; 0 where the model keeps no such cache.
func (h *Header) KVBytesPerToken(t Type) uint64 {
	arch := h.Architecture()
	layers, _ := h.Uint(arch + ".block_count")
	heads := h.perLayer(arch+".attention.head_count", layers)
	kvHeads := h.perLayer(arch+".attention.head_count_kv", layers)
	if kvHeads == nil {
		kvHeads = heads
	}
	if len(heads) == 0 || len(kvHeads) != len(heads) {
		return 0
	}
	width, _ := h.Uint(arch + ".embedding_length")
	var values uint64
	for i, kv := range kvHeads {
		head := width / max(heads[i], 1)
		key, ok := h.Uint(arch + ".attention.key_length")
		if !ok {
			key = head
		}
		value, ok := h.Uint(arch + ".attention.value_length")
		if !ok {
			value = head
		}
		values += kv * (key + value)
	}
	l := layouts[t]
	if l.block == 0 {
		return 0
	}
	return (values + l.block - 1) / l.block * l.bytes
}

// perLayer returns one value for each layer from a key that holds either one number for all or an array; nil if it holds neither.
func (h *Header) perLayer(key string, layers uint64) []uint64 {
	if layers > maxLayers {
		return nil
	}
	all := make([]uint64, layers)
	switch v := h.values[key].(type) {
	case []uint32:
		for i := range all[:min(len(all), len(v))] {
			all[i] = uint64(v[i])
		}
		return all[:min(len(all), len(v))]
	case []int32:
		for i := range all[:min(len(all), len(v))] {
			all[i] = uint64(max(v[i], 0))
		}
		return all[:min(len(all), len(v))]
	}
	n, ok := h.Uint(key)
	if !ok {
		return nil
	}
	for i := range all {
		all[i] = n
	}
	return all
}
