package model

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gomlx/compute/dtypes/bfloat16"
	"github.com/gomlx/compute/dtypes/float16"
	reader "github.com/gomlx/go-huggingface/models/gguf"
	"github.com/gomlx/gomlx/core/tensors"

	"anytime/internal/gguf"
)

// file reads tensors as float32, whatever they are stored as.
type file struct {
	*reader.Reader
	header *reader.File
}

func openFile(path string) (*file, error) {
	h, err := reader.Open(path)
	if err != nil {
		return nil, err
	}
	r, err := reader.NewReader(h)
	if err != nil {
		return nil, err
	}
	return &file{r, h}, nil
}

// values returns a tensor's values, row by row.
func (f *file) values(name string) ([]float32, error) {
	t, err := f.ReadTensor(nil, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer free(t)
	var values []float32
	err = t.ConstFlatData(func(flat any) {
		switch flat := flat.(type) {
		case []float32:
			values = slices.Clone(flat)
		case []float64:
			values = convert(flat, func(v float64) float32 { return float32(v) })
		case []float16.Float16:
			values = convert(flat, float16.Float16.Float32)
		case []bfloat16.BFloat16:
			values = convert(flat, bfloat16.BFloat16.Float32)
		}
	})
	if err == nil && values == nil {
		err = fmt.Errorf("read %s: it is stored as %s, which cannot be trained", name, t.DType())
	}
	for i, v := range values {
		if !finite(float64(v)) {
			return nil, fmt.Errorf("read %s: value %d is %v", name, i, v)
		}
	}
	return values, err
}

func convert[T any](in []T, f func(T) float32) []float32 {
	out := make([]float32, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

// loadWeights reads the model's own weights.
func (m *Model) loadWeights() error {
	if n, _ := m.header.Uint("split.count"); n > 1 {
		return errors.New("the model is in several files: only a single file can be trained")
	}
	f, err := openFile(m.path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, t := range m.header.Tensors {
		values, err := f.values(t.Name)
		if err != nil {
			return err
		}
		if t.Name == ropeFactors {
			if len(values) != len(m.network.ropeFactors) {
				return fmt.Errorf("%s has %d values for %d pairs of entries", t.Name, len(values), len(m.network.ropeFactors))
			}
			m.network.ropeFactors = values
			continue
		}
		if err := m.add(t.Name, dims(t), values, m.config.Train == All); err != nil {
			return err
		}
	}
	return nil
}

// dims are a tensor's dimensions as GoMLX has them, the contiguous one last.
func dims(t gguf.TensorInfo) []int {
	var d []int
	for _, n := range slices.Backward(t.Dims) {
		d = append(d, int(n))
	}
	return d
}

// add makes a parameter.
func (m *Model) add(name string, dims []int, values []float32, trained bool) error {
	value, err := m.tensor(values, dims)
	if err != nil {
		return fmt.Errorf("move %s to the backend: %w", name, err)
	}
	m.params = append(m.params, &param{name: name, dims: dims, trained: trained, value: value})
	return nil
}

// tensor copies values to the backend.
func (m *Model) tensor(values []float32, dims []int) (*tensors.Tensor, error) {
	t := tensors.FromFlatDataAndDimensions(values, dims...)
	return t, t.ToDevice(m.backend, 0)
}

// find returns a parameter; nil if there is none of that name.
func (m *Model) find(name string) *param {
	i := slices.IndexFunc(m.params, func(p *param) bool { return p.name == name })
	if i < 0 {
		return nil
	}
	return m.params[i]
}

// WriteModel writes the model, with its adapter merged into it, as a GGUF file with the metadata of the file that was opened. Matrices
// are stored as the given type (F32, F16 or Q8_0), vectors as F32. An old file stays as it is if that fails.
func (m *Model) WriteModel(path string, as gguf.Type) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.writeModel(path, as); err != nil {
		return fmt.Errorf("write model %s: %w", path, err)
	}
	return nil
}

func (m *Model) writeModel(path string, as gguf.Type) error {
	if m.lost != nil {
		return m.lost
	}
	fileType, ok := map[gguf.Type]uint32{gguf.F32: 0, gguf.F16: 1, gguf.Q8_0: 7}[as]
	if !ok {
		return fmt.Errorf("type is %v: it must be F32, F16 or Q8_0", as)
	}
	f, err := openFile(m.path)
	if err != nil {
		return err
	}
	defer f.Close()
	var meta []gguf.Pair
	for _, kv := range f.header.KeyValues {
		value := kv.Raw()
		switch kv.Key {
		case "general.file_type":
			value = fileType
		case "general.alignment": // the writer has its own
			continue
		}
		meta = append(meta, gguf.Pair{Key: kv.Key, Value: value})
	}
	var all []gguf.Tensor
	for _, t := range m.header.Tensors {
		typ := as
		if len(t.Dims) == 1 {
			typ = gguf.F32
		}
		all = append(all, gguf.Tensor{Name: t.Name, Type: typ, Dims: t.Dims, Values: func() ([]float32, error) {
			if t.Name == ropeFactors {
				return f.values(t.Name)
			}
			return m.merged(t.Name)
		}})
	}
	return gguf.WriteFile(path, func(w io.Writer) error { return gguf.Write(w, meta, all) })
}

// merged returns a tensor of the model with the adapter's change added.
func (m *Model) merged(name string) ([]float32, error) {
	w, err := tensors.CopyFlatData[float32](m.find(name).value)
	if err != nil {
		return nil, err
	}
	a, b := m.find(name+".lora_a"), m.find(name+".lora_b")
	if a == nil {
		return w, nil
	}
	av, err := tensors.CopyFlatData[float32](a.value)
	if err != nil {
		return nil, err
	}
	bv, err := tensors.CopyFlatData[float32](b.value)
	if err != nil {
		return nil, err
	}
	rank, in := a.dims[0], a.dims[1]
	scale := m.alpha / float32(rank)
	for o := range b.dims[0] {
		row := w[o*in:][:in]
		for r := range rank {
			if s := scale * bv[o*rank+r]; s != 0 {
				for i, v := range av[r*in:][:in] {
					row[i] += s * v
				}
			}
		}
	}
	return w, nil
}
