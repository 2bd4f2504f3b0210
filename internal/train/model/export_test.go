package model

import (
	"context"

	"github.com/gomlx/gomlx/core/tensors"
)

// Gradients returns the loss and its gradient with respect to each trained parameter, by name.
func (m *Model) Gradients(ctx context.Context, examples []Example, loss Loss) (map[string][]float32, Stats, error) {
	sums, s, err := m.gradients(ctx, examples, loss)
	if err != nil {
		return nil, s, err
	}
	all := map[string][]float32{}
	for i, p := range m.trained() {
		if all[p.name], err = take(sums[i]); err != nil {
			return nil, s, err
		}
	}
	return all, s, nil
}

// Move adds scale·direction to a parameter.
func (m *Model) Move(name string, direction []float32, scale float64) {
	tensors.MustMutableFlatData(m.find(name).value, func(flat []float32) {
		for i := range flat {
			flat[i] += float32(scale * float64(direction[i]))
		}
	})
}

// Values returns a copy of a parameter.
func (m *Model) Values(name string) []float32 {
	return tensors.MustCopyFlatData[float32](m.find(name).value)
}

var RateAt = Optimizer.rateAt

// Shapes counts the layouts of trees, for a backend that compiles each or for one that does not.
func Shapes(trees []Tree, compiled bool) int {
	all := map[layout]bool{}
	for _, t := range trees {
		all[layoutOf(t, compiled)] = true
	}
	return len(all)
}
