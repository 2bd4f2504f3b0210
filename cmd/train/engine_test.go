package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A model on another server in place of a file.
func TestRemoteUsage(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	for _, row := range []struct {
		args  string
		usage bool
		says  string
	}{
		{"-model m -engine ollama:x", true, "are both given"},
		{"-engine vllm:x@http://y", true, `kind is "vllm": it must be ollama or openai`},
		{"-engine openai:x", true, "URL is missing"},
		{"-engine openai:x@http://127.0.0.1:1", false, "cannot be reached: see that the server is running"},
		{"-engine ollama:x@http://127.0.0.1:1", false, "start it with `ollama serve`"},
	} {
		for _, command := range []string{"rollout -countdown heldout -n 1", "eval -n 1"} {
			_, _, err := train(t, append(strings.Fields(command+" "+row.args), "-out", out)...)
			failed(t, err, row.usage, row.says)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("something was written before the server was there")
	}
}

func TestPushOllamaUsage(t *testing.T) {
	file := adapterFile(t)
	for _, row := range []struct {
		args  []string
		usage bool
		says  string
	}{
		{nil, true, "-model is needed: name the model in Ollama"},
		{[]string{"-model", "m", "-default"}, true, "Ollama has no default"},
		{[]string{"-model", "m"}, false, "start it with `ollama serve`"},
	} {
		_, _, err := train(t, append([]string{"push", "-server", "ollama@http://127.0.0.1:1", "-adapter", file}, row.args...)...)
		failed(t, err, row.usage, row.says)
	}
}
