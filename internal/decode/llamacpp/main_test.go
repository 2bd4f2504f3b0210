package llamacpp_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/gguf/tiny"

	"go.uber.org/goleak"
)

var modelPath string

// The test binary is the engine process, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "engine" {
		if err := llamacpp.Serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	dir, err := os.MkdirTemp("", "llamacpp-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	modelPath = filepath.Join(dir, "tiny.gguf")
	code := 1
	if err := tiny.WriteFile(modelPath, 1, tiny.Options{Rate: map[string]float64{tiny.EOS: 0.002}}); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else if code = m.Run(); code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// libDir finds the folder of the llama.cpp libraries.
func libDir(t testing.TB) string {
	if dir := os.Getenv("ANYTIME_ENGINE_LIB"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		lib := filepath.Join(dir, "engine", "lib")
		if m, _ := filepath.Glob(filepath.Join(lib, "libllama.*")); len(m) > 0 {
			return lib
		}
	}
	t.Fatal("the llama.cpp libraries are not there: run `make engine`")
	return ""
}

// exact is a config under which batches of different shapes give the same tokens.
func exact(t testing.TB) llamacpp.Config {
	return llamacpp.Config{
		ModelPath: modelPath, LibDir: libDir(t), KVType: "f32", FlashAttention: "off",
		ContextTokens: 1024, CacheTokens: 8192, Sequences: 16, BatchTokens: 256, Threads: 1,
	}
}

func open(t testing.TB, change ...func(*llamacpp.Config)) *llamacpp.Engine {
	t.Helper()
	c := exact(t)
	for _, f := range change {
		f(&c)
	}
	e, err := llamacpp.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func start(t testing.TB, e decode.Engine, prompt string, seed uint64) decode.Sequence {
	t.Helper()
	s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text(prompt)}, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// result is a whole span.
type result struct {
	tokens  []decode.Token
	end     decode.End
	prefill *decode.Prefill
}

func (r result) ids() []int32 {
	ids := make([]int32, len(r.tokens))
	for i, t := range r.tokens {
		ids[i] = t.ID
	}
	return ids
}

func (r result) text() string {
	var b strings.Builder
	for _, t := range r.tokens {
		b.WriteString(t.Text)
	}
	return b.String()
}

// read takes a span to its end.
func read(s decode.Sequence) (r result, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		c, err := s.Next(ctx)
		if err != nil {
			return r, fmt.Errorf("after %d tokens: %w", len(r.tokens), err)
		}
		r.tokens = append(r.tokens, c.Tokens...)
		if c.Prefill != nil {
			r.prefill = c.Prefill
		}
		if c.End != "" {
			r.end = c.End
			return r, nil
		}
	}
}

func finish(t testing.TB, s decode.Sequence) result {
	t.Helper()
	r, err := read(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func span(t testing.TB, s decode.Sequence, n int, change ...func(*decode.Span)) {
	t.Helper()
	sp := decode.Span{MaxTokens: n, MinTokens: n}
	for _, f := range change {
		f(&sp)
	}
	if err := s.Decode(sp); err != nil {
		t.Fatal(err)
	}
}

func warm(sp *decode.Span) { sp.Sampling.Temperature = 1 }

func isInput(err error, field string) bool {
	var input *decode.InputError
	return errors.As(err, &input) && input.Field == field
}
