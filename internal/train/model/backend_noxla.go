//go:build !xla

package model

import (
	"errors"

	"github.com/gomlx/compute"
)

func openXLA(string) (compute.Backend, error) {
	return nil, errors.New("this program was built without XLA: build it with cgo and -tags xla")
}
