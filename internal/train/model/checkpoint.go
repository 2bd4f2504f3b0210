package model

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/gomlx/gomlx/core/tensors"

	"anytime/internal/gguf"
)

// A checkpoint is a GGUF file with these keys and, of each trained parameter, its value and the optimizer's moments.
const (
	keyType  = "general.type"
	keySteps = "checkpoint.steps"
	keyTrain = "checkpoint.train"
	keyBase  = "checkpoint.base" // SHA-256 of the model's file
	keyAlpha = "checkpoint.alpha"

	firstMoment, secondMoment = ".first", ".second"
)

// Checkpoint writes what Restore needs to go on from here: the trained weights, the optimizer's moments and the number of steps. The
// file is replaced at once or not at all.
func (m *Model) Checkpoint(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkpoint(path); err != nil {
		return fmt.Errorf("write checkpoint %s: %w", path, err)
	}
	return nil
}

func (m *Model) checkpoint(path string) error {
	if m.lost != nil {
		return m.lost
	}
	base, err := m.fingerprint()
	if err != nil {
		return err
	}
	meta := []gguf.Pair{
		{Key: "general.architecture", Value: m.header.Architecture()},
		{Key: keyType, Value: "checkpoint"},
		{Key: keySteps, Value: uint64(m.steps)},
		{Key: keyTrain, Value: string(m.config.Train)},
		{Key: keyBase, Value: base},
		{Key: keyAlpha, Value: m.alpha},
	}
	var all []gguf.Tensor
	add := func(p *param, suffix string, t *tensors.Tensor) {
		var d []uint64
		for _, n := range slices.Backward(p.dims) {
			d = append(d, uint64(n))
		}
		all = append(all, gguf.Tensor{Name: p.name + suffix, Type: gguf.F32, Dims: d, Values: func() ([]float32, error) {
			if t == nil {
				return make([]float32, p.size()), nil
			}
			return tensors.CopyFlatData[float32](t)
		}})
	}
	for _, p := range m.trained() {
		add(p, "", p.value)
		add(p, firstMoment, p.first)
		add(p, secondMoment, p.second)
	}
	if len(all) == 0 {
		return errNothing
	}
	return gguf.WriteFile(path, func(w io.Writer) error { return gguf.Write(w, meta, all) })
}

var errNothing = errors.New("the model was opened to train nothing")

// fingerprint identifies the file that was opened.
func (m *Model) fingerprint() (string, error) {
	if m.base != "" {
		return m.base, nil
	}
	f, err := os.Open(m.path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	m.base = fmt.Sprintf("%x", hash.Sum(nil))
	return m.base, nil
}

// Restore continues from a checkpoint of the same model, opened to train the same weights: the steps that follow are those that would
// have followed it, bit for bit on the same machine. It returns the number of steps taken before. If it fails nothing has changed.
func (m *Model) Restore(path string) (steps int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.restore(path); err != nil {
		return 0, fmt.Errorf("restore checkpoint %s: %w", path, err)
	}
	return m.steps, nil
}

func (m *Model) restore(path string) error {
	if m.lost != nil {
		return m.lost
	}
	h, err := gguf.ReadFile(path)
	if err != nil {
		return err
	}
	base, err := m.fingerprint()
	if err != nil {
		return err
	}
	for _, want := range []gguf.Pair{
		{Key: keyType, Value: "checkpoint"}, {Key: keyTrain, Value: string(m.config.Train)}, {Key: keyBase, Value: base},
	} {
		if got, _ := h.String(want.Key); got != want.Value {
			return fmt.Errorf("%s is %.80q: it must be %q, as for the model that is open", want.Key, got, want.Value)
		}
	}
	steps, ok := h.Uint(keySteps)
	alpha, ok2 := h.Float(keyAlpha)
	if !ok || !ok2 || steps > 1<<40 {
		return fmt.Errorf("%s or %s is missing or out of range", keySteps, keyAlpha)
	}
	trained := m.trained()
	if len(trained) == 0 {
		return errNothing
	}
	if want := 3 * len(trained); len(h.Tensors) != want {
		return fmt.Errorf("it has %d tensors: %d are trained, with two moments each", len(h.Tensors), len(trained))
	}
	stored := map[string]gguf.TensorInfo{}
	for _, t := range h.Tensors {
		stored[t.Name] = t
	}
	f, err := openFile(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var fresh []*tensors.Tensor
	for _, p := range trained {
		for _, suffix := range []string{"", firstMoment, secondMoment} {
			t, ok := stored[p.name+suffix]
			if !ok || !slices.Equal(dims(t), p.dims) {
				return fmt.Errorf("tensor %s%s has dimensions %v: they must be %v", p.name, suffix, dims(t), p.dims)
			}
			values, err := f.values(t.Name)
			if err != nil {
				return err
			}
			tensor, err := m.tensor(values, p.dims)
			if err != nil {
				return err
			}
			fresh = append(fresh, tensor)
		}
	}
	for i, p := range trained {
		for j, field := range []**tensors.Tensor{&p.value, &p.first, &p.second} {
			free(*field)
			*field = fresh[3*i+j]
		}
	}
	m.steps, m.alpha = int(steps), float32(alpha)
	return nil
}
