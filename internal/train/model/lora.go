package model

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/tensors"

	"anytime/internal/gguf"
)

// LoRA is the shape of a new adapter, which adds Alpha/Rank·B·A to matrices of each layer (arXiv 2106.09685).
type LoRA struct {
	Rank  int     // 16 by default
	Alpha float64 // 2·Rank by default
	// Dropout is the share of an adapter's inputs that are set to 0 in training.
	Dropout float64
	// Matrices are those that are adapted: attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down; all by default.
	Matrices []string
}

var matrices = []string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}

func (l *LoRA) complete() error {
	if l.Rank == 0 {
		l.Rank = 16
	}
	if l.Alpha == 0 {
		l.Alpha = 2 * float64(l.Rank)
	}
	if len(l.Matrices) == 0 {
		l.Matrices = matrices
	}
	for i, name := range l.Matrices {
		if !slices.Contains(matrices, name) || slices.Contains(l.Matrices[:i], name) {
			return fmt.Errorf("LoRA matrix %.32q: each must be another one of %s", name, strings.Join(matrices, ", "))
		}
	}
	switch {
	case l.Rank < 1 || l.Rank > 4096:
		return &ConfigError{"LoRA rank", float64(l.Rank), 1, 4096}
	case !(l.Alpha > 0 && l.Alpha < 1e6):
		return &ConfigError{"LoRA alpha", l.Alpha, 0, 1e6}
	case !(l.Dropout >= 0 && l.Dropout <= 0.9):
		return &ConfigError{"LoRA dropout", l.Dropout, 0, 0.9}
	}
	return nil
}

// newAdapter adds an adapter that changes nothing yet: A is random, B is 0.
func (m *Model) newAdapter() error {
	l := m.config.LoRA
	m.alpha = float32(l.Alpha)
	rng := rand.New(rand.NewPCG(m.config.Seed, 1))
	for i := range m.network.layers {
		for _, matrix := range l.Matrices {
			name := fmt.Sprintf("blk.%d.%s.weight", i, matrix)
			w := m.find(name)
			in, out := w.dims[1], w.dims[0]
			a := make([]float32, l.Rank*in)
			for j := range a { // uniform, of deviation 1/√(3·in)
				a[j] = float32((2*rng.Float64() - 1) / math.Sqrt(float64(in)))
			}
			if err := m.addAdapter(name, l.Rank, in, out, a, make([]float32, out*l.Rank)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *Model) addAdapter(name string, rank, in, out int, a, b []float32) error {
	trained := m.config.Train == Adapter
	if err := m.add(name+".lora_a", []int{rank, in}, a, trained); err != nil {
		return err
	}
	return m.add(name+".lora_b", []int{out, rank}, b, trained)
}

// loadAdapter reads an adapter, which may have any ranks.
func (m *Model) loadAdapter(path string) error {
	if _, err := gguf.CheckAdapter(path, m.header); err != nil {
		return err
	}
	adapter, err := readAdapter(path)
	if err != nil {
		return err
	}
	m.alpha = adapter.Alpha
	for _, l := range adapter.Weights {
		w := m.find(l.Tensor)
		if l.Tensor == "token_embd.weight" || w == nil || len(w.dims) != 2 {
			return fmt.Errorf("adapter %s: it changes %s, which cannot be adapted here", path, l.Tensor)
		}
		if err := m.addAdapter(l.Tensor, l.Rank, l.In, l.Out, l.A, l.B); err != nil {
			return err
		}
	}
	return nil
}

// readAdapter reads an adapter of any model.
func readAdapter(path string) (a gguf.Adapter, err error) {
	h, err := gguf.ReadFile(path)
	if err != nil {
		return a, err
	}
	if kind, _ := h.String("adapter.type"); kind != "lora" {
		return a, fmt.Errorf("%s is no LoRA adapter: its adapter.type is %.32q", path, kind)
	}
	alpha, _ := h.Float("adapter.lora.alpha")
	a = gguf.Adapter{Architecture: h.Architecture(), Name: h.Name(), Alpha: float32(alpha)}
	f, err := openFile(path)
	if err != nil {
		return a, err
	}
	defer f.Close()
	dims := map[string][]uint64{}
	for _, t := range h.Tensors {
		dims[t.Name] = t.Dims
	}
	for _, t := range h.Tensors {
		name, isA := strings.CutSuffix(t.Name, ".lora_a")
		if !isA {
			continue // comes with its A
		}
		b := dims[name+".lora_b"]
		if len(t.Dims) != 2 || len(b) != 2 {
			return a, fmt.Errorf("adapter %s: tensor %s is %v and its other half %v: both must be matrices", path, t.Name, t.Dims, b)
		}
		l := gguf.LoRA{Tensor: name, In: int(t.Dims[0]), Rank: int(t.Dims[1]), Out: int(b[1])}
		if l.A, err = f.values(t.Name); err != nil {
			return a, err
		}
		if l.B, err = f.values(name + ".lora_b"); err != nil {
			return a, err
		}
		a.Weights = append(a.Weights, l)
	}
	return a, nil
}

// WriteAdapter writes the adapter as a GGUF file that llama.cpp loads. An old file stays as it is if that fails.
func (m *Model) WriteAdapter(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.writeAdapter(path); err != nil {
		return fmt.Errorf("write adapter %s: %w", path, err)
	}
	return nil
}

func (m *Model) writeAdapter(path string) error {
	if m.lost != nil {
		return m.lost
	}
	adapter := gguf.Adapter{Architecture: m.header.Architecture(), Name: m.header.Name() + " adapter", Alpha: m.alpha}
	for _, p := range m.params {
		name, isA := strings.CutSuffix(p.name, ".lora_a")
		if !isA {
			continue
		}
		b := m.find(name + ".lora_b")
		l := gguf.LoRA{Tensor: name, Rank: p.dims[0], In: p.dims[1], Out: b.dims[0]}
		var err error
		if l.A, err = tensors.CopyFlatData[float32](p.value); err != nil {
			return err
		}
		if l.B, err = tensors.CopyFlatData[float32](b.value); err != nil {
			return err
		}
		adapter.Weights = append(adapter.Weights, l)
	}
	if len(adapter.Weights) == 0 {
		return fmt.Errorf("the model has no adapter")
	}
	return gguf.WriteFile(path, func(w io.Writer) error { return gguf.WriteAdapter(w, adapter) })
}
