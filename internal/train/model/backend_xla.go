//go:build xla

package model

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/gomlx/compute"
	"github.com/gomlx/go-xla/compute/xla"
	"github.com/gomlx/go-xla/pjrt"
)

// The version of the PJRT C API that go-xla v0.4.5 is built for. It does not look at a plugin's: with an older one, which lacks functions
// at the end of the table, it would call what is not there.
const pjrtMajor, pjrtMinor = 0, 104

// openXLA loads a PJRT plugin: its path and, behind commas, options of go-xla such as preallocate=false.
func openXLA(config string) (compute.Backend, error) {
	path, options, _ := strings.Cut(config, ",")
	path, err := filepath.Abs(path) // a mere name would be searched for in the system's folders
	if err != nil {
		return nil, err
	}
	plugin, err := pjrt.GetPlugin(path)
	if err != nil {
		return nil, fmt.Errorf("load XLA plugin %s: %w", path, err)
	}
	if major, minor := plugin.Version(); major != pjrtMajor || minor < pjrtMinor {
		return nil, fmt.Errorf("XLA plugin %s: it speaks version %d.%d of PJRT's API: %d.%d or newer is needed", path, major, minor, pjrtMajor, pjrtMinor)
	}
	b, err := xla.New(path + "," + options)
	if err != nil {
		return nil, fmt.Errorf("open XLA plugin %s: %w", path, err)
	}
	return b, nil
}
