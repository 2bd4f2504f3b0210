package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestExamplesBeside(t *testing.T) {
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	for name, row := range map[string]struct {
		text string
		want []string
	}{
		"lines":       {"One?\n\n  Two?  \r\nThree?", []string{"One?", "Two?", "Three?"}},
		"too many":    {strings.Repeat("Why?\n", 20), slices.Repeat([]string{"Why?"}, maxExamples)},
		"too long":    {strings.Repeat("x", maxExampleBytes+1) + "\nOne?", []string{"One?"}},
		"no text":     {"\xff\nOne?", []string{"One?"}},
		"no line end": {strings.Repeat("x", 1<<17), nil},
	} {
		weights := filepath.Join(t.TempDir(), "m.gguf")
		if err := os.WriteFile(strings.TrimSuffix(weights, ".gguf")+".examples.txt", []byte(row.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := examplesBeside(weights, log); !slices.Equal(got, row.want) {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
	if !strings.Contains(said.String(), "examples are not used") {
		t.Errorf("the log does not say that a file is not used: %s", said.String())
	}
	if got := examplesBeside(filepath.Join(t.TempDir(), "none.gguf"), log); got != nil {
		t.Errorf("without a file: %q", got)
	}
	if got := examplesBeside("../../models/reasoner/reasoner.gguf", log); len(got) == 0 {
		t.Error("the project's own model has no examples")
	}
}
