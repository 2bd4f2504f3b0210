package model

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/gobackend"
	"github.com/gomlx/compute/shapes"
)

func openBackend(name string) (compute.Backend, error) {
	switch kind, config, _ := strings.Cut(name, ":"); kind {
	case "", "go":
		return openGo()
	case "xla":
		return openXLA(config)
	default:
		return nil, fmt.Errorf("backend is %.64q: it must be go or xla:PLUGIN.so", name)
	}
}

// openGo opens the pure-Go backend without a limit to its workers: with one, v0.1.6 can deadlock, as workers wait for workers that wait
// for a free place. Its own option for it prints a line to the standard output, and the type with the method is not exported.
func openGo() (compute.Backend, error) {
	b, err := gobackend.New("")
	if err != nil {
		return nil, err
	}
	if workers := reflect.ValueOf(b).Elem().FieldByName("Workers"); workers.IsValid() {
		if pool, ok := workers.Interface().(interface{ SetMaxParallelism(int) }); ok {
			pool.SetMaxParallelism(-1)
			return b, nil
		}
	}
	return nil, errors.New("the Go backend is not of the version that is known")
}

// shapeOf is the shape of a float32 tensor.
func shapeOf(dims ...int) shapes.Shape { return shapes.Make(dtypes.Float32, dims...) }
