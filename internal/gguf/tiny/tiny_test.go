package tiny_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
)

func write(t *testing.T, seed uint64, opts tiny.Options) (string, *gguf.Header) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(path, seed, opts); err != nil {
		t.Fatal(err)
	}
	h, err := gguf.Check(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, h
}

func TestEngineLoadsEveryArchitectureAndType(t *testing.T) {
	e := startEngine(t)
	texts := []string{
		"The answer is 42, and that's that.\n\n\tSo what? (1+2)*3=9",
		"Grüße, 世界! 🌍 \u00a0\u0001\x7f",
		"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>no</think>",
	}
	for _, arch := range []string{"llama", "qwen2", "qwen3"} {
		var exact result
		for _, typ := range []gguf.Type{gguf.F32, gguf.F16, gguf.Q8_0} {
			t.Run(fmt.Sprintf("%s %v", arch, typ), func(t *testing.T) {
				path, h := write(t, 1, tiny.Options{Architecture: arch, Type: typ})
				if got := h.WeightType(); got != typ {
					t.Errorf("the header says %v", got)
				}
				r := e.run(job{Model: path, Prompt: "Hello there, ", Texts: texts, Steps: 32})
				if r.Vocab != len(h.Tokens()) {
					t.Errorf("llama.cpp sees %d tokens, the file has %d", r.Vocab, len(h.Tokens()))
				}
				for i, got := range r.RoundTrip {
					if got != texts[i] {
						t.Errorf("%q came back as %q", texts[i], got)
					}
				}
				if r.Counts[0] > 40 || r.Counts[2] != 22 {
					t.Errorf("texts have %v tokens: are merges and special tokens in use?", r.Counts)
				}
				if typ == gguf.F32 {
					exact = r
				} else if d := distance(exact.Logits, r.Logits); d > map[gguf.Type]float64{gguf.F16: 0.1, gguf.Q8_0: 1}[typ] { // unrelated: √2
					t.Errorf("logits are %.3f of their own size away from those of F32", d)
				}
				adapter := filepath.Join(t.TempDir(), "adapter.gguf")
				if err := tiny.WriteAdapter(adapter, 1, arch); err != nil {
					t.Fatal(err)
				}
				if _, err := gguf.CheckAdapter(adapter, h); err != nil {
					t.Error(err)
				}
				a := e.run(job{Model: path, Adapter: adapter, Prompt: "Hello there, ", Steps: 32})
				if d := distance(r.Logits, a.Logits); d < 0.1 || slices.Equal(a.Tokens, r.Tokens) {
					t.Errorf("the adapter moves the logits by %.3f of their size; the greedy text is the same: %v", d, slices.Equal(a.Tokens, r.Tokens))
				}
			})
		}
	}
}

// distance is |a-b| / |a| of the logits that vary.
func distance(a, b []float32) float64 {
	var diff, size float64
	for i := range a {
		if a[i] < -40 { // never sampled
			continue
		}
		diff += math.Pow(float64(a[i]-b[i]), 2)
		size += math.Pow(float64(a[i]), 2)
	}
	return math.Sqrt(diff / size)
}

func TestGreedyTextDoesNotLoopAndNeverEnds(t *testing.T) {
	e := startEngine(t)
	for _, arch := range []string{"llama", "qwen2", "qwen3"} {
		for seed := range uint64(3) {
			path, h := write(t, seed, tiny.Options{Architecture: arch})
			for _, temperature := range []float64{0, 1} {
				r := e.run(job{Model: path, Prompt: "Hello there", Steps: 600, Temperature: temperature})
				if n := cycle(r.Tokens); n > 0 {
					t.Errorf("%s, seed %d, temperature %v: ends in a loop of %d tokens", arch, seed, temperature, n)
				}
				for _, id := range r.Tokens {
					if text := h.Tokens()[id]; h.TokenType(int(id)) != gguf.TokenNormal || id < 256 && id != '\n' && (id < ' ' || id > '~') {
						t.Errorf("%s, seed %d, temperature %v: %q was sampled", arch, seed, temperature, text)
					}
				}
			}
		}
	}
}

func TestRate(t *testing.T) {
	e := startEngine(t)
	for _, rates := range []map[string]float64{
		{tiny.ThinkClose: 0.02},
		{tiny.ThinkClose: 0.05, tiny.EOS: 0.1, " the": 0.2},
		{tiny.EOS: 0.9},
	} {
		for _, arch := range []string{"llama", "qwen2", "qwen3"} {
			path, h := write(t, 5, tiny.Options{Architecture: arch, Rate: rates})
			for _, temperature := range []float64{0, 1} {
				const n = 1000
				r := e.run(job{Model: path, Prompt: "Hello there", Steps: n, Temperature: temperature})
				counts := map[int32]int{}
				for _, id := range r.Tokens {
					counts[id]++
				}
				for text, p := range rates {
					id := slices.Index(h.Tokens(), strings.ReplaceAll(text, " ", "Ġ"))
					share := float64(counts[int32(id)]) / n
					t.Logf("%s: %q: rate %.2f, share %.3f at temperature %v", arch, text, p, share, temperature)
					if temperature == 1 && (share < p/2 || share > p*2) {
						t.Errorf("%s: %q: share %.3f of the tokens, want about %.2f", arch, text, share, p)
					}
				}
			}
		}
	}
}

func TestWriteFileRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		opts tiny.Options
		want string
	}{
		"architecture": {tiny.Options{Architecture: "mamba"}, "llama, qwen2 or qwen3"},
		"type":         {tiny.Options{Type: 2}, "F32, F16 and Q8_0"},
		"text":         {tiny.Options{Rate: map[string]float64{"two tokens": 0.1}}, "text that is one token"},
		"rate":         {tiny.Options{Rate: map[string]float64{tiny.EOS: 1}}, "below 1"},
		"sum":          {tiny.Options{Rate: map[string]float64{tiny.EOS: 0.6, tiny.ThinkClose: 0.5}}, "add up"},
		"context":      {tiny.Options{ContextTokens: -1}, "context_length"},
	} {
		path := filepath.Join(t.TempDir(), "tiny.gguf")
		err := tiny.WriteFile(path, 1, c.opts)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
		if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
			t.Errorf("%s: %v was left behind", name, left)
		}
	}
}

func TestSeedMakesTheModel(t *testing.T) {
	var a, b, other bytes.Buffer
	for buf, seed := range map[*bytes.Buffer]uint64{&a: 7, &b: 7, &other: 8} {
		if err := tiny.Write(buf, seed, tiny.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same seed made two models")
	}
	if bytes.Equal(a.Bytes(), other.Bytes()) {
		t.Error("two seeds made the same model")
	}
	if a.Len() > 2<<20 {
		t.Errorf("the model has %d bytes", a.Len())
	}
}

// TestEngineSurvivesWhatCheckAccepts flips bits of a model's header and lets llama.cpp load what Check still accepts.
func TestEngineSurvivesWhatCheckAccepts(t *testing.T) {
	const mutants = 60 // that the engine loads, of each architecture
	e := startEngine(t)
	rng := rand.New(rand.NewPCG(3, 4))
	var tried, accepted, loaded int
	for _, arch := range []string{"llama", "qwen2", "qwen3"} {
		var file bytes.Buffer
		if err := tiny.Write(&file, 1, tiny.Options{Architecture: arch}); err != nil {
			t.Fatal(err)
		}
		h, err := gguf.ReadHeader(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "mutant.gguf")
		for taken := 0; taken < mutants; {
			header := slices.Clone(file.Bytes()[:h.DataOffset])
			var flips []string
			for range 1 + rng.IntN(3) {
				at, bit := rng.IntN(int(h.DataOffset)), byte(1)<<rng.IntN(8)
				header[at] ^= bit
				flips = append(flips, fmt.Sprintf("byte %d ^ %#x", at, bit))
			}
			tried++
			m, err := gguf.ReadHeader(bytes.NewReader(header), int64(file.Len()))
			if err != nil || m.Check() != nil {
				continue
			}
			taken++
			accepted++
			if err := os.WriteFile(path, append(header, file.Bytes()[h.DataOffset:]...), 0o600); err != nil {
				t.Fatal(err)
			}
			r, died := e.try(job{Model: path, Prompt: "Hello there, 世界", Texts: []string{"So <think>1+2</think>\n"}, Steps: 2})
			if died {
				t.Errorf("%s: llama.cpp's process ended over a file that Check accepts: %v", arch, flips)
				e = startEngine(t)
			}
			if r.Err == "" {
				loaded++
			} else {
				t.Logf("%s: %v: %s", arch, flips, r.Err)
			}
		}
	}
	t.Logf("%d mutants tried, %d accepted (%.1f%%), %d of these loaded and decoded", tried, accepted, 100*float64(accepted)/float64(tried), loaded)
}
