package openai_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/decode/openai"
)

// anytimeServer builds and starts the project's own server.
func anytimeServer(t *testing.T, args ...string) *process {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server")
	if out, err := exec.Command("go", "build", "-o", path, "anytime/cmd/server").CombinedOutput(); err != nil {
		t.Fatalf("build the server: %v\n%s", err, out)
	}
	lib := os.Getenv("ANYTIME_ENGINE_LIB")
	if lib == "" {
		lib = filepath.Join(root(t), "engine", "lib")
	}
	address := freeAddress(t)
	p := &process{url: "http://" + address, well: "/readyz", path: path, args: append([]string{
		"-addr", address, "-engine-lib", lib, "-data", t.TempDir(), "-threads", "1", "-kv-type", "f32", "-flash-attention", "off",
	}, args...)}
	p.start(t)
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(os.Interrupt)
		err := <-p.done
		p.done <- err
	})
	return p
}

// Another Anytime as the engine: thoughts, cut exactly and gone on with, and answers behind them.
func TestAnytimeAsEngine(t *testing.T) {
	if !all() {
		return
	}
	p := anytimeServer(t, "-model", smollm(t), "-ctx", "2048")
	e := connect(t, openai.Config{URL: p.url})
	if d := describe(e); !strings.Contains(d, "Anytime at") || e.Info().ContextTokens != 2048 || !e.Info().Capabilities.LogProbs {
		t.Errorf("described as %q, info %+v", d, e.Info())
	}
	const question = "<|im_start|>user\nTell me a long story.<|im_end|>\n<|im_start|>assistant\n<think>\n"
	s := begin(t, e, decode.Text(question))
	whole, end := span(t, s, decode.Span{MaxTokens: 30, Until: []string{"</think>"}})
	if len(whole) != 30 || end != decode.EndLimit || len(join(whole)) < 60 {
		t.Fatalf("%d tokens %q, end %s", len(whole), join(whole), end)
	}
	parts := begin(t, e, decode.Text(question))
	first, _ := span(t, parts, decode.Span{MaxTokens: 11})
	second, end := span(t, parts, decode.Span{MaxTokens: 19})
	// The model is quantised, so what follows a prefill may differ.
	if len(first) != 11 || !strings.HasPrefix(join(whole), join(first)) || len(second) != 19 || end != decode.EndLimit {
		t.Errorf("%d and %d tokens %q%q, 30 at once %q", len(first), len(second), join(first), join(second), join(whole))
	}
	f, err := s.Fork(decode.Head, decode.ForkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Append(decode.Text("\n</think>\n\nThe story's title is")); err != nil {
		t.Fatal(err)
	}
	answer, end := span(t, f, decode.Span{MaxTokens: 6, TopLogProbs: 2})
	if len(answer) != 6 || end != decode.EndLimit || answer[0].LogProb == 0 || len(answer[0].Top) == 0 {
		t.Errorf("answer %+v, end %s", answer, end)
	}
	more, end := span(t, s, decode.Span{MaxTokens: 4})
	if len(more) != 4 || end != decode.EndLimit {
		t.Errorf("%d tokens %q, end %s", len(more), join(more), end)
	}
}
