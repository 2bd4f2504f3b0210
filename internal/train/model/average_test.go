package model_test

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/gguf/tiny"
	"anytime/internal/train/model"
)

func TestAverage(t *testing.T) {
	dir := t.TempDir()
	base, out := filepath.Join(dir, "base.gguf"), filepath.Join(dir, "mean.gguf")
	if err := tiny.WriteFile(base, 1, tiny.Options{}); err != nil {
		t.Fatal(err)
	}
	var adapters []string
	for seed, name := range []string{"one.gguf", "two.gguf", "three.gguf"} {
		path := filepath.Join(dir, name)
		if err := tiny.WriteAdapter(path, uint64(seed+1), ""); err != nil {
			t.Fatal(err)
		}
		adapters = append(adapters, path)
	}
	if err := model.Average(out, adapters); err != nil {
		t.Fatal(err)
	}
	open := func(adapter string) *model.Model {
		m, err := model.Open(base, model.Config{Adapter: adapter})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		return m
	}
	mean := open(out)
	for _, part := range []string{"blk.0.attn_q.weight.lora_a", "blk.1.ffn_up.weight.lora_b"} {
		want := make([]float64, len(mean.Values(part)))
		for _, path := range adapters {
			for i, v := range open(path).Values(part) {
				want[i] += float64(v) / float64(len(adapters))
			}
		}
		for i, v := range mean.Values(part) {
			if math.Abs(float64(v)-want[i]) > 1e-6 {
				t.Fatalf("%s: value %d is %v, want %v", part, i, v, want[i])
			}
		}
	}
	if len(mean.Values("blk.0.attn_q.weight.lora_a")) == 0 {
		t.Error("nothing was compared")
	}

	if err := os.WriteFile(out, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.gguf")
	if err := tiny.WriteAdapter(other, 1, "qwen2"); err != nil {
		t.Fatal(err)
	}
	for want, list := range map[string][]string{
		"no adapters to average": nil,
		"no LoRA adapter":        {adapters[0], base},
		"one run":                {adapters[0], other},
		"no such file":           {filepath.Join(dir, "none.gguf")},
	} {
		if err := model.Average(out, list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one with %q", list, err, want)
		}
	}
	if kept, err := os.ReadFile(out); err != nil || string(kept) != "kept" {
		t.Errorf("the old file is %q, error %v", kept, err)
	}
}
