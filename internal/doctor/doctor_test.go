package doctor_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"anytime/internal/decode/decodetest"
	"anytime/internal/doctor"
)

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		path  string
		least int64
		want  string
	}{
		"there":        {dir, 1, "ok  disk "},
		"not yet":      {filepath.Join(dir, "a", "b"), 1, "ok  disk "},
		"no room":      {dir, 1 << 60, "NO  disk       "},
		"a file":       {file, 1, "is no folder"},
		"below a file": {filepath.Join(file, "a"), 1, "is no folder"},
	} {
		var out bytes.Buffer
		r := doctor.Report{W: &out}
		r.Folder(row.path, row.least, "why")
		if !strings.Contains(out.String(), row.want) || r.Failed == strings.HasPrefix(row.want, "ok") {
			t.Errorf("%s: %q, failed: %v", name, out.String(), r.Failed)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("it left %v", left)
	}
}

func TestFindLibraries(t *testing.T) {
	for name, row := range map[string]struct {
		files []string
		want  doctor.Libraries
		text  string
	}{
		"none":   {[]string{"readme"}, doctor.Libraries{}, "llama.cpp for "},
		"CPU":    {[]string{"libllama.so", "libllama.v0.5.0.so", "libggml-cpu-haswell.so", "libggml-cpu-zen4.so"}, doctor.Libraries{Kind: "CPU", Version: "v0.5.0", Variants: 2}, "llama.cpp for CPU, v0.5.0"},
		"CUDA":   {[]string{"libllama.so", "libggml-cuda.so"}, doctor.Libraries{Kind: "cuda"}, "llama.cpp for cuda"},
		"Vulkan": {[]string{"libllama.vulkan.v0.5.0.so", "libggml-vulkan.so"}, doctor.Libraries{Kind: "vulkan", Version: "v0.5.0"}, "llama.cpp for vulkan, v0.5.0"},
	} {
		dir := t.TempDir()
		for _, f := range row.files {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := doctor.FindLibraries(dir); got != row.want || got.String() != row.text {
			t.Errorf("%s: %+v %q", name, got, got)
		}
	}
}

func TestMachine(t *testing.T) {
	var out bytes.Buffer
	r := doctor.Report{W: &out}
	r.Processor()
	r.GPUs()
	if left := r.Memory(); left < 0 || left > doctor.Memory() {
		t.Errorf("%d bytes are available of %d", left, doctor.Memory())
	}
	if r.Failed || !strings.Contains(out.String(), " cores") {
		t.Errorf("%s", out.String())
	}
}

func TestSpeed(t *testing.T) {
	engine := decodetest.New(decodetest.Options{Model: decodetest.Words, Step: time.Microsecond})
	defer engine.Close()
	if speed, err := doctor.Speed(t.Context(), engine, time.Second); err != nil || speed <= 0 {
		t.Errorf("%v tokens/s, %v", speed, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := doctor.Speed(gone, engine, time.Second); err == nil {
		t.Error("it is measured though nobody waits")
	}
}
