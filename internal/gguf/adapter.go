package gguf

import (
	"fmt"
	"io"
	"strings"
)

// Adapter is a LoRA adapter: to each named matrix W it adds Alpha/rank · B·A.
type Adapter struct {
	Architecture string // of the model it is for
	Name         string
	Alpha        float32
	Weights      []LoRA
}

// LoRA is the low-rank change of one matrix.
type LoRA struct {
	Tensor  string // the matrix's name in the model, such as "blk.0.attn_q.weight"
	In, Out int    // its dimensions
	Rank    int
	A       []float32 // [Rank, In], row by row
	B       []float32 // [Out, Rank], row by row
}

// WriteAdapter writes an adapter in the form that llama.cpp and Ollama load, its matrices as F32.
func WriteAdapter(w io.Writer, a Adapter) error {
	meta := []Pair{
		{"general.architecture", a.Architecture},
		{"general.type", "adapter"},
		{"general.name", a.Name},
		{"general.file_type", fileTypes[F32]},
		{"adapter.type", "lora"},
		{"adapter.lora.alpha", a.Alpha},
	}
	var tensors []Tensor
	for _, l := range a.Weights {
		in, out, rank := uint64(l.In), uint64(l.Out), uint64(l.Rank)
		tensors = append(tensors,
			Tensor{l.Tensor + ".lora_a", F32, []uint64{in, rank}, func() ([]float32, error) { return l.A, nil }},
			Tensor{l.Tensor + ".lora_b", F32, []uint64{rank, out}, func() ([]float32, error) { return l.B, nil }})
	}
	return Write(w, meta, tensors)
}

// CheckAdapter reads a LoRA adapter's header and returns an error unless llama.cpp may apply the adapter to the model of the base
// header. The rules are those of llama-adapter.cpp, of which some end the process there.
func CheckAdapter(path string, base *Header) (*Header, error) {
	h, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := h.checkAdapter(base); err != nil {
		return nil, fmt.Errorf("check adapter %s: %w", path, err)
	}
	return h, nil
}

func (h *Header) checkAdapter(base *Header) error {
	for _, want := range []Pair{
		{"general.type", "adapter"},
		{"adapter.type", "lora"},
		{"general.architecture", base.Architecture()},
	} {
		if got := h.values[want.Key]; got != want.Value {
			return fmt.Errorf("%s is %v: it must be the string %q", want.Key, got, want.Value)
		}
	}
	if a, ok := h.values["adapter.lora.alpha"].(float32); !ok || !(a > 0 && a < 1e6) {
		return fmt.Errorf("adapter.lora.alpha is %v: it must be a float32 above 0", h.values["adapter.lora.alpha"])
	}
	if v, ok := h.values["adapter.alora.invocation_tokens"]; ok {
		return fmt.Errorf("adapter.alora.invocation_tokens is %v: adapters that act from a token on are not supported", v)
	}
	dims := map[string][]uint64{}
	for _, t := range base.Tensors {
		dims[t.Name] = t.Dims
	}
	parts := map[string]TensorInfo{}
	for _, t := range h.Tensors {
		parts[t.Name] = t
	}
	if len(parts) == 0 {
		return fmt.Errorf("it has no tensors")
	}
	for _, t := range h.Tensors {
		name, isA := strings.CutSuffix(t.Name, ".lora_a")
		if !isA {
			var isB bool
			if name, isB = strings.CutSuffix(t.Name, ".lora_b"); !isB {
				return fmt.Errorf("tensor %s: only pairs named .lora_a and .lora_b belong in an adapter", t.Name)
			}
		}
		a, b, w := parts[name+".lora_a"], parts[name+".lora_b"], dims[name]
		switch {
		case a.Name == "" || b.Name == "":
			return fmt.Errorf("tensor %s: its other half is missing", t.Name)
		case len(w) != 2:
			return fmt.Errorf("tensor %s: the model has no matrix %s", t.Name, name)
		case name == "token_embd.weight": // looked up, not multiplied: llama.cpp wants its halves the other way round
			if len(a.Dims) != 2 || len(b.Dims) != 2 || a.Dims[0] != b.Dims[0] || a.Dims[1] != w[1] || b.Dims[1] != w[0] {
				return fmt.Errorf("tensor %s: A is %v and B %v: they must be [rank %d] and [rank %d]", t.Name, a.Dims, b.Dims, w[1], w[0])
			}
		case len(a.Dims) != 2 || len(b.Dims) != 2 || a.Dims[1] != b.Dims[0] || a.Dims[0] != w[0] || b.Dims[1] != w[1]:
			return fmt.Errorf("tensor %s: A is %v and B %v: they must be [%d rank] and [rank %d]", t.Name, a.Dims, b.Dims, w[0], w[1])
		}
		if !layouts[t.Type].weight {
			return fmt.Errorf("tensor %s: its type %s cannot be multiplied with", t.Name, t.Type)
		}
	}
	return nil
}
