package model

import (
	"fmt"
	"io"
	"slices"

	"anytime/internal/gguf"
)

// Average writes the adapter whose matrices are the means of those of some adapters of one run (stochastic weight averaging, arXiv
// 1803.05407): what training does to all of them remains, what the noise of its gradients does to each mostly cancels. Their
// matrices, ranks and alphas must be the same. An old file stays as it is if that fails.
func Average(path string, adapters []string) error {
	if len(adapters) == 0 {
		return fmt.Errorf("there are no adapters to average")
	}
	first, err := readAdapter(adapters[0])
	if err != nil {
		return err
	}
	sums := make([][2][]float64, len(first.Weights))
	for _, name := range adapters {
		a, err := readAdapter(name)
		if err != nil {
			return err
		}
		if a.Architecture != first.Architecture || a.Alpha != first.Alpha || !slices.EqualFunc(a.Weights, first.Weights, sameShape) {
			return fmt.Errorf("adapter %s does not have the matrices, ranks and alpha of %s: adapters of one run can be averaged", name, adapters[0])
		}
		for i, l := range a.Weights {
			add(&sums[i][0], l.A)
			add(&sums[i][1], l.B)
		}
	}
	for i := range first.Weights {
		mean := func(sum float64) float32 { return float32(sum / float64(len(adapters))) }
		first.Weights[i].A, first.Weights[i].B = convert(sums[i][0], mean), convert(sums[i][1], mean)
	}
	return gguf.WriteFile(path, func(w io.Writer) error { return gguf.WriteAdapter(w, first) })
}

func sameShape(a, b gguf.LoRA) bool {
	return a.Tensor == b.Tensor && a.In == b.In && a.Out == b.Out && a.Rank == b.Rank && len(a.A) == len(b.A) && len(a.B) == len(b.B)
}

func add(sum *[]float64, values []float32) {
	if *sum == nil {
		*sum = make([]float64, len(values))
	}
	for i, v := range values {
		(*sum)[i] += float64(v)
	}
}
