package model

import (
	"fmt"
	"strings"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/gobackend"
	"github.com/gomlx/compute/shapes"
)

func openBackend(name string) (compute.Backend, error) {
	switch kind, config, _ := strings.Cut(name, ":"); kind {
	case "", "go":
		// With its default parallelism v0.1.6 can deadlock: workers wait for workers that wait for a free place.
		return gobackend.New("parallelism=-1")
	case "xla":
		return openXLA(config)
	default:
		return nil, fmt.Errorf("backend is %.64q: it must be go or xla:PLUGIN.so", name)
	}
}

// shapeOf is the shape of a float32 tensor.
func shapeOf(dims ...int) shapes.Shape { return shapes.Make(dtypes.Float32, dims...) }
