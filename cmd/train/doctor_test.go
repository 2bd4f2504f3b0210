package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDoctor(t *testing.T) {
	out, _, err := train(t, "doctor", "-engine-lib", libDir(t), "-out", t.TempDir())
	if err != nil || strings.Contains(out, "NO ") {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"ok  processor", "build ", "memory ", "ok  disk ", "GPU ", "ok  engine     llama.cpp for ", "a tiny model decodes ", "ok  trainer    go: a model of 193 thousand weights trains "} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q: %s", want, out)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, err = train(t, "doctor", "-engine-lib", filepath.Join(file, "nowhere"), "-out", filepath.Join(file, "nowhere"), "-xla", "none.so")
	failed(t, err, false, "must be put right")
	for _, want := range []string{"NO  engine ", "make engine", "NO  disk ", "--  trainer    open model"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q: %s", want, out)
		}
	}
}
