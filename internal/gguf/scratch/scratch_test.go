package scratch_test

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"anytime/internal/gguf"
	"anytime/internal/gguf/scratch"
)

func shape() gguf.Config {
	return gguf.Config{
		Architecture: "llama", Name: "New", ContextTokens: 256, Layers: 2, Width: 64, FeedForward: 128, Heads: 4, KVHeads: 2, HeadWidth: 16,
		RopeBase: 10000, NormEps: 1e-5,
	}
}

func TestLearn(t *testing.T) {
	text := strings.Repeat("the cat, the hat and 12+12=24; the bat\n", 3)
	merges := scratch.Learn([]string{text, "once"}, 100)
	var made []string
	for _, m := range merges {
		made = append(made, m.Left+m.Right)
	}
	for _, want := range []string{" the", " cat", " and"} {
		if !slices.Contains(made, want) {
			t.Errorf("%q was not learned: %q", want, made)
		}
	}
	for _, m := range made {
		if strings.ContainsAny(m, "0123456789") {
			t.Errorf("digits were merged: %q", m)
		}
		if m == "once" || m == "on" {
			t.Errorf("%q comes once, and was merged", m)
		}
	}
	if made[0] != "at" && made[0] != "th" && made[0] != "he" && made[0] != " t" {
		t.Errorf("the first merge is %q, which is not the most frequent pair", made[0])
	}
	if few := scratch.Learn([]string{text}, 2); !slices.Equal(few, merges[:2]) {
		t.Errorf("the first two merges are %v, of all %v", few, merges)
	}
	if none := scratch.Learn(nil, 5); len(none) != 0 {
		t.Errorf("of nothing was learned: %v", none)
	}
}

func TestTokenizer(t *testing.T) {
	v := scratch.Tokenizer([]scratch.Merge{{"t", "h"}, {" t", "h"}, {"th", "e"}, {"t", "h"}, {" ", "the"}})
	at := func(token string) int { return slices.Index(v.Tokens, token) }
	if len(v.Tokens) != 256+3+5 || len(v.Types) != len(v.Tokens) || len(v.Merges) != 3 {
		t.Fatalf("%d tokens, %d types, merges %q: want 264, 264, 3", len(v.Tokens), len(v.Types), v.Merges)
	}
	if at("Ġthe") != 258 || v.Merges[2] != "Ġ the" || v.Tokens['A'] != "A" || v.Tokens['\n'] != "Ċ" {
		t.Errorf("tokens %q, merges %q", v.Tokens[256:], v.Merges)
	}
	for token, typ := range map[string]gguf.TokenType{
		scratch.BOS: gguf.TokenControl, scratch.EOS: gguf.TokenControl, scratch.ThinkOpen: gguf.TokenUserDefined, scratch.ThinkClose: gguf.TokenUserDefined,
	} {
		if i := at(token); i < 259 || v.Types[i] != typ {
			t.Errorf("%s is token %d", token, i)
		}
	}
	if v.BOS != at(scratch.BOS) || v.EOS != at(scratch.EOS) {
		t.Errorf("BOS is %d, EOS %d", v.BOS, v.EOS)
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	for _, arch := range []string{"llama", "qwen2", "qwen3"} {
		var files [3]string
		for i, seed := range []uint64{1, 1, 2} {
			path := filepath.Join(dir, "new.gguf")
			c := shape()
			c.Architecture = arch
			if err := scratch.WriteFile(path, seed, c, scratch.Tokenizer(nil), gguf.F32); err != nil {
				t.Fatal(err)
			}
			if _, err := gguf.Check(path); err != nil {
				t.Error(err)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files[i] = string(data)
		}
		if files[0] != files[1] || files[0] == files[2] {
			t.Errorf("%s: the seed does not decide the weights", arch)
		}
	}
}

// deviations reads how large the weights are.
func TestWeightsAreOfTheSizeForTraining(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new.gguf")
	if err := scratch.WriteFile(path, 1, shape(), scratch.Tokenizer(nil), gguf.F32); err != nil {
		t.Fatal(err)
	}
	h, err := gguf.Check(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range h.Tensors {
		var mean, square float64
		n := info.Elements()
		for i := range n {
			at := uint64(h.DataOffset) + info.Offset + 4*i
			v := float64(math.Float32frombits(uint32(data[at]) | uint32(data[at+1])<<8 | uint32(data[at+2])<<16 | uint32(data[at+3])<<24))
			mean, square = mean+v/float64(n), square+v*v/float64(n)
		}
		deviation := math.Sqrt(square - mean*mean)
		want := 1 / math.Sqrt(float64(info.Dims[0]))
		switch {
		case len(info.Dims) == 1:
			if mean != 1 || deviation != 0 {
				t.Errorf("%s: mean %v, deviation %v; want 1s", info.Name, mean, deviation)
			}
			continue
		case !strings.HasPrefix(info.Name, "blk."):
			want = 0.02
		case strings.Contains(info.Name, "output") || strings.Contains(info.Name, "down"):
			want /= 2 // two layers add four times
		}
		if math.Abs(mean) > want/10 || math.Abs(deviation/want-1) > 0.05 {
			t.Errorf("%s: mean %v, deviation %v; want 0 and %v", info.Name, mean, deviation, want)
		}
	}
}

func TestWriteFileRefuses(t *testing.T) {
	for want, change := range map[string]func(*gguf.Config){
		"llama, qwen2 or qwen3": func(c *gguf.Config) { c.Architecture = "mamba" },
		"0 layers":              func(c *gguf.Config) { c.Layers = 0 },
		"divide":                func(c *gguf.Config) { c.KVHeads = 3 },
		"even":                  func(c *gguf.Config) { c.HeadWidth = 7 },
		"fill it":               func(c *gguf.Config) { c.Architecture, c.HeadWidth = "qwen2", 32 },
		"context of -1":         func(c *gguf.Config) { c.ContextTokens = -1 },
	} {
		c := shape()
		change(&c)
		path := filepath.Join(t.TempDir(), "new.gguf")
		if err := scratch.WriteFile(path, 1, c, scratch.Tokenizer(nil), gguf.F32); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: a file was written", want)
		}
	}
}
